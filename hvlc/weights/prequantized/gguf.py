"""Matrices of GGUF files: ggml's block types as block-wise levels, scales and zero points.

A block is little-endian bytes; its layout is that of ggml's struct (https://github.com/ggml-org/ggml/blob/master/src/
ggml-common.h) and its meaning that of dequantize_row_* in ggml-quants.c. `value = scale * level + minimum` becomes
`scale * (level - middle) + (minimum + middle * scale)`, a float zero point; the bracket is rounded to float32 once.
Where every minimum of a matrix is a whole number of scales (files that were made of integer zero points), these numbers
are integer zero points, to the bit. A scale of scales is multiplied out: at most 18 significant bits, exact in float32.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hvlc.errors import UserError
from hvlc.weights.formats import ScaleType, WeightFormat, ZeroType, weight_format
from hvlc.weights.lazy import Box, Expression
from hvlc.weights.prequantized.matrix import Prequantized

_ROWS = 64  # that are read at a time to see whether minima are whole numbers of scales

#: Blocks uint8 `[n, bytes]` to an array `[n, ...]`.
_Read = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Type:
    """A ggml type that has a block-wise form.

    Attributes:
        bits: of the form's levels, 4 or 8: the next width that onnxruntime takes.
        block: values that share one scale.
        levels: unsigned levels uint8 `[n, values]`.
        scales: float32 `[n, scales]`.
        minima: float32 `[n, scales]`, added to each value; None where levels are signed.
        middle: the unsigned level that becomes the form's middle level; it stands for 0 in types without minima.
        scale_type: in which the scales are exact.
        negative: whether its quantizer makes negative scales.
    """

    bits: int
    block: int
    levels: _Read
    scales: _Read
    middle: int
    minima: _Read | None = None
    scale_type: ScaleType = ScaleType.FLOAT16
    negative: bool = False

    def format(self, zero: ZeroType) -> WeightFormat:
        """Its form, with zero points of a type where it has minima."""
        return weight_format(self.bits, self.block, self.minima is None, self.scale_type, self.negative, zero)

    def whole_zero_points(self, blocks: np.ndarray) -> np.ndarray | None:
        """Zero points uint8 `[n, scales]` that give the minima exactly. None: there are none."""
        if self.minima is None:
            return None
        scales, minima = self.scales(blocks), self.minima(blocks)
        steps = np.rint(np.divide(-minima, scales, out=np.zeros_like(minima), where=scales != 0))
        zeros = steps + np.float32(self.shift)
        exact = (steps * scales == -minima) & (zeros >= 0) & (zeros < 2**self.bits)
        return zeros.astype(np.uint8) if exact.all() else None

    @property
    def shift(self) -> int:
        """Offset added to a stored level so that the middle levels are equal."""
        return (1 << (self.bits - 1)) - self.middle


def _half(start: int) -> _Read:
    """The float16 at a byte, float32 `[n, 1]`."""
    return lambda blocks: np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _fields(packed: np.ndarray, run: int, bits: int) -> np.ndarray:
    """Bit fields `[n, values]` of bytes `[n, bytes]`: of each run of bytes all lowest fields, then all next ones."""
    count = len(packed)
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    fields = packed.reshape(count, -1, 1, run) >> shifts & np.uint8((1 << bits) - 1)
    return fields.reshape(count, -1)


def _nibbles(start: int, run: int = 16) -> _Read:
    return lambda blocks: _fields(blocks[:, start:], run, 4)


def _fives(high: int, low: int) -> _Read:
    """32 levels of 5 bits: the fifth bits in one 32-bit word."""

    def read(blocks: np.ndarray) -> np.ndarray:
        fifth = np.unpackbits(blocks[:, high : high + 4], axis=1, bitorder="little")
        return _fields(blocks[:, low:], 16, 4) | fifth << 4

    return read


def _signed_bytes(blocks: np.ndarray) -> np.ndarray:
    """Q8_0: -128 to 127 as 0 to 255."""
    return blocks[:, 2:] ^ np.uint8(128)


def _six_bits(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima of Q4_K and Q5_K, uint8 `[n, 8]` each, from 12 bytes (get_scale_min_k4)."""
    packed = blocks[:, 4:16]
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], 1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], 1)
    return scales, minima


