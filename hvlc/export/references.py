"""Records of families for checkpoints that answer without being built: kind, encoders and reference."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvlc.errors import UserError, nearest
from hvlc.export import known_families, vision_language_family
from hvlc.export.settings import read_config
from hvlc.export.vision_language import Encoder, VisionLanguageFamily
from hvlc.models.loaded import LoadedModel
from hvlc.models.reference import Reference
from hvlc.models.tracing import LanguageTracer, VisionLanguageTracer
from hvlc.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class VisionLanguageCheckpoint:
    """A checkpoint of a vision-language family.

    Attributes:
        directory: where it is.
        family: its record.
        encoders: its vision encoders, with those that were added, which transformers leaves out.
        default: name of the one that answers where a request names none.
        model: class by which transformers computes it.
    """

    directory: Path
    family: VisionLanguageFamily
    encoders: tuple[Encoder, ...]
    default: str
    model: type[LoadedModel]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the vision encoders that transformers has."""
        return tuple(encoder.name for encoder in self.encoders if not encoder.is_untrained)

    def loaded(self) -> LoadedModel:
        """The checkpoint as transformers computes it."""
        return self.model(self.directory, self.names, self.default, self.family.numbers)

    def reference(self, name: str) -> Reference:
        """Open a model that answers questions as transformers does.

        Args:
            name: as reports show it.
        """
        return Reference(self.loaded(), name)

    def tracer(self) -> VisionLanguageTracer:
        """Tracer of the checkpoint."""
        towers = {encoder.name: self.family.tower_size(encoder.config) for encoder in self.encoders}
        return VisionLanguageTracer(self.loaded(), self.family.modules, towers)


def vision_language_checkpoint(directory: Path) -> VisionLanguageCheckpoint | None:
    """A checkpoint by its family's record; None where its family does not see images and speak.

    Raises:
        UserError: it is damaged, or no family exports its model_type.
    """
    checkpoint = Checkpoint.open(directory)
    if checkpoint.model_type not in known_families():
        cause = f"no family exports model_type {checkpoint.model_type!r}"
        raise UserError("checkpoint.model_type", cause, nearest(checkpoint.model_type, known_families()))
    module = importlib.import_module(f"hvlc.export.families.{checkpoint.model_type}")
    family = vision_language_family(checkpoint.model_type)
    if family is None:
        return None
    if hasattr(module, "read"):
        checkpoint = module.read(checkpoint)
    config: Any = read_config(family.config, checkpoint, family.numbers)
    encoders, model = family.encoders(config, family.names[0]), getattr(module, "LOADED", LoadedModel)
    return VisionLanguageCheckpoint(directory, family, encoders, family.default_encoder(config), model)


def checkpoint_tracer(directory: Path) -> LanguageTracer:
    """Tracer of a checkpoint that speaks.

    Raises:
        UserError: it is damaged or quantized, or no family exports its model_type.
    """
    found = vision_language_checkpoint(directory)
    return found.tracer() if found else LanguageTracer(directory)
