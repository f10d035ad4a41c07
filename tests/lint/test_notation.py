"""A row of the corpus means one model: texts and tables are read as they say, and what they do not say is refused."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from hvlc.errors import UserError
from tests.lint import draws, tables
from tests.lint.corpus import TABLES
from tests.lint.notation import graph, operator_of
from tests.lint.tables import Row, rows, table

#: Rows of every table.
ROWS = {
    "elementwise": 94,
    "movement": 85,
    "layers": 116,
    "quantized": 339,
    "blocks": 48,
    "fresh": 122,
    "types": 872,
    "forms": 306,
    "unseen": 37,
}


def run(text: str, opset: int = 21, **feeds: np.ndarray) -> list[np.ndarray]:
    model = graph("test", text, opset).model
    onnx.checker.check_model(model)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def test_no_row_is_lost() -> None:
    assert {name: len(list(table(name))) for name in ROWS} == ROWS
    assert [len(list(drawn())) for drawn in (draws.unseen, draws.later)] == [159, 157]
    assert {path.stem for path in tables.TABLES.iterdir()} == set(ROWS) > set(TABLES)


def test_a_text_computes_what_it_says() -> None:
    x, y = np.array([[1, -2], [3, 4]], np.float32), np.array([[5, 6]], np.float32)
    made = run(
        "x = float32[2,2]\n"
        "low = Relu(Sub(x, y := float32[1,2]))\n"
        "high, float32[2,1] = Split(Concat(x, low, axis=-1), int64([3, 1]), axis=1)\n"
        "float32[2,3] = Mul(high, float32(counted[1,3] * 2 + 1))",
        x=x,
        y=y,
    )
    both = np.concatenate([x, np.maximum(x - y, 0)], 1)
    np.testing.assert_array_equal(made[0], both[:, 3:])
    np.testing.assert_array_equal(made[1], both[:, :3] * [1, 3, 5])


def test_unnamed_inputs_are_named_after_their_place() -> None:
    model = graph("test", "bool[n,2] = Less(float32[n,2], float32[()])").model
    assert [value.name for value in model.graph.input] == ["x0", "x1"]
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input]
    assert dims == [["n", 2], []]
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.BOOL


def test_a_quantized_type_is_float_in_the_graph() -> None:
    model = graph("test", "float32[4] = q_uint8(Relu(x := q_int16[4]), 2, zero=3)").model
    steps = [node.op_type for node in model.graph.node]
    assert steps == ["QuantizeLinear", "DequantizeLinear", "Relu", "QuantizeLinear", "DequantizeLinear"]
    found = [onnx.numpy_helper.to_array(constant) for constant in model.graph.initializer]
    assert [each.dtype for each in found] == [np.float32, np.int16, np.float32, np.uint8]
    np.testing.assert_allclose([each.item() for each in found], [8 / 65535, 0, 2 / 255, 3], rtol=1e-6)


def test_drawn_constants_are_of_their_type_and_range() -> None:
    text = "float16[3,5] = Add(float16(normal[3,5]), Cast(int8(nibbles[3,5]), to=float16))"
    first, second = (onnx.numpy_helper.to_array(c) for c in graph("test", text).model.graph.initializer)
    assert (first.dtype, first.shape, second.dtype, second.shape) == (np.float16, (3, 5), np.int8, (3, 5))
    assert np.abs(second).max() <= 7 < 100 * np.abs(first).std()


def test_the_operator_of_a_text_is_its_last() -> None:
    assert operator_of("x = Relu(x := float32[2]); float32[2] = q_uint8(com.microsoft.Gelu(x), 4)") == "Gelu"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("float32[2] = Add(float32[2], 3)", "not in the notation.*: 3"),
        ("Relu(float32[2])", r"not in the notation.*: Relu\(float32\[2\]\)"),
        ("float33[2] = Relu(float32[2])", r"not in the notation.*: float33\[2\]"),
        ("float32[2] = Relu(float33[2])", r"not in the notation.*: float33\[2\]"),
        ("float32[2] = Relu(float32[2])[0]", "not in the notation"),
        ("x, y = float32[2],", "zip"),
    ],
)
def test_what_is_not_in_the_notation_is_refused(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        graph("test", text)


@pytest.mark.parametrize("text", ["float32[2] = Relu(x)", "float32[2] = Cast(float32[2], to=float33)"])
def test_an_unknown_name_is_refused(text: str) -> None:
    with pytest.raises(KeyError):
        graph("test", text)


def test_a_block_is_one_row_for_every_combination() -> None:
    block = {
        "each": [{"op": ["Relu", "Abs"], "type": {"plain": "float32", "8-bit": {"type": "q_uint8", "more": 1}}}],
        "models": {"$op-$type": "$type[2] = $op($type[2])"},
        "opset": 23,
    }
    found = [(row.id, row.template, row.parameters) for row in rows(block)]
    assert found == [
        (f"{op}-{name}", "graph", {"text": f"{kind}[2] = {op}({kind}[2])", "opset": 23})
        for op in ("Relu", "Abs")
        for name, kind in (("plain", "float32"), ("8-bit", "q_uint8"))
    ]


def test_a_template_takes_the_axes_and_the_parameters_of_its_row() -> None:
    block = {
        "template": "product",
        "each": {"activation": {"float32": ""}},
        "models": {"a-$activation": {"grain": "x"}},
    }
    assert list(rows(block)) == [Row("a-float32", "product", {"activation": "", "grain": "x"})]


def test_a_row_that_onnx_does_not_allow_is_left_out() -> None:
    block = {
        "each": {"op": ["Relu", "Sigmoid"], "type": ["float32", "int32"]},
        "allowed": "$type",
        "models": {"$op-$type": "$type[2] = $op($type[2])"},
    }
    assert [row.id for row in rows(block)] == ["Relu-float32", "Relu-int32", "Sigmoid-float32"]


@pytest.mark.parametrize(
    ("text", "error", "part"),
    [
        ("- {models: {a: 'float32[2] = Relu(float32[2])'}, opsets: 3}", ValueError, "unknown .*opsets"),
        ("- models: {a: x, a: y}", UserError, "duplicate key a"),
        ("- models: {a-$op: 'float32[2] = Relu(float32[2])'}", KeyError, "op"),
        ("- models: {a: 'float32[2] = $op(float32[2])'}", KeyError, "op"),
    ],
)
def test_a_wrong_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception], part: str
) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    monkeypatch.setattr(tables, "TABLES", tmp_path)
    with pytest.raises(error, match=part):
        list(table("wrong"))
