"""A checkpoint with a choice of vision encoders, made of two of one family."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hvlc.errors import UserError
from hvlc.files.reading import is_file
from hvlc.package.atomic import atomic_directory
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.checkpoint_files import SETTINGS
from hvlc.workflows.build.requirements import require_compile

if TYPE_CHECKING:
    from hvlc.export.vision_language import VisionLanguageFamily


def assemble(directory: Path, name: str, other: Path, output: Path, *, seed: int = 0) -> None:
    """Write a checkpoint with the vision tower of another one as a second encoder.

    Its connector is fresh: what it feeds the decoder means nothing until it was trained.

    Args:
        directory: the checkpoint that speaks.
        name: as requests will name the encoder.
        other: a checkpoint of the same family, whose tower is taken.
        output: the new checkpoint.
        seed: of the connector.

    Raises:
        UserError: the two do not fit, a checkpoint is damaged, or the output exists.
    """
    require_compile("assembling")
    checkpoint, source = Checkpoint.open(directory), Checkpoint.open(other)
    family = _family(checkpoint)
    if source.model_type != checkpoint.model_type:
        cause = f"{other} is a {source.model_type}, {directory} a {checkpoint.model_type}"
        raise UserError("assemble.family", cause, "name two checkpoints of one family")
    from hvlc.export.added_encoders import add_encoder

    with atomic_directory(output, force=False) as partial:
        for file in SETTINGS:
            if is_file(checkpoint.directory / file):
                shutil.copyfile(checkpoint.directory / file, partial / file)
        add_encoder(checkpoint, source, family, name, partial, seed=seed)


def _family(checkpoint: Checkpoint) -> "VisionLanguageFamily":
    """The family of a checkpoint that sees.

    Raises:
        UserError: it has none that takes another encoder.
    """
    from hvlc.export import vision_language_family
    from hvlc.export.vision_language import one_encoder

    family = vision_language_family(checkpoint.model_type)
    if family is None or family.encoders is not one_encoder:
        cause = f"a {checkpoint.model_type} takes no other vision encoder"
        raise UserError("assemble.family", cause, "name a vision-language checkpoint with one encoder")
    return family
