"""Matrices of GPTQ and AWQ checkpoints: levels in int32 words, a float scale and an integer zero point for each group.

`weight[o, i] = (level[i, o] - zero[g[i], o]) * scale[g[i], o]`: both store the matrix transposed. GPTQ packs input
channels into a word (AutoGPTQ's and GPTQModel's `pack`), AWQ output channels, in an order of its own (AutoAWQ's
WQLinear_GEMM). AWQ stores zero points as they are; GPTQ stores them less one in `checkpoint_format` "gptq", where whole
words were decremented (GPTQModel's convert_gptq_v1_to_v2_format), and as they are in "gptq_v2".
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hvlc.weights.formats import ScaleType, WeightFormat, weight_format
from hvlc.weights.lazy import Box, Expression
from hvlc.weights.prequantized.matrix import Prequantized

_WORD = 32  # bits
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds
_WIDTHS = (4, 8)  # of onnxruntime's levels; 2-bit levels are stored in 4
#: Block of a matrix whose rows have one scale each; every block repeats it.
ROW_BLOCK = 128


def unpack_words(words: np.ndarray, bits: int) -> np.ndarray:
    """Fields of int32 words, lowest first: uint8 `[..., fields]`."""
    shifts = np.arange(0, _WORD, bits, dtype=np.uint32)
    return (words.view(np.uint32)[..., None] >> shifts & np.uint32((1 << bits) - 1)).astype(np.uint8)


@dataclass(frozen=True)
class GroupedMatrix(Prequantized):
    """A matrix `[out, in]` of a GPTQ or AWQ checkpoint.

    Attributes:
        method: "GPTQ" or "AWQ".
        qweight: levels, int32 `[in * bits / 32, out]` (GPTQ) or `[in, out * bits / 32]` (AWQ).
        qzeros: zero points, int32 `[groups, out * bits / 32]`.
        group_scales: float `[groups, out]`.
        groups: group of each input channel, int32 `[in]`; None for groups in order.
        bits: of a level.
        group: input channels of a group, where they stand in order.
        decremented: whether zero points are stored less one.
        symmetric: whether every zero point is the middle level.
        columns: input features.
    """

    method: str
    qweight: Expression
    qzeros: Expression
    group_scales: Expression
    groups: Expression | None
    bits: int
    group: int
    decremented: bool
    symmetric: bool
    columns: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """`[out, in]`."""
        return self.group_scales.shape[1], self.columns

    def parts(self) -> Iterator[Expression]:
        """The stored tensors."""
        yield from (self.qweight, self.qzeros, self.group_scales)
        if self.groups is not None:
            yield self.groups

    @property
    def origin(self) -> str:  # type: ignore[override]
        """Method, width and group."""
        size = "whole rows" if self.group >= self.columns else f"b{self.group}"
        return f"{self.method} int{self.bits} {size} {'sym' if self.symmetric else 'asym'}"

    @property
    def obstacle(self) -> str:  # type: ignore[override]
        """Reason why the matrix has no format; empty when it has one."""
        return "" if self.groups is None else "its channels are grouped by activation order (desc_act), not in blocks"

    @property
    def format(self) -> WeightFormat | None:  # type: ignore[override]
        """Blocks are groups; None where these are not runs of channels."""
        if self.groups is not None:
            return None
        half = self.group_scales.dtype == np.float16
        scale = ScaleType.FLOAT16 if half else ScaleType.FLOAT32
        symmetric = self.symmetric and self.bits in _WIDTHS
        return weight_format(max(self.bits, min(_WIDTHS)), self._block, symmetric, scale, negative_scales=False)

    @property
    def _block(self) -> int:
        return ROW_BLOCK if self.group >= self.columns else self.group

    def box(self, box: Box) -> np.ndarray:
        """`(level - zero point) * scale`, exact but for the product's rounding."""
        rows, columns = (box[0].start, box[0].stop), box[1]
        if rows[0] == rows[1] or columns.start == columns.stop:
            return np.zeros((rows[1] - rows[0], columns.stop - columns.start), np.float32)
        order = np.arange(columns.start, columns.stop) // self.group if self.groups is None else self._groups(columns)
        zeros, scales = self._zeros(*rows)[:, order], self._scales(*rows)[:, order]
        return (self._levels(*rows, columns.start, columns.stop).astype(np.float32) - zeros) * scales

    def levels(self, start: int, stop: int) -> np.ndarray:
        """Stored levels; the padding of the last block is 0."""
        levels = self._levels(start, stop, 0, self.columns)
        padded = np.pad(levels, ((0, 0), (0, -self.columns % self._block)))
        return padded.reshape(stop - start, -1, self._block)

    def scales(self, start: int, stop: int) -> np.ndarray:
        """One for each group, or a row's one for each block."""
        return self._each_block(self._scales(start, stop))

    def zero_points(self, start: int, stop: int) -> np.ndarray:
        """Zero points in the numbers of the levels."""
        return self._each_block(self._zeros(start, stop))

    def _each_block(self, values: np.ndarray) -> np.ndarray:
        blocks = -(-self.columns // self._block)
        return values if values.shape[1] == blocks else np.repeat(values, blocks, 1)

    def _levels(self, start: int, stop: int, first: int, last: int) -> np.ndarray:
        """uint8 `[rows, columns]`."""
        if self.method == "AWQ":
            return _awq_columns(self.qweight, start, stop, slice(first, last)).T
        fields = _WORD // self.bits
        word, end = first // fields, -(-last // fields)
        words = self.qweight.box((slice(word, end), slice(start, stop)))
        levels = unpack_words(np.ascontiguousarray(words.T), self.bits).reshape(stop - start, -1)
        return levels[:, first - word * fields : last - word * fields]

    def _zeros(self, start: int, stop: int) -> np.ndarray:
        """uint8 `[rows, groups]`."""
        everything = slice(0, self.qzeros.shape[0])
        if self.method == "AWQ":
            return _awq_columns(self.qzeros, start, stop, everything).T
        fields = _WORD // self.bits
        word, end = start // fields, -(-stop // fields)
        words = self.qzeros.box((everything, slice(word, end)))
        if self.decremented:
            words = (np.ascontiguousarray(words).view(np.uint32) + _ones(self.bits)).view(np.int32)
        zeros = unpack_words(words, self.bits).reshape(len(words), -1)
        return zeros[:, start - word * fields : stop - word * fields].T

    def _scales(self, start: int, stop: int) -> np.ndarray:
        """float32 `[rows, groups]`."""
        return self.group_scales.box((slice(0, self.group_scales.shape[0]), slice(start, stop))).T.astype(np.float32)

    def _groups(self, columns: slice) -> np.ndarray:
        if self.groups is None:
            raise TypeError("its groups stand in order")
        return self.groups.box((columns,))


def _ones(bits: int) -> np.uint32:
    """A word with 1 in every field."""
    return np.uint32(sum(1 << shift for shift in range(0, _WORD, bits)))


def _awq_columns(words: Expression, start: int, stop: int, rows: slice) -> np.ndarray:
    """Columns `start` to `stop` of a matrix whose rows AWQ packed, uint8 `[rows, columns]`."""
    fields = len(_AWQ_ORDER)
    word, end = start // fields, -(-stop // fields)
    unpacked = unpack_words(np.ascontiguousarray(words.box((rows, slice(word, end)))), _WORD // fields)
    columns = unpacked[..., np.argsort(_AWQ_ORDER)].reshape(len(unpacked), -1)
    return columns[:, start - word * fields : stop - word * fields]


def all_middle(matrix: GroupedMatrix) -> bool:
    """Whether every zero point is the middle level."""
    return bool((matrix.zero_points(0, matrix.shape[0]) == 1 << matrix.bits - 1).all())
