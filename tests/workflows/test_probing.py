"""What the compiler says is held against the rules, node by node."""

from pathlib import Path

import onnx
import pytest

from hvlc.errors import UserError
from hvlc.lint.engine import lint_graph
from hvlc.qnn.probing import Probe
from hvlc.results.lint import GraphLint
from hvlc.targets import Compiler, load_target
from hvlc.workflows.lint import probing
from hvlc.workflows.lint.probing import disagreements, probed, require_compiler
from tests.lint.corpus import corpus
from tests.qnn.conftest import needs_qnn

NPU = load_target("qnn-sm8750")
CASES = {case.name: case for case in corpus()}


def linted(directory: Path, name: str) -> GraphLint:
    onnx.save(CASES[name].model, directory / "model.onnx")
    return lint_graph(directory / "model.onnx", NPU)


def test_it_is_asked_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="webgpu has no compiler that runs on this host"):
        require_compiler(load_target("webgpu"))
    monkeypatch.setattr(probing, "is_installed", lambda: True)
    require_compiler(NPU)
    with pytest.raises(UserError, match="no compiler that runs on this host"):
        require_compiler(NPU.model_copy(update={"compiler": Compiler.NONE}))
    with pytest.raises(UserError, match="names no soc_model"):
        require_compiler(NPU.model_copy(update={"soc_model": None}))
    monkeypatch.setattr(probing, "is_installed", lambda: False)
    with pytest.raises(UserError, match="not installed") as error:
        require_compiler(NPU)
    assert "hvlc[qnn]" in error.value.fix


def answer(*nodes: tuple[str, str, bool], taken: bool, error: str = "") -> Probe:
    return Probe(taken, error, nodes, {"Trilu_0": "not supported"}, 1 if nodes else None, "2.7.0")


def test_the_same_verdict_is_no_disagreement(tmp_path: Path) -> None:
    refused = linted(tmp_path, "Trilu")
    assert disagreements(refused, answer(("Trilu_0", "Trilu", False), taken=False)).disagreements == ()
    taken = linted(tmp_path, "Relu-float32")
    assert disagreements(taken, answer(("Relu_0", "Relu", True), taken=True)).disagreements == ()


def test_a_node_that_is_judged_otherwise_is_named_with_the_compilers_reason(tmp_path: Path) -> None:
    found = linted(tmp_path, "Trilu")
    (one,) = disagreements(found, answer(("Trilu_0", "Trilu", True), taken=True)).disagreements
    assert (one.node, one.rules_take, one.compiler_takes, one.reason) == ("Trilu_0", False, True, "not supported")
    found = linted(tmp_path, "Relu-float32")
    (one,) = disagreements(found, answer(("Relu_0", "Relu", False), taken=False)).disagreements
    assert (one.node, one.rules_take, one.compiler_takes) == ("Relu_0", True, False)


def test_a_graph_that_fails_as_a_whole_is_a_disagreement_without_a_node(tmp_path: Path) -> None:
    found = disagreements(linted(tmp_path, "Relu-float32"), answer(taken=False, error="graph prepare failed 12"))
    (one,) = found.disagreements
    assert (one.node, one.reason, found.taken) == ("", "graph prepare failed 12", False)
    assert found.compiler == "onnxruntime-qnn 2.7.0"


@needs_qnn
@pytest.mark.parametrize("name", ["block-residual-rms-fused", "block-residual-rms-plain"])
def test_rules_and_compiler_agree_on_each_node(tmp_path: Path, name: str) -> None:
    found = probed(linted(tmp_path, name), NPU)
    assert found.probed is not None
    assert (found.probed.taken, found.probed.disagreements) == (not found.refused, ())
