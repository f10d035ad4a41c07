"""Packages of two checkouts: what differs is named, and what names the version of the code is not held against them."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def package(
    directory: Path, operator: str = "Relu", code: str = "a", data: bytes = b"weights", opset: int = 21
) -> Path:
    directory.mkdir(parents=True)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    nodes = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node(operator, ["a"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.ones(1, np.float32), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), directory / "model.onnx")
    (directory / "model.onnx.data").write_bytes(data)
    (directory / "hvlc.json").write_text(json.dumps({"sources": {"code": code}, "kind": "language"}))
    return directory


def test_equal_packages_are_the_same(tmp_path: Path) -> None:
    from identity import compared

    found = compared("tiny", "float32", [package(tmp_path / side) for side in "ab"])
    assert (found.identical, found.different, found.same) == (3, {}, True)


def test_the_version_of_the_code_may_differ(tmp_path: Path) -> None:
    from identity import compared

    found = compared("tiny", "float32", [package(tmp_path / code, code=code) for code in "ab"])
    assert (found.identical, found.different, found.same) == (2, {"hvlc.json": ["sources.code"]}, True)


@pytest.mark.parametrize(
    ("changes", "different"),
    [
        ({"operator": "Neg"}, {"model.onnx": ["node: 2 and 2, 1 of them the same"]}),
        ({"opset": 22}, {"model.onnx": ["header"]}),
        ({"data": b"wrong"}, {"model.onnx.data": ["7 and 5 bytes"]}),
    ],
)
def test_what_else_differs_is_named(tmp_path: Path, changes: dict, different: dict[str, list[str]]) -> None:
    from identity import compared, table

    found = compared("tiny", "float32", [package(tmp_path / "a"), package(tmp_path / "b", **changes)])
    assert (found.identical, found.different, found.same) == (2, different, False)
    assert next(iter(different)) in next(iter(table([found]).columns[3].cells))


def test_a_file_of_one_side_is_named(tmp_path: Path) -> None:
    from identity import compared

    first, second = package(tmp_path / "a"), package(tmp_path / "b")
    (second / "more.txt").write_text("x")
    (first / "less.txt").write_text("x")
    assert compared("tiny", "float32", [first, second]).different == {
        "less.txt": ["before alone"],
        "more.txt": ["after alone"],
    }


def test_both_checkouts_run_and_a_refusal_is_compared(tmp_path: Path) -> None:
    from identity import compare

    (tmp_path / "none").mkdir()
    found = compare([ROOT, ROOT], tmp_path / "none", "float32", "cpu", tmp_path / "work", None)
    assert found.same
    assert "config.json" in found.refused
    log = tmp_path / "work" / "after" / "none" / "float32-cpu.log"
    log.write_text("another error", "utf-8")
    assert not compare([ROOT, ROOT], tmp_path / "none", "float32", "cpu", tmp_path / "work", None).same