def _q5_k_levels(blocks: np.ndarray) -> np.ndarray:
    """Nibbles in runs of 32; bit `i` of byte `j` of the high bits is the fifth bit of value `32 i + j`."""
    return _fields(blocks[:, 48:], 32, 4) | _fields(blocks[:, 16:48], 32, 1) << 4


def _q3_k_levels(blocks: np.ndarray) -> np.ndarray:
    """Two low bits in runs of 32, third bits as in Q5_K; 0 stands for -4, so that the third bit means "not below 0"."""
    return _fields(blocks[:, 32:96], 32, 2) | _fields(blocks[:, :32], 32, 1) << 2


def _q3_k_scales(blocks: np.ndarray) -> np.ndarray:
    """16 signed scales of 6 bits: 8 bytes of low nibbles, 4 bytes of high pairs."""
    packed = blocks[:, 96:108]
    signed = (_fields(packed[:, :8], 8, 4) | _fields(packed[:, 8:], 4, 2) << 4).astype(np.int8) - np.int8(32)
    return _half(108)(blocks) * signed


def _q6_k_levels(blocks: np.ndarray) -> np.ndarray:
    """Halves of 128 values: nibbles in runs of 64, high pairs in runs of 32."""
    return _fields(blocks[:, :128], 64, 4) | _fields(blocks[:, 128:192], 32, 2) << 4


def _times(start: int, factors: _Read, sign: int = 1) -> _Read:
    """Small integers times the block's float16 at a byte."""
    return lambda blocks: _half(start)(blocks) * factors(blocks).astype(np.float32) * np.float32(sign)


_K_MIN: dict[str, Any] = {
    "scales": _times(0, lambda blocks: _six_bits(blocks)[0]),
    "minima": _times(2, lambda blocks: _six_bits(blocks)[1], -1),
    "scale_type": ScaleType.FLOAT32,
}

_TYPES: dict[str, _Type] = {
    "Q4_0": _Type(4, 32, _nibbles(2), _half(0), 8, negative=True),
    "Q4_1": _Type(4, 32, _nibbles(4), _half(0), 8, _half(2)),
    "Q5_0": _Type(8, 32, _fives(2, 6), _half(0), 16, negative=True),
    "Q5_1": _Type(8, 32, _fives(4, 8), _half(0), 16, _half(2)),
    "Q8_0": _Type(8, 32, _signed_bytes, _half(0), 128),
    "Q2_K": _Type(
        4,
        16,
        lambda blocks: _fields(blocks[:, 16:80], 32, 2),
        _times(80, lambda blocks: blocks[:, :16] & 15),
        2,
        _times(82, lambda blocks: blocks[:, :16] >> 4, -1),
        scale_type=ScaleType.FLOAT32,
    ),
    "Q3_K": _Type(4, 16, _q3_k_levels, _q3_k_scales, 4, scale_type=ScaleType.FLOAT32, negative=True),
    "Q4_K": _Type(4, 32, _nibbles(16, 32), middle=8, **_K_MIN),
    "Q5_K": _Type(8, 32, _q5_k_levels, middle=16, **_K_MIN),
    "Q6_K": _Type(
        8,
        16,
        _q6_k_levels,
        _times(208, lambda blocks: blocks[:, 192:208].view(np.int8)),
        32,
        scale_type=ScaleType.FLOAT32,
        negative=True,
    ),
}


