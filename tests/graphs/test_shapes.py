"""Shapes of every value are those that onnxruntime computes."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.graphs.shapes import dynamic_dims, infer_shapes
from hvlc.passes.static.fix_shapes import fix
from tests.helpers.graphs import component
from tests.helpers.sessions import session

NORM = "com.microsoft.SkipSimplifiedLayerNormalization"


def everything(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shape of every value as onnxruntime computes it."""
    graph = model.graph
    values = [v for node in graph for v in node.outputs if v.name and not v.is_graph_output()]
    graph.outputs.extend(values)
    found = session(model).run(None, feeds)
    shapes = dict(zip([str(v.name) for v in graph.outputs], [value.shape for value in found], strict=True))
    del graph.outputs[-len(values) :]
    return shapes


def stated(graph: ir.Graph) -> dict[str, tuple[object, ...]]:
    return {str(v.name): dims(v) for node in graph for v in node.outputs if v.name}


def dims(value: ir.Value) -> tuple[object, ...]:
    return ("?",) if value.shape is None else tuple(value.shape)


@pytest.mark.parametrize("name", ["model", "vision_base", "embedding"])
@pytest.mark.parametrize("package", ["tiny_float32", "tiny_w4a16"])
def test_shapes_of_a_package_are_those_of_a_run(package: str, name: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(package)
    model = ir.load(directory / f"{name}.onnx")
    ir.external_data.load_to_model(model)
    sizes = {"batch": 1, "sequence": 3, "past": 0, "total": 3, "tiles": 1, "visual_tokens": 2}
    random, feeds = np.random.default_rng(0), {}
    for value in model.graph.inputs:
        size = [d if isinstance(d, int) else sizes[str(d)] for d in value.shape or ()]
        floats = random.normal(size=size).astype(np.float32)
        feeds[str(value.name)] = floats if value.dtype == ir.DataType.FLOAT else np.ones(size, np.int64)
    if name == "embedding":
        ids = next(v for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT64).const_value
        feeds["input_ids"][0, :2] = int(ids.numpy())  # type: ignore[union-attr]
    expected = everything(model, feeds)
    fix(model.graph, {**sizes, "past": 3} if name == "model" else sizes)
    for value in model.graph.outputs:
        value.shape = ir.Shape([3 if d == 0 else d for d in value.shape or ()])
    infer_shapes(model.graph)
    found = stated(model.graph)
    unknown = {"NonZero", "Transpose", "Slice"} if name == "embedding" else set()  # as many as there are images
    for node in model.graph:
        for value in node.outputs:
            if value.name and node.op_type not in unknown:
                assert found[str(value.name)] == expected[str(value.name)], (node.op_type, value.name)


def test_types_go_with_shapes() -> None:
    text = "graph (float[1, 4] x) => (y) { a = Cast <to = 7> (x)\n b = Shape (x)\n y = Reshape (a, b) }"
    graph = component(text).graph
    infer_shapes(graph)
    assert [node.outputs[0].dtype for node in graph] == [ir.DataType.INT64] * 3


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        (f"y, _, __, total = {NORM} (x, x, g)", (1, 3, 32)),
        ("y = com.microsoft.MatMulNBits <K = 32, N = 5, bits = 4, block_size = 32> (x, b, s)", (1, 3, 5)),
        ("y = com.microsoft.GatherBlockQuantized <bits = 4> (t, ids, s2)", (1, 3, 32)),
        ("y = com.microsoft.GatherBlockQuantized <bits = 4> (t4, ids, s2)", (1, 3, 16)),
        ("y = com.microsoft.GatherBlockQuantized <bits = 8> (t, ids, s2)", (1, 3, 16)),
        (
            "y, key, value = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (x, , , p, p)",
            (1, 3, 16),
        ),
        ("_, key, y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (x, , , p, p)", (1, 1, 7, 8)),
        ("y = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 1> (x, x, x, p, p)", (1, 3, 32)),
        ("_, y = com.microsoft.CausalConvWithState (c, w, b1, state)", (1, 8, 2)),
        ("u = com.microsoft.Unheard (x)\n y = Add (u, x)", ("?",)),
        ("y = com.microsoft.Unheard (x)", ("?",)),
        ("y = MatMul (x, x)", ("?",)),  # contradicts itself
    ],
)
def test_contrib_operators_are_known(node: str, shape: tuple[object, ...]) -> None:
    text = f"""
graph (float[1, 3, 32] x, float[32] g, uint8[5, 1, 16] b, float[5] s, uint8[9, 16] t, int32[1, 3] ids, float[9, 1] s2,
   int4[9, 16] t4, float[1, 1, 7, 8] p, float[1, 8, 5] c, float[8, 1, 3] w, float[8] b1, float[1, 8, 2] state)
   => (y) {{ {node} }}
"""
    graph = component(text).graph
    infer_shapes(graph)
    assert dims(graph.outputs[0]) == shape


def test_what_is_not_fixed_is_named() -> None:
    graph = component("graph (float[1, rows] x, float[2] z) => (y) { y = com.microsoft.Unheard (x) }").graph
    assert dynamic_dims(graph.inputs[0]) == "has dimensions rows"
    assert dynamic_dims(graph.inputs[1]) == ""
    assert dynamic_dims(graph.outputs[0]) == "has no known shape"
