"""Standard operators that stand in for onnxruntime's own where shapes are inferred.

ONNX's inference does not know the operators of com.microsoft, and stops there (onnxruntime docs/ContribOperators.md).
A stand-in computes something else, but its outputs have the same types and shapes.
"""

from collections.abc import Callable, Mapping

import onnx
from onnx import helper

from hvlc.graphs.builder import MICROSOFT
from hvlc.inputs.onnx_model import domain_of

#: Type of a value by its name; None where it is not known.
TypeOf = Callable[[str], onnx.TypeProto | None]
_StandIn = Callable[[onnx.NodeProto, TypeOf], list[onnx.NodeProto]]


def has_stand_in(node: onnx.NodeProto) -> bool:
    """Whether the shapes of what a node writes come from operators that stand in for it."""
    return _key(node) in _STAND_INS


def stand_in(node: onnx.NodeProto, type_of: TypeOf) -> list[onnx.NodeProto]:
    """Nodes that write values of the types and shapes that a node writes; fewer where they do not follow.

    Args:
        node: one that has a stand-in.
        type_of: types of what it reads, as far as they are known.
    """
    return _STAND_INS[_key(node)](node, type_of)


def _like(*places: int) -> _StandIn:
    """Each output is like the input at its place."""

    def make(node: onnx.NodeProto, _: TypeOf) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Identity", [node.input[place]], [name])
            for name, place in zip(node.output, places, strict=False)
            if name and place < len(node.input) and node.input[place]
        ]

    return make


def _skip(node: onnx.NodeProto, _: TypeOf) -> list[onnx.NodeProto]:
    """The first output and the last, the sum, are like the input; mean and variance between them nobody reads."""
    named = [name for place, name in enumerate(node.output) if name and place in (0, 3)]
    return [helper.make_node("Identity", [node.input[0]], [name]) for name in named]


def _product(node: onnx.NodeProto, _: TypeOf) -> list[onnx.NodeProto]:
    sizes = _integers(node)
    return _multiplied(node, sizes.get("K", 0), sizes.get("N", 0))


def _integer_product(node: onnx.NodeProto, _: TypeOf) -> list[onnx.NodeProto]:
    """Integers of the right shape, as floats."""
    name = f"{node.output[0]}.stand_in"
    integers = helper.make_node("MatMulInteger", node.input[:2], [name])
    return [integers, helper.make_node("Cast", [name], [node.output[0]], to=onnx.TensorProto.FLOAT)]


def _attention(node: onnx.NodeProto, type_of: TypeOf) -> list[onnx.NodeProto]:
    """The first output is like the query, which holds keys and values too where those are left out."""
    made = _like(0, 3, 4)(node, type_of)
    if len(node.input) > 1 and node.input[1]:
        return made
    sizes, query = _integers(node), _dims(type_of(node.input[0]))
    heads, packed = sizes.get("num_heads", 0), sizes.get("num_heads", 0) + 2 * sizes.get("kv_num_heads", 0)
    width = query[-1] if query else None
    return [*(_multiplied(node, width, width * heads // packed) if width and packed else []), *made[1:]]


def _looked_up(node: onnx.NodeProto, type_of: TypeOf) -> list[onnx.NodeProto]:
    """Rows of a table whose bytes hold several values each."""
    table = type_of(node.input[0])
    stored = _dims(table)
    if table is None or stored is None or None in stored or len(node.input) < 3:
        return []
    packed = table.tensor_type.elem_type == onnx.TensorProto.UINT8
    values = 8 // (_integers(node).get("bits") or 4) if packed else 1
    dims = [int(size or 0) for size in stored]
    zeros = _zeros(node, [*dims[:-1], dims[-1] * values], node.input[2])
    return [*zeros, helper.make_node("Gather", [zeros[-1].output[0], node.input[1]], [node.output[0]])]


def _multiplied(node: onnx.NodeProto, rows: int, columns: int) -> list[onnx.NodeProto]:
    """The first output is the first input times a matrix of this size."""
    zeros = _zeros(node, [rows, columns], node.input[0])
    return [*zeros, helper.make_node("MatMul", [node.input[0], zeros[-1].output[0]], [node.output[0]])]


def _zeros(node: onnx.NodeProto, dims: list[int], like: str) -> list[onnx.NodeProto]:
    """Nodes that make `OUTPUT.table`: zeros of a type that another value has."""
    name = node.output[0]
    size = helper.make_tensor(f"{name}.dims", onnx.TensorProto.INT64, [len(dims)], dims)
    return [
        helper.make_node("Constant", [], [f"{name}.dims"], value=size),
        helper.make_node("ConstantOfShape", [f"{name}.dims"], [f"{name}.zeros"]),
        helper.make_node("CastLike", [f"{name}.zeros", like], [f"{name}.table"]),
    ]


def _key(node: onnx.NodeProto) -> tuple[str, str]:
    return domain_of(node.domain), node.op_type


def _integers(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _dims(found: onnx.TypeProto | None) -> list[int | None] | None:
    """Dimensions of a tensor, a symbolic or unknown one as None; None where there are none."""
    if found is None or not found.tensor_type.HasField("shape"):
        return None
    return [size.dim_value if size.HasField("dim_value") else None for size in found.tensor_type.shape.dim]


_STAND_INS: Mapping[tuple[str, str], _StandIn] = {
    ("", "SimplifiedLayerNormalization"): _like(0),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip,
    (MICROSOFT, "SkipLayerNormalization"): _skip,
    (MICROSOFT, "GroupQueryAttention"): _attention,
    (MICROSOFT, "MultiHeadAttention"): _like(0),
    (MICROSOFT, "CausalConvWithState"): _like(0, 3),
    (MICROSOFT, "RotaryEmbedding"): _like(0),
    (MICROSOFT, "FastGelu"): _like(0),
    (MICROSOFT, "BiasGelu"): _like(0),
    (MICROSOFT, "Gelu"): _like(0),
    (MICROSOFT, "QuickGelu"): _like(0),
    (MICROSOFT, "MatMulIntegerToFloat"): _integer_product,
    (MICROSOFT, "MatMulNBits"): _product,
    (MICROSOFT, "GatherBlockQuantized"): _looked_up,
}
