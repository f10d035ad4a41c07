"""Models that are evaluated: packages through onnxruntime, checkpoints through what can run them."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from hvlc.errors import UserError
from hvlc.evaluation.answerer import Answerer, TeacherForced
from hvlc.files.reading import is_directory, is_file
from hvlc.files.scratch import temporary_directory
from hvlc.graphs.facts import Kind
from hvlc.inputs.documents import read_json
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.opening.configuration import read_configuration
from hvlc.opening.package import open_package
from hvlc.results.compilation import Compilation, read_compilation
from hvlc.runtime.logits import TextScorer
from hvlc.runtime.settings import USUAL, VisionSettings
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.hub import located, name_of
from hvlc.workflows.build.build import build
from hvlc.workflows.build.estimate import processors
from hvlc.workflows.build.request import open_request, source_digest
from hvlc.workflows.build.requirements import require_compile

_CPU_FACTS = Path("/proc/cpuinfo")


class Model(Answerer, TeacherForced, Protocol):
    """A model that answers, and says what it expects along a given answer."""


@dataclass(frozen=True)
class Subject:
    """A package or a checkpoint.

    Attributes:
        directory: where it is; a language checkpoint may be a GGUF file.
        label: as reports show it.
        kind: what it is for.
        manifest: of a package.
    """

    directory: Path
    label: str
    kind: Kind
    manifest: Manifest | None

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of all that is in it."""
        return source_digest(self.manifest) if self.manifest else Checkpoint.open(self.directory).digest

    @cached_property
    def provenance(self) -> dict[str, str]:
        """Facts that the numbers depend on: the digest, the versions of what runs it, and the machine."""
        runs = ["hvlc", "onnxruntime", "onnxruntime-genai"]
        if self.manifest is None and self.kind is Kind.VISION_LANGUAGE:
            runs = ["hvlc", "torch", "transformers"]
        return {
            "package" if self.manifest else "checkpoint": self.digest,
            **{tool: metadata.version(tool) for tool in runs},
            "processor": f"{_processor_name()}, {processors()} threads",
            "system": f"{platform.system()} {platform.machine()}",
        }

    @property
    def size_bytes(self) -> int | None:
        """Size of the package in bytes. None: not a package."""
        return self.manifest.total_bytes if self.manifest else None

    @property
    def bits_per_weight(self) -> float | None:
        """Stored bits per weight of a package's decoder. None: not quantized, or not a package."""
        return self.manifest.bits_per_decoder_weight if self.manifest else None

    @cached_property
    def compilation(self) -> Compilation | None:
        """Compilation of a package.

        Raises:
            UserError: its record is damaged.
        """
        return read_compilation(self.directory) if self.manifest else None

    @property
    def encoders(self) -> tuple[str, ...]:
        """The vision encoders; none in a language model."""
        if self.kind is not Kind.VISION_LANGUAGE:
            return ()
        if self.manifest:
            return tuple(self.manifest.encoders)
        require_compile("a checkpoint's answers")
        from hvlc.export.references import vision_language_checkpoint

        found = vision_language_checkpoint(self.directory)
        return found.names if found else ()

    @property
    def compresses(self) -> bool:
        """Whether the model has a resolution compressor."""
        if self.kind is not Kind.VISION_LANGUAGE:
            return False
        if self.manifest:
            return self.manifest.images is not None and self.manifest.images.resolution_compressor
        require_compile("a checkpoint's answers")
        from hvlc.export.references import vision_language_checkpoint

        found = vision_language_checkpoint(self.directory)
        return found is not None and found.family.compressor is not None

    @property
    def vocabulary(self) -> int | None:
        """Tokens that it tells apart, as its configuration says; None where that does not say it."""
        config: Any = {}
        if self.manifest:
            return read_configuration(self.directory, self.manifest).model.vocab_size
        if is_directory(self.directory):
            config = _table(read_json(self.directory / "config.json", "checkpoint.config"))
            config = _table(config.get("text_config")) or config
        size = _table(config).get("vocab_size")
        return size if isinstance(size, int) else None


