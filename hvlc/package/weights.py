"""Read the weights of a package by parameter name, dequantized to the float32 values that its graphs compute with.

A weight is what an operator reads as a matrix, a table, a kernel or a vector: a float initializer, or the levels,
scales and zero points of com.microsoft.MatMulNBits, com.microsoft.GatherBlockQuantized or DequantizeLinear. Matrices
come as the checkpoint has them, `[out, in]`, in whatever order a graph stores them. Values are read one weight at a
time.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import onnx

from hvlc.errors import UserError
from hvlc.manifest.manifest import Manifest
from hvlc.opening.graphs import load_graph, nested
from hvlc.opening.tensors import damaged
from hvlc.package.contents import file_sizes
from hvlc.package.initializers import Initializer, open_initializer
from hvlc.weights.formats import Stream, stored_name
from hvlc.weights.formats.packing import unpack

#: Operators that hand on a vector of scales or a table in another form but with the same values in the same order.
_VIEWS = frozenset({"Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_FLOATS = frozenset({"float", "float16", "bfloat16", "double"})
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")  # whose scales and zero points are not weights
_PRODUCTS = ("MatMul", "Gemm")
#: Names that `hvlc.graphs.builder.GraphBuilder` gives to constants that are not parameters.
_CONSTANT = re.compile(r"(^|[./])const_\d+$")
_LEVELS = re.compile(r"\.u?int\d+(_rows)?$")  # what is appended to the name of quantized parameters
#: Prefixes that joining graphs puts before the names of their parameters: "vision_base/", "resolution.".
_JOINED = re.compile(r"^(.*/)?(resolution\.)?")
_SMALLEST_BLOCK = 16
_MATRIX = 2  # dimensions
_COLUMN_ORDER = 4  # input of MatMulNBits
_WIDTHS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32}


@dataclass(frozen=True)
class StoredWeight:
    """One weight of one component.

    Attributes:
        component: whose graph reads it.
        name: of the checkpoint's parameter, e.g. "model.layers.3.mlp.up_proj.weight".
        shape: as the checkpoint has it; matrices `[out, in]`.
        format: what is stored: "float32", "int4 b32 sym f16".
        bytes: that it takes, scales and zero points included.
        values: what it is made of.
    """

    component: str
    name: str
    shape: tuple[int, ...]
    format: str
    bytes: int
    values: "FloatValues | BlockValues"

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the parameters whose rows it stacks, in order; itself where it is not a packed projection.

        "layers.0.q_proj+k_proj.weight" has the members "layers.0.q_proj.weight" and "layers.0.k_proj.weight".
        """
        packed = next((part for part in self.name.split(".") if "+" in part), None)
        if packed is None:
            return (self.name,)
        return tuple(self.name.replace(packed, leaf) for leaf in packed.split("+"))

    @property
    def is_float(self) -> bool:
        """Whether the weight is stored as floats."""
        return isinstance(self.values, FloatValues)

    def load(self) -> np.ndarray:
        """float32 in `shape`, the values that the graph computes with."""
        return self.values.load()


@dataclass(frozen=True)
class FloatValues:
    """A float initializer.

    Attributes:
        tensor: the values.
        transposed: whether it is stored `[in, out]`.
    """

    tensor: Initializer
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Stored shape."""
        return self.tensor.shape

    @property
    def parts(self) -> tuple[Initializer, ...]:
        """Everything that is stored."""
        return (self.tensor,)

    @property
    def format(self) -> str:
        """numpy's name of the element type."""
        return {"float": "float32", "double": "float64"}.get(self.tensor.dtype, self.tensor.dtype)

    def load(self) -> np.ndarray:
        """float32, the features that come out first."""
        values = self.tensor.read().astype(np.float32, copy=False)
        return values.T if self.transposed else values


