"""Graphs as operations: types, shapes and quantization as a target is asked about them."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hvlc.errors import UserError
from hvlc.lint.graphs import Node, nodes_of, read_graph
from hvlc.targets import Grain, Quantized
from tests.lint.corpus import corpus
from tests.lint.tape import Case, Tape

CASES = {case.name: case for case in corpus()}


def nodes(case: Case) -> tuple[Node, ...]:
    return nodes_of(case.model, Path())


def operation(name: str, op_type: str):
    return next(node.operation for node in nodes(CASES[name]) if node.operation.op_type == op_type)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("MatMul-uint16-int8-channel", Quantized("int8", Grain.CHANNEL, None, 0)),
        ("MatMul-uint16-uint8-tensor", Quantized("uint8", Grain.TENSOR, pytest.approx(0.0005), 128)),
        ("MatMul-uint16-int4-block32", Quantized("int4", Grain.BLOCK, None, 0)),
        ("MatMul-uint16-LPBQ32", Quantized("int4", Grain.LPBQ, None, 0)),
        ("MatMul-bare-uint16-int4-channel", Quantized("int4", Grain.CHANNEL, None, 0, gives_zero_point=False)),
        ("MatMul-bare-uint16-int4-lpbq32", Quantized("int4", Grain.LPBQ, None, 0, gives_zero_point=False)),
    ],
)
def test_the_quantization_of_weights_is_read(case: str, expected: Quantized) -> None:
    x, weight = operation(case, "MatMul").inputs
    assert (replace(weight.quantized, least_scale=None, largest_factor=None), weight.constant) == (expected, True)
    assert weight.shape == (128, 64)
    assert (x.quantized.dtype, x.quantized.zero_point, x.constant) == ("uint16", 32768, False)


@pytest.mark.parametrize("grain", ["tensor", "channel", "block32", "lpbq32"])
def test_the_least_scale_of_weights_is_read(grain: str) -> None:
    """Of LPBQ that is the one of the channels: those of the blocks are made of both."""
    negative = operation(f"MatMul-negative-uint16-int4-{grain}", "MatMul").inputs[1].quantized
    positive = operation(f"MatMul-bare-uint16-int4-{grain}", "MatMul").inputs[1].quantized
    assert negative.least_scale < 0 < positive.least_scale


@pytest.mark.parametrize(("grain", "seen"), [("channel", True), ("tensor", True), ("block32", False)])
def test_weights_are_seen_through_a_transpose_that_onnxruntime_does_before(grain: str, seen: bool) -> None:
    weight = operation(f"lone-{grain}-Transpose-uint16", "MatMul").inputs[1]
    assert (weight.quantized is not None, weight.constant) == (seen, seen)


def test_what_is_quantized_when_the_graph_runs_is_no_constant() -> None:
    kernel = operation("typed-ConvTranspose-quantized-int16", "ConvTranspose").inputs[1]
    assert (kernel.constant, kernel.quantized.dtype) == (False, "int16")


@pytest.mark.parametrize(
    ("case", "spare"),
    [
        ("rearranged-cells", True),
        ("rearranged-unit-inside", True),
        ("rearranged-unit-moves", False),
        ("rearranged-no-unit", False),
        ("Transpose-rank6", False),
    ],
)
def test_a_dimension_of_1_that_stays_between_two_reshapes_is_spare(case: str, spare: bool) -> None:
    turn = operation(case, "Transpose")
    assert [one.spare_unit for one in (*turn.inputs, *turn.outputs)] == [spare, spare]


@pytest.mark.parametrize("more", ["output", "reader"])
def test_no_dimension_is_spare_where_something_else_sees_it(more: str) -> None:
    tape = Tape()
    wide = tape.op("Reshape", tape.input("x", (1, 8, 8, 16)), tape.constant([1, 4, 2, 4, 2, 16], np.int64))
    moved = tape.op("Transpose", wide, perm=[0, 1, 3, 2, 4, 5])
    tape.output(tape.op("Reshape", moved, tape.constant([1, 16, 64], np.int64)), (1, 16, 64))
    if more == "output":
        tape.output(wide, (1, 4, 2, 4, 2, 16))
    else:
        tape.output(tape.op("Reshape", wide, tape.constant([1024], np.int64)), (1024,))
    turn = next(n.operation for n in nodes(tape.case("seen")) if n.operation.op_type == "Transpose")
    assert not turn.inputs[0].spare_unit


def test_a_float_weight_is_constant_and_not_quantized() -> None:
    weight = operation("MatMul-float32", "MatMul").inputs[1]
    assert (weight.constant, weight.quantized, weight.dtype) == (True, None, "float32")


def test_an_output_is_quantized_by_the_node_behind_it() -> None:
    (inside,) = operation("Sigmoid-uint16-exact", "Sigmoid").outputs
    assert inside.quantized == Quantized("uint16", Grain.TENSOR, 1 / 65536, 0, least_scale=1 / 65536)
    assert not inside.is_output
    assert operation("Sigmoid-uint16-integer-output", "Sigmoid").outputs[0].is_output
    (plain,) = operation("Sigmoid-float32", "Sigmoid").outputs
    assert (plain.quantized, plain.is_output) == (None, True)


def test_an_output_that_something_else_reads_too_is_not_quantized() -> None:
    tape = Tape()
    made = tape.op("Sigmoid", tape.input("x", (1, 4)))
    tape.output(tape.quantized(made, "uint16"), (1, 4))
    tape.output(tape.op("Neg", made), (1, 4))
    found = next(n.operation for n in nodes(tape.case("two")) if n.operation.op_type == "Sigmoid")
    assert found.outputs[0].quantized is None
    assert found.readers == {"QuantizeLinear", "Neg"}


@pytest.mark.parametrize(
    ("case", "op_type", "shape"),
    [
        ("MatMulNBits-4-32", "MatMulNBits", (1, 8, 64)),
        ("GatherBlockQuantized", "GatherBlockQuantized", (1, 8, 64)),
        ("block-residual-rms-fused", "Add", (1, 8, 64)),
        ("block-mlp-nbits", "Sigmoid", (1, 8, 256)),
        ("GroupQueryAttention-float32", "GroupQueryAttention", (1, 1, 64)),
    ],
)
def test_shapes_go_on_behind_operators_that_onnx_does_not_know(case: str, op_type: str, shape: tuple) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(CASES[case].model)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    found = next(n.operation for n in nodes_of(model, Path()) if n.operation.op_type == op_type)
    assert found.outputs[0].shape == shape


def test_what_onnxruntime_computes_before_is_folded() -> None:
    assert [node.folded for node in nodes(CASES["block-shape-folded"])] == [True, True]
    assert [node.folded for node in nodes(CASES["Shape-dynamic"])] == [False]
    kept = [node.operation.op_type for node in nodes(CASES["MatMul-uint16-LPBQ32"]) if not node.folded]
    assert kept.count("DequantizeLinear") == 4


def test_subgraphs_are_read_with_what_surrounds_them() -> None:
    found = nodes(CASES["If"])
    assert [(n.name, n.depth) for n in found] == [("If_0", 0), ("If_0/else", 1), ("If_0/then", 1)]
    assert found[1].operation.inputs[0].shape == (1, 4)


def test_an_axis_is_counted_from_the_end() -> None:
    assert operation("LayerNormalization-axis1", "LayerNormalization").attributes["axis"] == -2
    assert operation("Concat-rank4", "Concat").attributes["axis"] == -1
    assert operation("CumSum", "CumSum").attributes["axis"] == -2  # an input of the operator


def test_extremes_of_constants_are_found() -> None:
    tape = Tape()
    x = tape.input("x", (1, 4))
    masked = tape.op("Add", x, tape.constant([0, -np.inf, -1e9, np.nan]))
    tape.output(tape.op("Gather", masked, tape.constant([-2], np.int64), axis=1), (1, 1))
    add, gather = (node.operation for node in nodes(tape.case("mask")))
    assert add.inputs[1].largest == 1e9
    assert gather.inputs[1].least == -2


def test_a_graph_that_contradicts_itself_keeps_what_it_states() -> None:
    tape = Tape()
    y = tape.op("MatMul", tape.input("x", (2, 3)), tape.normal(5, 4))
    tape.output(y, (2, 4))
    (found,) = nodes(tape.case("wrong"))
    assert found.operation.inputs[0].shape == (2, 3)


def test_functions_are_inlined() -> None:
    body = helper.make_function(
        "example", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Double", ["x"], ["y"], domain="example")],
        "g",
        [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("example", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[body])
    assert [n.operation.operator for n in nodes_of(model, Path())] == ["Add"]


# Files.


def external(directory: Path, location: str, values: np.ndarray) -> Path:
    tape = Tape()
    y = tape.op("Add", tape.input("x", (1, values.size)), "w")
    tape.output(y, (1, values.size))
    model = tape.case("external").model
    tensor = numpy_helper.from_array(values, "w")
    (directory / "data.bin").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, location, 0, len(tensor.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.initializer.append(tensor)
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_small_constants_beside_the_model_are_read(tmp_path: Path) -> None:
    (node,) = read_graph(external(tmp_path, "data.bin", np.array([1, -70000], np.float32)))
    assert node.operation.inputs[1].largest == 70000


def test_large_ones_are_not(tmp_path: Path) -> None:
    path = external(tmp_path, "data.bin", np.full(2**20 + 1, 70000, np.float32))
    (node,) = read_graph(path)
    assert (node.operation.inputs[1].largest, node.operation.inputs[1].shape) == (None, (2**20 + 1,))


@pytest.mark.parametrize("location", ["../data.bin", "/etc/hostname", "sub/../../data.bin"])
def test_data_outside_the_directory_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "sub").mkdir()
    path = external(tmp_path, location, np.ones(2, np.float32))
    with pytest.raises(UserError, match="outside the model's directory") as error:
        read_graph(path)
    assert error.value.code == "lint.escape"


def test_missing_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path, "data.bin", np.ones(2, np.float32))
    (tmp_path / "data.bin").unlink()
    with pytest.raises(UserError, match=r"cannot read data\.bin") as error:
        read_graph(path)
    assert error.value.code == "lint.data"


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_graph(tmp_path / "x.onnx")
    assert error.value.code == "lint.model"


def test_lists_of_sizes_that_double_are_not_computed(tmp_path: Path) -> None:
    """60 doublings of two numbers would fill any memory."""
    values = ["sizes", *(f"v{i}" for i in range(60)), "y"]
    nodes = [helper.make_node("Concat", [a, a], [b], axis=0) for a, b in pairwise(values)]
    output = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [2], [1, 2])
    graph = helper.make_graph(nodes, "doubling", [], [output], [sizes])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    assert len(read_graph(path)) == len(nodes)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (
            "(int4[9, 16] t, int64[b, n] i, float[9, 1] s) => (y) { y = com.microsoft.GatherBlockQuantized (t, i, s) }",
            16,
        ),
        (
            "(uint8[9, 8] t, int64[b, n] i, float[9, 1] s) => (y) { y = com.microsoft.GatherBlockQuantized (t, i, s) }",
            16,
        ),
        (
            """(float[b, n, 48] x, float[b, 2, p, 8] k) => (y)
               { y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2> (x, , , k, k) }""",
            16,
        ),
    ],
    ids=["int4 table", "packed table", "packed attention"],
)
def test_widths_behind_operators_of_onnxruntime_are_right(text: str, shape: int) -> None:
    domains = '"" : 23, "com.microsoft" : 1'
    model = onnx.parser.parse_model(f"<ir_version: 11, opset_import: [{domains}]> g {text}")
    (node,) = nodes_of(model, Path())
    assert node.operation.outputs[0].shape == (None, None, shape)