def _table(content: Any) -> dict[str, Any]:
    """An object of JSON; {} for anything else."""
    return content if isinstance(content, dict) else {}


def open_subject(directory: Path, label: str | None = None) -> Subject:
    """A package, or a checkpoint that packages are made from.

    Args:
        directory: of the package or the checkpoint, a GGUF file, or an id on the Hugging Face hub.
        label: as reports show it; the directory's name when None.

    Raises:
        UserError: it is neither, or a vision package, which answers nothing.
    """
    directory = located(directory)
    label = label or name_of(directory)
    if is_file(directory / MANIFEST):
        manifest = open_package(directory).manifest
        if manifest.kind is Kind.VISION:
            cause = f"{directory} is a vision package: it turns pixels into features and answers nothing"
            raise UserError("eval.kind", cause, "name a language or a vision-language package")
        return Subject(directory, label, manifest.kind, manifest)
    if is_file(directory):
        return Subject(directory, label, Kind.LANGUAGE, None)  # a GGUF file, or what Checkpoint.open refuses
    if not is_file(directory / "config.json"):
        raise UserError("eval.model", f"{directory} is neither a package nor a checkpoint", "name one of the two")
    return Subject(directory, label, Kind.VISION_LANGUAGE if _sees(directory) else Kind.LANGUAGE, None)


def _sees(directory: Path) -> bool:
    """Whether a checkpoint's family takes images.

    Raises:
        UserError: it is damaged, or no family exports its model_type.
    """
    require_compile("a checkpoint's answers")
    from hvlc.export.references import vision_language_checkpoint

    return vision_language_checkpoint(directory) is not None


def require_one_vocabulary(subjects: Sequence[Subject]) -> None:
    """Refuse distributions over different tokens before the work.

    Raises:
        UserError: the configurations of two say different sizes.
    """
    sizes = {s.label: size for s in subjects if (size := s.vocabulary) is not None}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{label} has {size} tokens" for label, size in sizes.items())
        raise UserError("eval.reference", told, "compare models that share a tokenizer and a vocabulary")


@contextmanager
def answering(subject: Subject, vision: VisionSettings | None = None) -> Iterator[Model]:
    """The opened model: a package through onnxruntime, a checkpoint that sees through transformers, another as a
    float32 package that is built for as long.

    Args:
        subject: the model.
        vision: how a package's encoders run. None: as usual.

    Raises:
        UserError: it cannot be opened or built.
    """
    if subject.manifest is None and subject.kind is Kind.VISION_LANGUAGE:
        require_compile("a checkpoint's answers")
        from hvlc.export.references import vision_language_checkpoint

        if found := vision_language_checkpoint(subject.directory):
            yield found.reference(subject.label)
            return
    from hvlc.runtime.generation import open_model

    with _package(subject) as (directory, runs_on):
        model = open_model(directory, name=subject.label, vision=vision or USUAL)
        model.runs_on = runs_on
        yield model


@contextmanager
def reading(subject: Subject) -> Iterator[tuple[TextScorer, str]]:
    """Open a scorer of texts, with a name of what it runs on; a checkpoint becomes a float32 package for as long.

    Raises:
        UserError: it is not a language model, or it cannot be opened or built.
    """
    with _package(subject) as (directory, runs_on):
        yield TextScorer(directory), runs_on


@contextmanager
def _package(subject: Subject) -> Iterator[tuple[Path, str]]:
    if subject.manifest:
        from hvlc.runtime.providers import runs_on

        yield subject.directory, runs_on(subject.manifest)
        return
    require_compile("a checkpoint's answers")
    with temporary_directory("float") as work:
        package = work / "float32"
        build(open_request(subject.directory, "cpu", "float32", package))
        yield package, "onnxruntime CPU, as a float32 package"


def _processor_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        lines = _CPU_FACTS.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())  # platform.processor() starts `uname`
