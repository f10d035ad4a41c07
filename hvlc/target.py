"""Targets: frozen data about a device or runtime; code asks questions and never the name."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from hvlc.errors import UserError, nearest
from hvlc.spec import StrictModel, read_toml


class Evidence(StrEnum):
    """How a limit is known."""

    RUN = "run"
    READ = "read"
    INFERRED = "inferred"


@dataclass(frozen=True)
class Verdict:
    """Yes, or no with the reason."""

    taken: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.taken


class BlockFormat(StrictModel):
    """A block-wise integer weight format that the target's matrix product takes.

    Attributes:
        bits: width of an element.
        block_sizes: input channels that share one scale.
        zero_points: whether asymmetric blocks are taken.
        negative_scales: whether a scale may be negative.
        float_zero_points: whether a zero point may be any float, so that a block may have a float minimum: the product
            is one without zero points, and a product by the sums of each block's inputs.
        evidence: how this is known.
        source: where.
    """

    bits: int
    block_sizes: tuple[int, ...]
    zero_points: bool
    negative_scales: bool
    float_zero_points: bool = False
    evidence: Evidence
    source: str


class Target(StrictModel):
    """One device or runtime.

    Attributes:
        schema_version: of the file.
        name: as given on the command line.
        description: one line.
        execution_provider: onnxruntime's name of the provider.
        evidence: how the target as a whole was tried.
        contrib_ops: com.microsoft operators that run on it.
        refused_ops: standard operators that do not.
        block_formats: quantized matrix products.
        gather_bits: widths that the block-wise embedding look-up takes.
        lookup_dtypes: element types of tables that a look-up (Gather) copies rows from.
        activation_dtypes: element types of static integer activations (QDQ form).
        cache_dtypes: element types of a KV cache besides float.
        fixed_shapes: whether every dimension must be static.
    """

    schema_version: int = Field(ge=1, le=1)
    name: str
    description: str
    execution_provider: str
    evidence: Evidence
    contrib_ops: tuple[str, ...]
    refused_ops: tuple[str, ...] = ()
    block_formats: tuple[BlockFormat, ...]
    gather_bits: tuple[int, ...] = ()
    lookup_dtypes: tuple[str, ...] = ("float32",)
    activation_dtypes: tuple[str, ...] = ()
    cache_dtypes: tuple[str, ...] = ()
    fixed_shapes: bool = False

    @model_validator(mode="after")
    def _formats_are_distinct(self) -> Self:
        bits = [f.bits for f in self.block_formats]
        if len(bits) != len(set(bits)):
            raise ValueError("block_formats names a width twice")
        if self.block_formats and "MatMulNBits" not in self.contrib_ops:
            raise ValueError("block_formats need MatMulNBits among contrib_ops")
        return self

    def takes_op(self, op_type: str, domain: str = "") -> Verdict:
        """Whether an operator may run here."""
        if domain == "com.microsoft":
            return Verdict(op_type in self.contrib_ops, f"{self.name} does not take {domain}.{op_type}")
        return Verdict(op_type not in self.refused_ops, f"{self.name} does not take {op_type}")

    def takes_weights(self, bits: int, block_size: int, *, symmetric: bool) -> Verdict:
        """Whether a block-wise quantized matrix product may run here."""
        formats = {f.bits: f for f in self.block_formats}
        if bits not in formats:
            return Verdict(False, f"{self.name} takes {_list(formats)} bits, not {bits}")
        found = formats[bits]
        if block_size not in found.block_sizes:
            return Verdict(False, f"{self.name} takes blocks of {_list(found.block_sizes)}, not {block_size}")
        if not symmetric and not found.zero_points:
            return Verdict(False, f"{self.name} takes no zero points at {bits} bits")
        return Verdict(True)

    def takes_float_zero_points(self, bits: int) -> Verdict:
        """Whether a block's zero point may be a float."""
        taken = any(f.bits == bits and f.float_zero_points for f in self.block_formats)
        return Verdict(taken, f"{self.name} takes no float zero points at {bits} bits")

    def takes_negative_scales(self, bits: int) -> bool:
        """Whether a block's scale may be negative, which lets its extreme value use all levels."""
        return any(f.bits == bits and f.negative_scales for f in self.block_formats)

    def takes_gather(self, bits: int) -> Verdict:
        """Whether an embedding look-up may read block-wise quantized rows of this width."""
        return Verdict(
            bits in self.gather_bits, f"{self.name} looks up {_list(self.gather_bits)} bits only, not {bits}"
        )

    def takes_activations(self, dtype: str) -> Verdict:
        """Whether static integer activations of this element type may run here."""
        return Verdict(dtype in self.activation_dtypes, f"{self.name} takes no static {dtype} activations")

    def takes_cache(self, dtype: str) -> Verdict:
        """Whether attention may store its keys and values in this element type."""
        return Verdict(dtype in self.cache_dtypes, f"{self.name} keeps no KV cache of {dtype}")

    def takes_lookup(self, dtype: str) -> Verdict:
        """Whether an embedding look-up may copy rows of this element type."""
        return Verdict(dtype in self.lookup_dtypes, f"{self.name} looks up no {dtype}")


def _list(values: Iterable[int]) -> str:
    return ", ".join(str(v) for v in sorted(values)) or "no"


def shipped_targets() -> dict[str, Path]:
    """The targets that come with hvlc, by name."""
    directory = Path(str(resources.files("hvlc") / "targets"))
    return {path.stem: path for path in sorted(directory.glob("*.toml"))}


def target_path(name: str) -> Path:
    """The file of a shipped target, or a user's own file.

    Raises:
        UserError: unknown name.
    """
    shipped = shipped_targets()
    path = shipped.get(name) or (Path(name) if name.endswith(".toml") else None)
    if path is None:
        raise UserError("target.unknown", f"no target {name!r}", nearest(name, shipped))
    return path


def load_target(name: str) -> Target:
    """A target by name or path.

    Raises:
        UserError: unknown name, or an invalid file.
    """
    path = target_path(name)
    return Target.parse(read_toml(path), path.name)
