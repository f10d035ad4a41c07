"""ONNX files of others: what onnxruntime loads is judged, everything else is refused with a code and the values."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from hvlc.errors import UserError
from hvlc.lint import operators
from hvlc.lint.engine import lint_graph
from hvlc.lint.folding import fold
from hvlc.lint.graphs import read_graph
from hvlc.results.lint import GraphLint
from hvlc.targets import load_target
from tests.helpers.commands import Hvlc
from tests.helpers.targets import SNAPDRAGONS

CPU, NPU = load_target("cpu"), load_target("qnn-sm8750")
node = helper.make_node


def value(name: str, dims: Sequence[int | str] | None = (1, 4), dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, None if dims is None else list(dims))


def model_of(
    *nodes: NodeProto,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    constants: Sequence[TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs or [value("x")], [onnx.ValueInfoProto(name="y")], constants)
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid("example", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


def saved(model: onnx.ModelProto, directory: Path) -> Path:
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def linted(model: onnx.ModelProto, directory: Path, target=CPU) -> GraphLint:
    return lint_graph(saved(model, directory), target)


def refused(model: onnx.ModelProto, directory: Path) -> UserError:
    with pytest.raises(UserError) as error:
        linted(model, directory)
    return error.value


RELU = node("Relu", ["x"], ["y"], name="r")


# The graph.


def changed(**fields: int) -> onnx.ModelProto:
    model = model_of(RELU)
    for name, number in fields.items():
        if name == "ir_version":
            model.ir_version = number
        else:
            model.opset_import[0].version = number
    return model


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ir_version": 14}, "loads IR versions up to 13, the model has 14"),
        ({"opset": 27}, "up to version 26, the model states version 27"),
        ({"opset": -1}, "states version -1"),
        ({"opset": 2**40}, f"states version {2**40}"),
    ],
)
def test_versions_that_onnxruntime_does_not_know(fields: dict[str, int], words: str, tmp_path: Path) -> None:
    error = refused(changed(**fields), tmp_path)
    assert (error.code, words in error.cause) == ("lint.version", True), error.cause


def test_a_model_without_versions(tmp_path: Path) -> None:
    model = model_of(RELU)
    del model.opset_import[:]
    assert refused(model, tmp_path).code == "lint.version"


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node("Add", ["x", "zz"], ["y"])], "reads 'zz', which is made by no node"),
        ([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), RELU], "reads 'b', which is made of itself"),
        ([RELU, node("Neg", ["x"], ["y"])], "writes 'y', which is there already"),
        ([node("Relu", ["x"], ["x"]), RELU], "writes 'x', which is there already"),
        ([node("Relu", ["x"], ["z"])], "the output 'y' is made by no node"),
        ([RELU, node("Neg", ["x"], ["z"], name="r")], "two nodes are named 'r'"),
        ([node("Constant", [], ["y"])], "Constant[0] (Constant) has 0 values, one is expected"),
        ([node("Constant", [], ["y"], value_int=1, value_float=1.0)], "has 2 values, one is expected"),
        ([node("CumSum", [], ["y"])], "CumSum[0] (CumSum) has 0 inputs, 2 are expected"),
        ([node("Shape", [], ["y"])], "has 0 inputs, 1 are expected"),
        ([node("Size", [], ["y"])], "has 0 inputs"),
        ([node("Add", ["x", ""], ["y"])], "has no input 'B'"),
        ([node("Relu", ["x"], ["y", "z"])], "has 2 outputs, 1 are expected"),
        ([node("Softmax", ["x"], ["y"], axis=1.0)], "'axis' that is not of the type INT"),
        ([node("Relu", ["x"], ["y"], foo=1)], "an attribute 'foo'"),
        ([node("Concat", ["x"], ["y"])], "has no attribute 'axis'"),
        ([node("MatMulNBits", ["x"], ["y"], domain="com.microsoft")], "has 1 inputs, 3 to 6 are expected"),
        ([node("CumSum", ["x", "x"], ["y"], reverse=2)], "0 or 1 is expected"),
        ([node("Pad", ["x", "x"], ["y"], mode="sideways")], "'sideways', one of constant, reflect"),
    ],
)
def test_graphs_that_cannot_be(nodes: list[NodeProto], words: str, tmp_path: Path) -> None:
    error = refused(model_of(*nodes), tmp_path)
    assert words in error.cause, error.cause
    assert (error.code, error.exit_code) == ("lint.graph", 2)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    error = refused(model_of(node("Add", ["x", "zz"], ["a"]), node("Relu", [], ["b"])), tmp_path)
    assert len(error.problems) == 3  # no zz, no input, no output y


def test_a_cycle_inside_a_branch_is_found(tmp_path: Path) -> None:
    inner = helper.make_graph([node("Relu", ["b"], ["a"]), node("Neg", ["a"], ["b"])], "i", [], [value("b", None)])
    branch = node("If", ["c"], ["y"], then_branch=inner, else_branch=inner, name="choice")
    error = refused(model_of(branch, inputs=[value("c", [], TensorProto.BOOL)]), tmp_path)
    assert "choice/Relu[0] reads 'b', which is made of itself or later" in error.cause


def test_nodes_may_come_in_any_order(tmp_path: Path) -> None:
    model = model_of(node("Relu", ["a"], ["y"], name="second"), node("Neg", ["x"], ["a"], name="first"))
    assert [one.name for one in read_graph(saved(model, tmp_path))] == ["first", "second"]


@pytest.mark.parametrize(
    ("nodes", "inputs", "rule", "words"),
    [
        ([node("NoSuchOp", ["x"], ["y"])], (), "onnxruntime.load", "has no operator NoSuchOp"),
        ([node("Upsample", ["x", "x"], ["y"])], (), "onnxruntime.load", "no operator Upsample of version 17"),
        ([node("Thing", ["x"], ["y"], domain="nobody")], (), "operators", "does not take nobody.Thing"),
        ([node("Nope", ["x"], ["y"], domain="com.microsoft")], (), "contrib_ops", "com.microsoft.Nope"),
        (
            [node("Add", ["x", "i"], ["y"])],
            [value("x"), value("i", dtype=TensorProto.INT64)],
            "onnxruntime.load",
            "reads tensor(float) and tensor(int64)",
        ),
        ([node("Not", ["x"], ["y"])], (), "onnxruntime.load", "takes no tensor(float) as 'X'"),
        (
            [node("MatMul", ["x", "w"], ["y"])],
            [value("x"), value("w", [5, 4])],
            "onnxruntime.load",
            "Incompatible dimensions",
        ),
        (
            [RELU],
            [value("x", dtype=TensorProto.INT64)],
            "onnxruntime.kernels",
            "no kernel on the CPU for tensor(int64)",
        ),
        ([RELU], [value("x", dtype=TensorProto.BFLOAT16)], "onnxruntime.kernels", "tensor(bfloat16)"),
    ],
)
def test_nodes_that_onnxruntime_cannot_run_are_refused_on_the_cpu(
    nodes: list[NodeProto], inputs: list, rule: str, words: str, tmp_path: Path
) -> None:
    found = linted(model_of(*nodes, inputs=inputs), tmp_path)
    assert [(one.rule, words in one.reason) for one in found.findings] == [(rule, True)], found.findings


@pytest.mark.parametrize(
    "made",
    [
        node("QuickGelu", ["x"], ["y"], domain="com.microsoft"),  # a kernel of onnxruntime's own
        node("HardSwish", ["x"], ["y"]),  # a function of ONNX
        node("Relu", ["x"], ["y"], domain="ai.onnx"),
    ],
)
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_what_runs_on_the_cpu_is_taken(made: NodeProto, dtype: int, tmp_path: Path) -> None:
    assert linted(model_of(made, inputs=[value("x", dtype=dtype)]), tmp_path).refused == 0


def test_the_lists_of_the_target_cpu_are_those_of_the_installed_onnxruntime() -> None:
    listed = {(group.domain, name) for group in CPU.operators.values() for name in group.names}
    listed |= {("com.microsoft", name) for name in CPU.contrib_ops}
    runs = {key for key in operators.kernels() if key[0] in ("com.microsoft", "ai.onnx.ml")}
    assert listed == runs


# Functions.


def function(name: str, *nodes: NodeProto, opset: int = 17, domain: str = "example") -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("example", 1)]
    return helper.make_function(domain, name, ["a"], ["b"], nodes, opsets)


CALL = node("F", ["x"], ["y"], domain="example", name="call")


@pytest.mark.parametrize("opset", [9, 13, 17, 21])
@pytest.mark.parametrize("target", [CPU, NPU], ids=lambda target: target.name)
def test_a_function_of_another_opset_is_judged_by_its_own(opset: int, target, tmp_path: Path) -> None:
    model = model_of(CALL, functions=[function("F", node("Softmax", ["a"], ["b"]), opset=opset)])
    (made,) = read_graph(saved(model, tmp_path))
    assert made.operation.operator == "Softmax"
    # Softmax runs along the axis 1 before opset 13, along the last one since.
    assert made.operation.attributes["axis"] == -1
    assert linted(model, tmp_path, target).refused == 0


def test_a_version_that_a_node_claims_is_not_believed(tmp_path: Path) -> None:
    claiming = node("Relu", ["x"], ["y"])
    claiming.metadata_props.add(key="hvlc.version", value="many")
    assert linted(model_of(claiming), tmp_path).refused == 0


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ([function("F", node("F", ["a"], ["b"], domain="example"))], "example.F calls itself"),
        (
            [
                function("F", node("G", ["a"], ["b"], domain="example")),
                function("G", node("F", ["a"], ["b"], domain="example")),
            ],
            "calls itself",
        ),
        ([function("F", node("Relu", ["a"], ["b"]))] * 2, "two functions of the model have one name"),
        ([function("F", node("Other", ["a"], ["b"], domain="nobody"))], "calls nobody.Other and states no version"),
    ],
)
def test_functions_that_cannot_be(functions: list[onnx.FunctionProto], words: str, tmp_path: Path) -> None:
    error = refused(model_of(CALL, functions=functions), tmp_path)
    assert (error.code, words in error.cause) == ("lint.function", True), error.cause


def test_functions_that_unfold_without_end_are_counted_not_unfolded(tmp_path: Path) -> None:
    names = ["F", *(f"F{number}" for number in range(40))]
    doubling = [
        function(name, node(inner, ["a"], ["t"], domain="example"), node(inner, ["t"], ["b"], domain="example"))
        for name, inner in pairwise(names)
    ]
    error = refused(model_of(CALL, functions=[*doubling, function(names[-1], node("Relu", ["a"], ["b"]))]), tmp_path)
    assert f"has {2**40} nodes" in error.cause


# Tensors and files.


def with_weight(**external: object) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    model = model_of(node("MatMul", ["x", "w"], ["y"]), constants=[weight])
    if external:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in external.items():
            tensor.external_data.add(key=key, value=str(text))
    return model


@pytest.mark.parametrize(
    ("external", "code", "words"),
    [
        ({"location": "w.bin", "offset": 32}, "lint.data", "ends at byte 96 of w.bin, which has 64"),
        ({"location": "w.bin", "offset": -1}, "lint.data", "the offset of its external data is '-1'"),
        ({"location": "w.bin", "length": 2**40}, "lint.data", f"of 64 bytes names {2**40} bytes"),
        ({"location": "w.bin", "length": "9" * 5000}, "lint.data", "not a number of bytes"),
        ({"location": "none.bin"}, "lint.data", "cannot read none.bin: it is missing"),
        ({"location": "fifo"}, "lint.data", "it is not a regular file"),
        ({"location": "."}, "lint.data", "it is not a regular file"),
        ({"location": "w.bin/"}, "lint.data", "which is not a file"),
        ({"location": ""}, "lint.data", "names no file"),
        ({"location": "/dev/zero"}, "lint.escape", "outside the model's directory"),
        ({"location": "../w.bin"}, "lint.escape", "outside"),
        ({"location": "away.bin"}, "lint.escape", "outside"),
        ({"location": "*/_ORT_MEM_ADDR_/*", "offset": 0}, "lint.escape", "outside"),
        ({"location": "a\0b"}, "lint.escape", "outside"),
        ({"location": "x" * 5000}, "lint.data", "is missing"),
    ],
)
def test_external_data_that_is_not_as_it_says(external: dict, code: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w.bin").write_bytes(bytes(64))
    (tmp_path / "w.bin").write_bytes(bytes(64))
    (tmp_path / "m" / "away.bin").symlink_to(tmp_path / "w.bin")
    os.mkfifo(tmp_path / "m" / "fifo")
    error = refused(with_weight(**external), tmp_path / "m")
    assert (error.code, words in error.cause) == (code, True), error.cause


def test_external_data_below_the_model_is_taken_and_copied(hvlc: Hvlc, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(bytes(64))
    path = saved(with_weight(location="data/w.bin"), tmp_path)
    assert lint_graph(path, CPU).refused == 0
    assert hvlc("lint", path, "--target", "cpu", "--fix", "-o", tmp_path / "fixed").code == 0
    assert (tmp_path / "fixed" / "data" / "w.bin").read_bytes() == bytes(64)


def test_a_model_in_the_layout_of_the_hub_is_taken(hvlc: Hvlc, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1").write_bytes(with_weight(location="w.bin").SerializeToString())
    (blobs / "2").write_bytes(bytes(64))
    (snapshot / "model.onnx").symlink_to("../../blobs/1")
    (snapshot / "w.bin").symlink_to("../../blobs/2")
    options = ("lint", snapshot / "model.onnx", "--target", "cpu")
    assert hvlc(*options).code == 0
    assert hvlc(*options, "--fix", "-o", tmp_path / "fixed").code == 0
    assert (tmp_path / "fixed" / "w.bin").read_bytes() == bytes(64)


def short(tensor: TensorProto) -> None:
    tensor.raw_data = tensor.raw_data[:8]


def negative(tensor: TensorProto) -> None:
    tensor.dims[0] = -1


def giant(tensor: TensorProto) -> None:
    tensor.dims[0] = 2**62


def unknown(tensor: TensorProto) -> None:
    tensor.data_type = 99


def typed(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * 15)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (short, "has 8 bytes, 64 are expected"),
        (negative, "impossible shape [-1, 4]"),
        (giant, "impossible shape"),
        (unknown, "unknown element type 99"),
        (typed, "has 15 values, 16 are expected"),
    ],
)
@pytest.mark.parametrize("place", ["initializer", "Constant", "branch"])
def test_data_inside_the_file_that_does_not_fit_its_shape(change, words: str, place: str, tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    change(tensor)
    product, constant = node("MatMul", ["x", "w"], ["y"]), node("Constant", [], ["w"], value=tensor)
    if place == "initializer":
        model = model_of(product, constants=[tensor])
    elif place == "Constant":
        model = model_of(constant, product)
    else:
        inner = helper.make_graph([node("MatMul", ["x", "w"], ["z"])], "i", [], [value("z", None)], [tensor])
        choice = node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        model = model_of(choice, inputs=[value("x"), value("c", [], TensorProto.BOOL)])
    error = refused(model, tmp_path)
    assert (error.code, words in error.cause) == ("lint.data", True), error.cause


def test_a_fifo_for_a_model_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(UserError, match="is a FIFO, not a regular file") as error:
        read_graph(tmp_path / "model.onnx")
    assert error.value.code == "lint.model"


def test_names_that_are_not_text_are_refused(tmp_path: Path) -> None:
    data = model_of(RELU).SerializeToString().replace(b"Relu", b"Re\xff\xfe")
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(UserError, match="a name in it is not UTF-8"):
        read_graph(tmp_path / "model.onnx")


def test_a_graph_that_grows_in_memory_is_refused_before_it_is_built(tmp_path: Path) -> None:
    empty_nodes = b"\x0a\x00" * 1_500_000  # three megabytes; a node takes a hundred bytes and more
    size = len(empty_nodes)
    lengths = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + lengths + empty_nodes)
    with pytest.raises(UserError, match="its graph without weights takes more than") as error:
        read_graph(tmp_path / "model.onnx")
    assert error.value.code == "lint.model"


# Sizes that are computed from constants.


def ints(name: str, *numbers: int) -> NodeProto:
    return node("Constant", [], [name], value=numpy_helper.from_array(np.array(numbers, np.int64)))


@pytest.mark.parametrize("opset", [9, 12, 13, 21])
def test_sizes_from_chains_of_constants_are_followed(opset: int, tmp_path: Path) -> None:
    sliced = (
        node("Slice", ["s"], ["d"], starts=[0], ends=[2], axes=[0])
        if opset < 10
        else node("Slice", ["s", "begin", "end", "axis"], ["d"])
    )
    nodes = [
        node("Add", ["x", "x"], ["a"]),
        node("Shape", ["a"], ["s"]),
        *([ints("begin", 0), ints("end", 2), ints("axis", 0)] if opset >= 10 else []),
        sliced,
        ints("minus", -1),
        node("Concat", ["d", "minus"], ["sizes"], axis=0),
        node("Reshape", ["a", "sizes"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        node("Shape", ["t"], ["s2"]),
        ints("two", 2),
        node("Gather", ["s2", "two"], ["last"]),
        node("Mul", ["last", "two"], ["twice"]),
        node("Div", ["twice", "two"], ["again"]),
        *([ints("one", 1), node("Pow", ["again", "one"], ["root"])] if opset >= 12 else []),
        *([node("Abs", ["again"], ["root"])] if opset < 12 else []),
        node("Cast", ["root"], ["wide"], to=TensorProto.FLOAT),
        node("Cast", ["wide"], ["whole"], to=TensorProto.INT64),
        node("Concat", ["minus", "whole"], ["sizes2"], axis=0),
        node("Reshape", ["t", "sizes2"], ["y"], name="last"),
    ]
    path = saved(model_of(*nodes, inputs=[value("x", [1, 4, 2, 8])], opset=opset), tmp_path)
    found = next(one for one in read_graph(path) if one.name == "last")
    assert found.operation.outputs[0].shape == (16, 4)
    assert lint_graph(path, NPU).refused == 0


def test_what_depends_on_an_input_stays_dynamic(tmp_path: Path) -> None:
    nodes = [node("Shape", ["x"], ["s"]), ints("minus", -1), node("Reshape", ["x", "minus"], ["y"])]
    found = linted(model_of(*nodes, inputs=[value("x", ["n", 4])]), tmp_path, NPU)
    assert {one.rule for one in found.findings} >= {"fixed_shapes"}


def test_constants_without_end_are_not_made(tmp_path: Path) -> None:
    nodes = [ints("size", 2**40, 2**20), node("ConstantOfShape", ["size"], ["big"]), node("Cast", ["big"], ["y"], to=1)]
    read_graph(saved(model_of(*nodes), tmp_path))


@pytest.mark.parametrize("dtype", [TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.UINT64, TensorProto.INT16])
@pytest.mark.parametrize("name", SNAPDRAGONS)
def test_element_types_that_no_snapdragon_has(dtype: int, name: str, tmp_path: Path) -> None:
    model = model_of(node("Add", ["x", "x"], ["y"]), inputs=[value("x", dtype=dtype)], opset=21)
    assert linted(model, tmp_path, load_target(name)).refused == 1


def array(*numbers: float, dtype: type = np.int64) -> np.ndarray:
    return np.array(numbers, dtype)


@pytest.mark.parametrize(
    ("made", "inputs"),
    [
        (
            node("Slice", ["a", "b", "c", "d", "e"], ["y"]),
            [array(1, 2, 3, 4), array(-1), array(-(2**63)), array(0), array(-2)],
        ),
        (node("Slice", ["a", "b", "c"], ["y"]), [array(1, 2, 3, 4), array(1), array(2**63 - 1)]),
        (node("Div", ["a", "b"], ["y"]), [array(-7, 7, -6), array(2, -2, 4)]),
        (node("Mod", ["a", "b"], ["y"]), [array(-7, 7, -6), array(2, -2, 4)]),
        (node("Mod", ["a", "b"], ["y"], fmod=1), [array(-7, 7, -6), array(2, -2, 4)]),
        (node("Pow", ["a", "b"], ["y"]), [array(2, 3), array(0.5, 2, dtype=np.float32)]),
        (node("Gather", ["a", "b"], ["y"]), [array(5, 6, 7), array(-1, 0)]),
        (node("Concat", ["a", "b"], ["y"], axis=0), [array(1), array(2, 3)]),
        (node("ReduceProd", ["a"], ["y"], keepdims=0), [array(2, 3, 4)]),
        (node("ReduceMax", ["a", "b"], ["y"]), [array(2, 9, 4), array(0)]),
        (node("ReduceSum", ["a"], ["y"], noop_with_empty_axes=1), [array(2, 9, 4)]),
        (node("Reshape", ["a", "b"], ["y"]), [array(1, 2, 3, 4), array(2, -1)]),
        (node("Unsqueeze", ["a", "b"], ["y"]), [array(1, 2), array(0, -1)]),
        (node("Squeeze", ["a"], ["y"]), [array(4)]),
        (node("Expand", ["a", "b"], ["y"]), [array(4), array(3, 1)]),
        (node("Range", ["a", "b", "c"], ["y"]), [np.int64(7), np.int64(-2), np.int64(-3)]),
        (node("ConstantOfShape", ["a"], ["y"], value=numpy_helper.from_array(array(3))), [array(2, 2)]),
        (node("Where", ["a", "b", "c"], ["y"]), [array(1, 0, dtype=np.bool_), array(1, 2), array(3, 4)]),
        (node("Max", ["a", "b", "c"], ["y"]), [array(1, 9), array(5, 2), array(3, 3)]),
        (node("Cast", ["a"], ["y"], to=TensorProto.INT64), [array(-1.7, 2.5, dtype=np.float32)]),
    ],
    ids=lambda given: given.op_type if isinstance(given, NodeProto) else "",
)
def test_values_are_folded_as_onnxruntime_computes_them(made: NodeProto, inputs: list[np.ndarray]) -> None:
    feeds = {name: np.asarray(given) for name, given in zip(made.input, inputs, strict=True)}
    stated = [value(name, given.shape, helper.np_dtype_to_tensor_dtype(given.dtype)) for name, given in feeds.items()]
    session = ort.InferenceSession(
        model_of(made, inputs=stated, opset=18).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, feeds)
    found = fold(made, list(feeds.values()), inputs[0].shape)
    assert found is not None
    assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())


def test_shapes_that_are_guessed_refuse_nothing(tmp_path: Path) -> None:
    """A packed GroupQueryAttention writes other widths than it reads; nobody here knows them."""
    attention = node(
        "GroupQueryAttention",
        ["x", "", "", "", "", "n", "n"],
        ["a"],
        domain="com.microsoft",
        num_heads=2,
        kv_num_heads=1,
    )
    inputs = [value("x", [1, 1, 64]), value("n", [1], TensorProto.INT32), value("w", [32, 8])]
    model = model_of(attention, node("MatMul", ["a", "w"], ["y"]), inputs=inputs)
    assert linted(model, tmp_path).refused == 0
