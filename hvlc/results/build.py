"""Records of a build: estimate, journal, times and memory, and what the package's bytes are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from hvlc.graphs.bundle import JournalEntry
from hvlc.graphs.plan import Plan
from hvlc.manifest.manifest import Manifest


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of memory.

    Attributes:
        unshared: what the system cannot drop when it runs short.
        total: with mapped files.
    """

    unshared: int
    total: int


@dataclass(frozen=True)
class Estimate:
    """Estimated disk, memory and time of a build.

    Attributes:
        disk_bytes: size of the package.
        memory_bytes: peak of unshared memory.
        seconds: wall seconds of evaluating and writing, without imports.
        threads: that evaluate weights.
        calibration_seconds: wall seconds before that, roughly; None where no solver needs data.
        activation_bytes: memory of the package's encoders on a CPU for activations, over a batch of tiles, by the
            encoder's component; empty where tiles have no one shape or are compiled for a device.
    """

    disk_bytes: int
    memory_bytes: int
    seconds: float
    threads: int
    calibration_seconds: float | None = None
    activation_bytes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildResult:
    """Result of a build.

    Attributes:
        output: the package.
        manifest: its manifest.
        plan: every weight's fate.
        journal: every step.
        seconds: wall seconds of each stage.
        memory: peaks of the whole process.
        estimate: what was expected.
    """

    output: Path
    manifest: Manifest
    plan: Plan
    journal: tuple[JournalEntry, ...]
    seconds: Mapping[str, float]
    memory: MemoryUse
    estimate: Estimate


class Content(StrEnum):
    """Kinds of content of a package's bytes."""

    LEVELS = "quantized levels"
    SCALES = "scales"
    ZERO_POINTS = "zero points"
    FLOATS = "float weights"
    OTHER = "other constants"
    PADDING = "padding"
    UNUSED = "unused"
    GRAPH = "graph"
    COMPILED = "compiled for an NPU"
    TOKENIZER = "tokenizer"
    CONFIGURATION = "configuration"


@dataclass(frozen=True)
class Use:
    """An initializer that reads bytes.

    Attributes:
        component: whose graph.
        initializer: its name there.
        shape: its dimensions there.
    """

    component: str
    initializer: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Bytes of one file that belong together; no byte is in two pieces.

    Attributes:
        file: name in the package.
        bytes: how many; none where another piece already counts them.
        content: what they are.
        dtype: of the values; None for what has none.
        offset: where they start; None where they are spread over the file or inside a graph.
        uses: every initializer that reads them; nothing for what is not a weight.
        components: the graphs that they are part of.
    """

    file: str
    bytes: int
    content: Content
    dtype: str | None = None
    offset: int | None = None
    uses: tuple[Use, ...] = ()
    components: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """Every byte of a package.

    Attributes:
        pieces: in the order of files and of places in them.
    """

    pieces: tuple[Piece, ...]

    @property
    def total_bytes(self) -> int:
        """Sum of the sizes of all files."""
        return sum(piece.bytes for piece in self.pieces)

    def largest(self, count: int) -> list[Piece]:
        """The weights that take most."""
        return sorted((p for p in self.pieces if p.uses), key=lambda p: (-p.bytes, p.file, p.offset or 0))[:count]

    def totals(self) -> dict[tuple[tuple[str, ...], Content, str | None], int]:
        """Bytes by components, content and dtype; what several components read is a group of its own."""
        found: dict[tuple[tuple[str, ...], Content, str | None], int] = {}
        for piece in self.pieces:
            key = (piece.components, piece.content, piece.dtype)
            found[key] = found.get(key, 0) + piece.bytes
        return found
