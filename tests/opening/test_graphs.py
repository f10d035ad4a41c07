"""Graphs of a package hold what hvlc writes, read what is there, and give what hosts read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hvlc.errors import UserError
from hvlc.opening import graphs
from hvlc.opening.package import open_package
from hvlc.opening.sessions import PackageSession, SessionError, session_options
from tests.helpers.packages import changed_graph, renewed

Change = Callable[[onnx.ModelProto], object]


def add(node: onnx.NodeProto) -> Change:
    return lambda model: model.graph.node.append(node)


def place(**entries: str) -> Change:
    """The first tensor with external data says that it lies elsewhere."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        found = {e.key: e.value for e in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, value in found.items():
            tensor.external_data.add(key=key, value=value)

    return change


def output(position: int, *dims: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        value = model.graph.output[position]
        dtype = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, dtype, dims))

    return change


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))


def function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("d", "F", [], [], [], []))


def nest(model: onnx.ModelProto) -> None:
    graph = helper.make_graph([], "g", [], [])
    for _ in range(12):
        graph = helper.make_graph([helper.make_node("If", ["c"], [], then_branch=graph)], "g", [], [])
    model.graph.node.append(graph.node[0])


def context(**attributes: object) -> Change:
    settings = {"embed_mode": 0, "ep_cache_context": "x.bin", **attributes}

    def change(model: onnx.ModelProto) -> None:
        names = [v.name for v in model.graph.input], [v.name for v in model.graph.output]
        del model.graph.node[:]
        model.graph.node.append(helper.make_node("EPContext", *names, domain="com.microsoft", **settings))

    return change


HOSTILE: dict[str, tuple[str, Change, str]] = {
    "an operator of another library": (
        "stitch",
        add(helper.make_node("Evil", [], ["x"], domain="evil")),
        "package.graph",
    ),
    "an operator of onnxruntime's": (
        "stitch",
        add(helper.make_node("Sampling", [], ["x"], domain="com.microsoft")),
        "package.graph",
    ),
    "an operator that there is not": ("stitch", add(helper.make_node("Nothing", [], ["x"])), "package.graph"),
    "a loop": ("stitch", loop, "package.graph"),
    "a function": ("stitch", function, "package.graph"),
    "graphs without end": ("stitch", nest, "package.graph"),
    "options of the session": (
        "stitch",
        lambda m: m.metadata_props.add(key="ort_config", value="{}"),
        "package.graph",
    ),
    "a context in a graph that is not compiled": ("stitch", context(), "package.graph"),
    "a context inside the file": ("stitch", context(embed_mode=1), "package.graph"),
    "a value from nowhere": ("stitch", lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"), "package.graph"),
    "a value that is made twice": ("stitch", lambda m: m.graph.node.append(m.graph.node[0]), "package.graph"),
    "an output that nothing makes": ("stitch", lambda m: m.graph.node.pop(), "package.graph"),
    "one constant twice": ("stitch", lambda m: m.graph.initializer.append(m.graph.initializer[0]), "package.graph"),
    "another output": ("stitch", lambda m: setattr(m.graph.output[0], "name", "x"), "package.graph"),
    "data outside": ("vision_base", place(location="../secret"), "package.escape"),
    "data in a folder": ("vision_base", place(location="a/b"), "package.escape"),
    "data of another file": ("vision_base", place(location="tokenizer.model"), "package.incomplete"),
    "data beyond the end": ("vision_base", place(offset=str(2**40)), "package.graph"),
    "less data than the shape": ("vision_base", place(length="4"), "package.graph"),
    "token ids of an image in two dimensions": ("front", output(1, 1, 7), "package.graph"),
    "one number for the token ids": ("front", output(1), "package.graph"),
    "a grid of one number": ("front", output(2, 1), "package.graph"),
    "two scales": ("front", output(3, 2), "package.graph"),
    "tiles of another size": ("front", output(0, 1, 3, 7, 7), "package.graph"),
    "logits of fewer tokens": ("model", output(0, 1, 1, 7), "package.graph"),
    "logits of a rank": ("model", output(0, 7), "package.graph"),
    "a negative size": ("front", output(0, -1, 3, 32, 32), "package.graph"),
    "an output of texts": (
        "stitch",
        lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", TensorProto.STRING),
        "package.graph",
    ),
    "a constant of other values": (
        "stitch",
        lambda m: setattr(m.graph.initializer[0], "raw_data", b"x"),
        "package.graph",
    ),
    "a constant without end": (
        "stitch",
        lambda m: m.graph.initializer[0].dims.__setitem__(slice(None), [2**40]),
        "package.graph",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_hvlc_does_not_write_is_refused(tiny_w4a16: Path, tmp_path: Path, case: str) -> None:
    component, change, code = HOSTILE[case]
    package = Path(shutil.copytree(tiny_w4a16, tmp_path / "package"))
    changed_graph(package / f"{component}.onnx", change)  # type: ignore[arg-type]
    with pytest.raises(UserError) as error:
        open_package(renewed(package), verify=True)
    assert error.value.code == code
    assert len(error.value.cause) < 500


def test_a_graph_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_LARGEST", 100)
    (tmp_path / "a.onnx").write_bytes(bytes(101))
    with pytest.raises(UserError, match="more than the 100"):
        graphs.load_graph(tmp_path / "a.onnx")


def doubled(tmp_path: Path, *stated: int | str) -> PackageSession:
    """A graph that joins a vector with itself, and states a shape."""
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(stated))]
    opsets = [helper.make_opsetid("", 23)]
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", values, made), opset_imports=opsets, ir_version=11),
        tmp_path / "g.onnx",
    )
    return PackageSession("g.onnx", tmp_path / "g.onnx", session_options(), ["CPUExecutionProvider"])


def test_a_result_has_the_size_that_its_graph_states(tmp_path: Path) -> None:
    feeds = {"x": np.ones(2, np.float32)}
    assert doubled(tmp_path, "m").run(None, feeds)[0].shape == (4,)
    assert doubled(tmp_path, 4).run(["y"], feeds)[0].shape == (4,)
    with pytest.raises(SessionError, match=r"it gives y as \[4\], not \[3\]"):
        doubled(tmp_path, 3).run(None, feeds)
    with pytest.raises(SessionError, match="refuses"):
        doubled(tmp_path, 4).run(None, {"x": np.ones(2, np.int64)})
    with pytest.raises(SessionError, match="refuses"):
        doubled(tmp_path, 4).run(["z"], feeds)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, numpy_helper.from_array(np.ones(3)).SerializeToString()])
def test_a_graph_that_is_not_one_is_refused_by_its_session(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(SessionError) as error:
        PackageSession("a.onnx", tmp_path / "a.onnx", session_options(), ["CPUExecutionProvider"])
    assert error.value.code == "package.graph"
