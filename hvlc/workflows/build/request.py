"""Request for a build, and the provenance of its package."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvlc.errors import Collector
from hvlc.inputs.documents import read_yaml
from hvlc.manifest.lock import Provenance
from hvlc.manifest.manifest import Manifest, Sources
from hvlc.manifest.policy import EncoderPolicy
from hvlc.package.atomic import check_output
from hvlc.package.writer import code_digest, tool_versions
from hvlc.recipes.loading import load_recipe, recipe_text
from hvlc.recipes.schema import Recipe
from hvlc.targets import Target, load_target, target_text
from hvlc.weights.checkpoint import RESOLUTION_COMPRESSOR, Checkpoint
from hvlc.workflows.build.requirements import require_compile

if TYPE_CHECKING:
    from hvlc.calibration.samples import CalibrationSet


@dataclass(frozen=True)
class BuildRequest:
    """Request for a build.

    Attributes:
        checkpoint: a checkpoint directory, a GGUF file, or an id on the Hugging Face hub.
        target: what the package is for.
        recipe: a format for every weight.
        documents: texts of the recipe and the target, which the package remembers.
        output: directory to write.
        force: replace an existing package.
        threads: that evaluate weights; None is one for each processor. The package does not depend on it.
        max_memory: bytes of unshared memory that the build may take; fewer threads are used where that helps.
        calibration: where calibration inputs come from (`hvlc.calibration.sources`); None is the recipe's.
        samples: of the calibration; None is the recipe's number.
        state: directory that keeps what a calibration found while it goes on; None is one beside the output.
        budget: "4.5bpw" or "40MB", within which formats are chosen; None is the recipe's, if it has one.
        cache: directory that keeps the sensitivities that a budget is spent by; None is the user's cache.
        context: tokens that the KV cache of fixed shapes has room for; None is what target and checkpoint allow.
        grids: heights and widths in pixels, to one of which images are resized where a target fixes the encoders of a
            model that sees any shape; none: chosen by the images of the calibration.
        tile_batch: pieces of an image per run of a vision encoder. None: what the target says.
        vrc: directory of a resolution compressor that was trained for the checkpoint; None is the checkpoint's own, if
            it has one.
        policy: which encoder answers a request that names none. None: the recipe's, or the model's default encoder.
        aot: compile for the device now, where its compiler is at hand; else the graphs are left to its runtime.
    """

    checkpoint: Path
    target: Target
    recipe: Recipe
    documents: "tuple[Document, Document]"
    output: Path
    force: bool = False
    threads: int | None = None
    max_memory: int | None = None
    calibration: str | None = None
    samples: int | None = None
    state: Path | None = None
    budget: str | None = None
    cache: Path | None = None
    context: int | None = None
    grids: tuple[tuple[int, int], ...] = ()
    tile_batch: int | None = None
    vrc: Path | None = None
    policy: EncoderPolicy | None = None
    aot: bool = True

    def open_checkpoint(self) -> Checkpoint:
        """The checkpoint, and what joins it.

        Raises:
            UserError: one cannot be opened.
        """
        return open_checkpoint(self.checkpoint, self.vrc)

    @property
    def state_directory(self) -> Path:
        """Directory in which a calibration keeps what it found."""
        return self.state or self.output.parent / f"{self.output.name}.calibration"


def open_checkpoint(checkpoint: Path, vrc: Path | None) -> Checkpoint:
    """A checkpoint, and the resolution compressor that was trained for it, if there is one.

    Raises:
        UserError: one cannot be opened.
    """
    opened = Checkpoint.open(checkpoint)
    return opened if vrc is None else opened.joined(RESOLUTION_COMPRESSOR, Checkpoint.open(vrc))


@dataclass(frozen=True)
class Document:
    """A recipe or target as it was when the build read it; its file may change while the build runs.

    Attributes:
        name: as it calls itself.
        text: of its file.
    """

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Hex digest of the text in UTF-8: of the file's bytes, unless it begins with a byte order mark."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def open_request(
    checkpoint: Path,
    target: str,
    recipe: str,
    output: Path,
    *,
    anywhere: bool = False,
    policy: EncoderPolicy | Path | str | None = None,
    **options: Any,
) -> BuildRequest:
    """The request of a build, its recipe and its target read; nothing after this knows where they came from.

    Args:
        checkpoint: a checkpoint directory, a GGUF file, or an id on the Hugging Face hub.
        target: name of a target, or a TOML file.
        recipe: name of a recipe, or a YAML file.
        output: directory to write.
        anywhere: the output is not settled yet, so it is not looked at.
        policy: of the package, or its YAML file. None: the recipe's.
        **options: further fields of the request.

    Raises:
        UserError: recipe, target or policy are unknown or wrong, together with what else would stop the build before
            its plan.
    """
    found, others = Collector(), Collector()
    rules = device = chosen = None
    with found:
        rules = load_recipe(recipe), recipe_text(recipe)
    with found:
        device = load_target(target), target_text(target)
    with found:
        chosen = read_policy(policy) if isinstance(policy, str | Path) else policy
    if found.problems:
        with others:
            require_compile("a build")
        with others:
            if not anywhere:
                check_output(output, force=bool(options.get("force")))
        with found:
            Checkpoint.open(checkpoint)
        found.problems[:0] = others.problems
        found.raise_all()
    (read, text), (asked, described) = found.require(rules), found.require(device)
    documents = Document(read.name, text), Document(asked.name, described)
    return BuildRequest(checkpoint, asked, read, documents, output, policy=chosen, **options)


def read_policy(path: Path | str) -> EncoderPolicy:
    """The policy of a YAML file.

    Args:
        path: the file.

    Raises:
        UserError: it cannot be read, or is not a policy.
    """
    return EncoderPolicy.parse(read_yaml(Path(path)), Path(path).name)


def provenance_of(
    checkpoint: Checkpoint, recipe: Document, target: Document, inputs: "CalibrationSet | None"
) -> Provenance:
    """Provenance of a build, in enough detail to make it again; equal sources make an equal package."""
    sources = Sources(
        model_type=checkpoint.model_type,
        checkpoint=checkpoint.digest,
        recipe_name=recipe.name,
        recipe=recipe.sha256,
        target_name=target.name,
        target=target.sha256,
        code=code_digest(),
        versions=tool_versions(),
        calibration_name=inputs.name if inputs else None,
        calibration=inputs.digest if inputs else None,
        calibration_samples=len(inputs.samples) if inputs else None,
    )
    return Provenance(sources, checkpoint.file_digests, recipe.text, target.text, checkpoint.origin)


def source_digest(manifest: Manifest) -> str:
    """Hex SHA-256 of a package's manifest: equal digests are equal packages."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