@dataclass(frozen=True)
class GgufMatrix(Prequantized):
    """A matrix in ggml's blocks; its values are those of ggml itself, through the gguf package.

    Attributes:
        raw: rows of blocks, uint8 `[out, bytes]`.
        kind: ggml's name of the type.
        columns: values of a row.
    """

    raw: Expression
    kind: str
    columns: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """`[out, in]`."""
        return self.raw.shape[0], self.columns

    def parts(self) -> Iterator[Expression]:
        """The blocks."""
        yield self.raw

    @property
    def origin(self) -> str:  # type: ignore[override]
        """The type's name."""
        return f"GGUF {self.kind}"

    @property
    def format(self) -> WeightFormat | None:  # type: ignore[override]
        """Integer zero points where all minima are whole numbers of scales, else float ones for types with minima.

        None: a type whose levels are not even steps.
        """
        return self._format

    @cached_property
    def _format(self) -> WeightFormat | None:
        """Read rows of a type with minima until one has no integer zero points: the first, in most files."""
        kind = _TYPES.get(self.kind)
        if kind is None:
            return None
        if kind.minima is None:
            return kind.format(ZeroType.INTEGER)
        starts = range(0, self.shape[0], _ROWS)
        ends = (min(start + _ROWS, self.shape[0]) for start in starts)
        rows = (self._blocks(start, end) for start, end in zip(starts, ends, strict=True))
        whole = all(kind.whole_zero_points(blocks) is not None for blocks in rows)
        return kind.format(ZeroType.INTEGER if whole else ZeroType.FLOAT)

    @property
    def obstacle(self) -> str:  # type: ignore[override]
        """Reason why the matrix has no format; empty when it has one."""
        return "" if self.format else "its levels are not even steps of a block"

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """Values and bytes of a block."""
        import gguf

        values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        return values, size

    def box(self, box: Box) -> np.ndarray:
        """Dequantized blocks that the box touches."""
        import gguf

        values, size = self._sizes
        first, last = box[1].start // values, -(-box[1].stop // values)
        raw = np.ascontiguousarray(self.raw.box((box[0], slice(first * size, last * size))))
        if not raw.size:
            return np.zeros((len(raw), box[1].stop - box[1].start), np.float32)
        numbers: np.ndarray = gguf.dequantize(raw, gguf.GGMLQuantizationType[self.kind])
        return numbers[:, box[1].start - first * values : box[1].stop - first * values]

    def levels(self, start: int, stop: int) -> np.ndarray:
        """Stored levels, moved so that the middle levels meet."""
        kind = _TYPES[self.kind]
        levels = kind.levels(self._blocks(start, stop)) + np.uint8(kind.shift)
        return levels.reshape(stop - start, -1, kind.block)

    def scales(self, start: int, stop: int) -> np.ndarray:
        """Scales of scales multiplied out."""
        return _TYPES[self.kind].scales(self._blocks(start, stop)).reshape(stop - start, -1)

    def zero_points(self, start: int, stop: int) -> np.ndarray:
        """Whole numbers of scales that the minima are.

        Raises:
            TypeError: there are none.
        """
        zeros = _TYPES[self.kind].whole_zero_points(self._blocks(start, stop))
        if zeros is None:
            raise TypeError(f"{self.origin} has no integer zero points")
        return zeros.reshape(stop - start, -1)

    def middles(self, start: int, stop: int) -> np.ndarray:
        """The value of the middle level: the minimum, and as many scales as the middle level counts."""
        kind, blocks = _TYPES[self.kind], self._blocks(start, stop)
        if kind.minima is None:
            raise TypeError(f"{self.kind} has no minima")
        return (kind.minima(blocks) + np.float32(kind.middle) * kind.scales(blocks)).reshape(stop - start, -1)

    def _blocks(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.raw.rows(start, stop)).reshape(-1, self._sizes[1])


def gguf_matrix(name: str, raw: Expression, kind: str, columns: int) -> GgufMatrix:
    """A matrix of a GGUF file.

    Raises:
        UserError: the gguf package cannot read the type.
    """
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[number]
    try:  # also makes the tables that some types need, before threads ask for them
        gguf.dequantize(np.zeros((1, size), np.uint8), number)
    except NotImplementedError as error:
        fix = "quantize the model to another type"
        raise UserError("checkpoint.dtype", f"{name} is {kind}, which the gguf package cannot read", fix) from error
    return GgufMatrix(raw, kind, columns)