@dataclass(frozen=True)
class BlockValues:
    """Levels that share a scale, and perhaps a zero point, in blocks along the last axis.

    Attributes:
        shape: of the weight; levels in bytes and the padding of rows are left out.
        bits: width of a level.
        block_size: levels of a row that share a scale.
        packed: whether levels and zero points are bytes that hold `8 // bits` levels each, the low bits first.
        levels: as stored.
        scales: one for each block, or one for all.
        zeros: one for each block, or None for `zero` everywhere.
        zero: the level that means 0 where no zero points are stored.
        middles: value of each block's middle level, added after (`hvlc.passes.quantize.add_middles`).
        factors: of each row, which the blocks' scales (whole numbers then: LPBQ) are multiplied by.
        transposed: whether rows are the features that come in.
        turned: whether levels and scales are stored with rows and columns exchanged, as NPUs want them.
    """

    shape: tuple[int, ...]
    bits: int
    block_size: int
    packed: bool
    levels: Initializer
    scales: Initializer
    zeros: Initializer | None
    zero: int
    middles: Initializer | None = None
    transposed: bool = False
    turned: bool = False
    factors: Initializer | None = None

    @property
    def columns(self) -> int:
        """Columns of a row."""
        return math.prod(self.shape[1:])

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return ceil(self.columns / self.block_size)

    @property
    def parts(self) -> tuple[Initializer, ...]:
        """Everything that is stored."""
        return tuple(
            part for part in (self.levels, self.scales, self.zeros, self.middles, self.factors) if part is not None
        )

    @property
    def format(self) -> str:
        """Name of the format in plans (`hvlc.weights.formats.WeightFormat`); "whole" where blocks are whole rows."""
        block = "whole" if self.block_size == self.columns and not self.packed else f"b{self.block_size}"
        return stored_name(self.bits, block, self._extra, self.scales.dtype)

    @property
    def _extra(self) -> tuple[Stream, ...]:
        """Streams that are stored beside levels and scales; zero points that are float mean what middles do."""
        if self.factors is not None:
            return (Stream.FACTORS,)
        if self.middles is not None or (self.zeros is not None and self.zeros.dtype in _FLOATS):
            return (Stream.MIDDLES,)
        return () if self.zeros is None else (Stream.ZERO_POINTS,)

    def load(self) -> np.ndarray:
        """float32 `(level - zero point) * scale`, the features that come out first."""
        values = self._integers(self.levels.read()).astype(np.float32)
        scales = self._by_block(self.scales)
        if self.factors is not None:
            scales *= self.factors.read()[:, None]
        zeros = None if self.zeros is None else self._by_block(self.zeros)
        middles = None if self.middles is None else self._by_block(self.middles)
        for block in range(self.blocks):  # in place: a matrix may be large
            here = values[:, block * self.block_size : (block + 1) * self.block_size]
            here -= np.float32(self.zero) if zeros is None else zeros[:, block, None]
            here *= scales[:, block, None]
            if middles is not None:
                here += middles[:, block, None]
        values = values[:, : self.columns].reshape(self.shape)
        return values.T if self.transposed else values

    def _by_block(self, stored: Initializer) -> np.ndarray:
        """float32 `[rows, blocks]`, or `[1, 1]` of what is one for all."""
        values = stored.read()
        if stored.dtype not in _FLOATS:
            values = self._integers(values)[:, : self.blocks] if stored.size > 1 or self.packed else values
        elif self.turned:
            values = values.reshape(self.blocks, -1).T
        return values.astype(np.float32).reshape(-1, self.blocks)

    def _integers(self, stored: np.ndarray) -> np.ndarray:
        """`[rows, columns]`, perhaps with padding at the end of rows."""
        rows = stored.reshape(-1, self.shape[0]).T if self.turned else stored.reshape(self.shape[0], -1)
        return unpack(rows, self.bits, rows.shape[1] * 8 // self.bits) if self.packed else rows


def stored_weights(directory: Path, manifest: Manifest) -> list[StoredWeight]:
    """Every weight of a package, components in the manifest's order; values stay on disk.

    A matrix that a component reads twice, as head and as table, is there once.

    Args:
        directory: the package.
        manifest: of it.

    Raises:
        UserError: a graph is damaged, its data is missing or outside the package, or a weight is stored in a way that
            this version does not read.
    """
    sizes = file_sizes(directory, manifest)
    found: list[StoredWeight] = []
    for component, entry in manifest.components.items():
        found += graph_weights(component, directory / entry.file, sizes)
    return found


def graph_weights(component: str, path: Path, sizes: Mapping[str, int]) -> list[StoredWeight]:
    """The weights of one graph.

    Args:
        component: its name.
        path: of the graph's file.
        sizes: bytes of every file of the package.

    Raises:
        UserError: as `stored_weights`.
    """
    reader = _Reader(component, path, sizes)
    by_name: dict[str, StoredWeight] = {}
    for weight in reader.weights():
        by_name.setdefault(weight.name, weight)
    return list(by_name.values())


class _Reader:
    """Reader of the weights of one graph."""

    def __init__(self, component: str, path: Path, sizes: Mapping[str, int]) -> None:
        model = load_graph(path)
        graphs = [graph for body in (model.graph, *model.functions) for graph in nested(body)]
        self._component, self._file = component, path.name
        self._nodes = [node for graph in graphs for node in graph.node]
        self._tensors = {
            tensor.name: open_initializer(path, tensor, sizes)
            for graph in graphs
            if isinstance(graph, onnx.GraphProto)
            for tensor in graph.initializer
        }
        self._producers = {name: node for node in self._nodes for name in node.output}
        self._by_columns = self._read_by_columns()
        #: Scales that a node makes of whole numbers (LPBQ).
        self._multiplied = {n.input[1] for n in self._nodes if n.op_type == "DequantizeLinear"}

    def weights(self) -> Iterator[StoredWeight]:
        """Quantized ones first."""
        taken: set[str] = set()
        for node in self._nodes:
            values = self._quantized(node)
            if values is not None:
                sums = f"{_LEVELS.sub('', values.levels.name)}.sums"  # of a matrix's columns: no weights of their own
                taken |= {sums, *(part.name for part in values.parts)}
                yield self._weight(values.levels.name, values)
        taken |= {name for node in self._nodes if node.op_type in _ROUNDING for name in node.input[1:]}
        for name, tensor in self._tensors.items():
            parameter = tensor.dtype in _FLOATS and tensor.shape and "." in name and not _CONSTANT.search(name)
            if parameter and name not in taken:
                transposed = name in self._by_columns and len(tensor.shape) == 2
                yield self._weight(name, FloatValues(tensor, transposed))

    def _weight(self, stored: str, values: FloatValues | BlockValues) -> StoredWeight:
        name = _JOINED.sub("", _LEVELS.sub("", stored))
        shape = values.shape[::-1] if values.transposed else values.shape
        size = sum(part.bytes for part in values.parts)
        return StoredWeight(self._component, name, shape, values.format, size, values)

    def _read_by_columns(self) -> set[str]:
        """Values that products read as `[in, out]`."""
        products = [n for n in self._nodes if n.op_type in _PRODUCTS and not n.domain and len(n.input) > 1]
        return {node.input[1] for node in products if not _integer(node, "transB", 0)}

    def _quantized(self, node: onnx.NodeProto) -> BlockValues | None:
        """Weight that a node dequantizes, if any."""
        match node.op_type:
            case "MatMulNBits":
                return self._product(node)
            case "GatherBlockQuantized":
                return self._table(node)
            case "MatMulIntegerToFloat":
                return self._integers(node)
            case "DequantizeLinear" if node.input[0] in self._tensors and node.output[0] not in self._multiplied:
                return self._dequantized(node)
        return None

    def _product(self, node: onnx.NodeProto) -> BlockValues:
        """MatMulNBits reads `[out, blocks, bytes]`."""
        bits, block = self._layout(node, 32)
        if len(node.input) > _COLUMN_ORDER and node.input[_COLUMN_ORDER]:
            raise self._unread(node, "its columns are in an order of their own (g_idx)")
        levels, scales, zeros = self._required(node, 1), self._required(node, 2), self._source(node, 3)
        middles = self._tensors.get(f"{_LEVELS.sub('', levels.name)}.zero_points") if zeros is None else None
        shape = (_integer(node, "N", 0), _integer(node, "K", 0))
        zero = 1 << (bits - 1)
        return self._filled(node, BlockValues(shape, bits, block, True, levels, scales, zeros, zero, middles))

    def _integers(self, node: onnx.NodeProto) -> BlockValues:
        """MatMulIntegerToFloat reads int8 `[in, out]` with a scale for each output."""
        levels, scales = self._required(node, 1), self._required(node, 3)
        if levels.dtype != "int8" or len(levels.shape) != _MATRIX:
            raise self._unread(node, f"it multiplies by {levels.dtype} {list(levels.shape)}")
        shape = levels.shape[::-1]
        return self._filled(node, BlockValues(shape, 8, shape[1], False, levels, scales, None, 0, None, turned=True))

    def _table(self, node: onnx.NodeProto) -> BlockValues:
        """GatherBlockQuantized looks up rows; uint8 holds packed levels around a middle, int4 and uint4 plain ones."""
        bits, block = self._layout(node, 128)
        levels, scales, zeros = self._required(node, 0), self._required(node, 2), self._source(node, 3)
        axes = _integer(node, "gather_axis", 0), _integer(node, "quantize_axis", 1)
        if len(levels.shape) != 2 or axes not in ((0, 1), (0, -1)):
            raise self._unread(node, "it looks up other than rows of a matrix that is quantized along them")
        packed = levels.dtype == "uint8"
        shape = (levels.shape[0], levels.shape[1] * (8 // bits if packed else 1))
        zero = 1 << (bits - 1) if packed else 0
        return self._filled(node, BlockValues(shape, bits, block, packed, levels, scales, zeros, zero))

    def _dequantized(self, node: onnx.NodeProto) -> BlockValues:
        """DequantizeLinear of a constant: in blocks of a matrix's rows, with one scale a row, or one for all."""
        product = self._producers.get(node.input[1])
        lpbq = product if product is not None and product.op_type == node.op_type else None
        scales, factors = self._required(lpbq or node, 0 if lpbq else 1), self._required(lpbq, 1) if lpbq else None
        levels, zeros = self._required(node, 0), self._source(node, 2)
        bits, shape, block = _WIDTHS.get(levels.dtype), levels.shape, _integer(node, "block_size", 0)
        if bits is None or not levels.size:
            raise self._unread(node, f"it dequantizes {levels.dtype} {list(shape)}")
        axis = _integer(node, "axis", 1) % len(shape)
        rows = not block and (scales.size == 1 or axis == 0)
        turned = len(shape) == 2 and not rows and axis == (0 if block else 1)  # one scale for stretches of a column
        if not rows and not turned and not (block and axis == 1 and len(shape) == 2):
            raise self._unread(node, f"its scales lie along axis {axis} of {list(shape)}")
        transposed = len(shape) == 2 and self._by_columns.isdisjoint(node.output) is turned
        shape = shape[::-1] if turned else shape
        block = block or math.prod(shape[1:])
        values = BlockValues(
            shape, bits, block, False, levels, scales, zeros, 0, None, transposed, turned=turned, factors=factors
        )
        return self._filled(node, values)

    def _layout(self, node: onnx.NodeProto, block_size: int) -> tuple[int, int]:
        """Bits and block size of packed levels."""
        bits, block = _integer(node, "bits", 4), _integer(node, "block_size", block_size)
        if bits not in (4, 8) or block < _SMALLEST_BLOCK:
            raise self._unread(node, f"it has levels of {bits} bits in blocks of {block}")
        return bits, block

    def _filled(self, node: onnx.NodeProto, values: BlockValues) -> BlockValues:
        """The values, when as many are stored as they need."""
        rows, blocks = values.shape[0], values.blocks
        width = blocks * values.block_size if node.op_type == "MatMulNBits" else values.columns
        per_byte = 8 // values.bits if values.packed else 1
        each = {rows * blocks} | ({1} if not values.packed and values.block_size == values.columns else set())
        zeros, middles = values.zeros, values.middles
        packed_zeros = {rows * ceil(blocks / per_byte)} if values.packed else each
        right = (
            values.levels.size * per_byte == rows * width,
            values.scales.size in each,
            zeros is None or zeros.size in (each if zeros.dtype in _FLOATS else packed_zeros),
            middles is None or middles.size in each,
        )
        if not all(right):
            raise damaged(self._file, f"{node.name!r} reads {rows} x {values.columns} levels that are not there")
        return values

    def _required(self, node: onnx.NodeProto, position: int) -> Initializer:
        found = self._source(node, position)
        if found is None:
            raise self._unread(node, f"its input {position} is not a constant")
        return found

    def _source(self, node: onnx.NodeProto, position: int) -> Initializer | None:
        """The initializer behind an input, through nodes that keep its values; None where there is no input."""
        name = node.input[position] if position < len(node.input) else ""
        while name and name not in self._tensors:
            producer = self._producers.get(name)
            if producer is None or producer.op_type not in _VIEWS:
                raise self._unread(node, f"{name!r} is not a constant")
            name = producer.input[0]
        return self._tensors[name] if name else None

    def _unread(self, node: onnx.NodeProto, cause: str) -> UserError:
        where = f"{self._file}: {node.op_type} {node.name!r}: {cause}"
        return UserError("package.weight", where, "only what hvlc builds is read; build the package again with it")


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """An attribute of a node."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
