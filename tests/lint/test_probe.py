"""The compiler is asked in a process of its own, and what it says is held against the rules."""

from pathlib import Path

import onnx
import pytest

from hvlc.errors import UserError
from hvlc.lint import probe
from hvlc.lint.linting import lint_graph
from hvlc.lint.probe import Compiled, ask_compiler, disagreements, is_installed, require_compiler
from hvlc.target import Target, load_target
from tests.lint.corpus import corpus

NPU = load_target("qnn-sm8750")
CASES = {case.name: case for case in corpus()}
NEEDS_COMPILER = pytest.mark.skipif(
    not is_installed(), reason="needs Qualcomm's compiler: pip install 'hvlc[qnn]' on x86-64 Linux"
)


def saved(directory: Path, name: str) -> Path:
    onnx.save(CASES[name].model, directory / "model.onnx")
    return directory / "model.onnx"


def asked(path: Path, target: Target = NPU, *, run: bool = False) -> Compiled:
    return ask_compiler(path, target.provider_options, target.session_options, target.affinity, run=run)


# The process.


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the compiler was ended by signal 11"),
        ("raise SystemExit('out of licences')", "the compiler ended with code 1: out of licences"),
        ("", "the compiler left no answer"),
        ("import time; time.sleep(60)", "the compiler did not end within 1 s"),
    ],
)
def test_a_compiler_that_dies_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: str
) -> None:
    (tmp_path / "script.py").write_text(script)
    monkeypatch.setattr(probe, "_SCRIPT", tmp_path / "script.py")
    monkeypatch.setattr(probe, "_SECONDS", 1)
    found = asked(saved(tmp_path, "Relu-float32"))
    assert (found.taken, found.error, found.nodes) == (False, error, ())


def test_it_is_asked_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "is_installed", lambda: False)
    with pytest.raises(UserError, match="not installed") as error:
        require_compiler(NPU)
    assert "hvlc[qnn]" in error.value.fix
    with pytest.raises(UserError, match="webgpu has no compiler that runs on this host"):
        require_compiler(load_target("webgpu"))


# Rules and compiler.


def answer(*nodes: tuple[str, str, bool], taken: bool, error: str = "") -> Compiled:
    return Compiled(taken, error, nodes, {"Trilu_0": "not supported"}, 1 if nodes else None, None, "2.7.0")


def test_the_same_verdict_is_no_disagreement(tmp_path: Path) -> None:
    refused = lint_graph(saved(tmp_path, "Trilu"), NPU)
    assert disagreements(refused, answer(("Trilu_0", "Trilu", False), taken=False)).disagreements == ()
    taken = lint_graph(saved(tmp_path, "Relu-float32"), NPU)
    assert disagreements(taken, answer(("Relu_0", "Relu", True), taken=True)).disagreements == ()


def test_a_node_that_is_judged_otherwise_is_named_with_the_compilers_reason(tmp_path: Path) -> None:
    found = lint_graph(saved(tmp_path, "Trilu"), NPU)
    (one,) = disagreements(found, answer(("Trilu_0", "Trilu", True), taken=True)).disagreements
    assert (one.node, one.rules_take, one.compiler_takes) == ("Trilu_0", False, True)
    found = lint_graph(saved(tmp_path, "Relu-float32"), NPU)
    (one,) = disagreements(found, answer(("Relu_0", "Relu", False), taken=False)).disagreements
    assert (one.node, one.rules_take, one.compiler_takes) == ("Relu_0", True, False)


def test_a_graph_that_fails_as_a_whole_is_a_disagreement_without_a_node(tmp_path: Path) -> None:
    found = lint_graph(saved(tmp_path, "Relu-float32"), NPU)
    probed = disagreements(found, answer(taken=False, error="graph prepare failed 12"))
    (one,) = probed.disagreements
    assert (one.node, one.reason, probed.taken) == ("", "graph prepare failed 12", False)
    assert probed.compiler == "onnxruntime-qnn 2.7.0"


@NEEDS_COMPILER
def test_the_compiler_takes_a_graph_and_runs_it(tmp_path: Path) -> None:
    found = asked(saved(tmp_path, "Relu-float32"), run=True)
    assert (found.taken, found.error, found.partitions) == (True, "", 1)
    assert found.nodes == (("Relu_0", "Relu", True),)
    assert found.difference is not None
    assert found.difference < 0.001


@NEEDS_COMPILER
def test_the_compiler_names_what_it_refuses_and_takes_the_rest(tmp_path: Path) -> None:
    found = asked(saved(tmp_path, "block-residual-rms-fused"))
    assert not found.taken
    assert "fallback" in found.error
    refused = [name for name, _, taken in found.nodes if not taken]
    assert refused == ["SkipSimplifiedLayerNormalization_0"]
    assert "not supported" in found.reasons[refused[0]]


@NEEDS_COMPILER
def test_a_chip_that_does_not_exist_is_refused_and_nothing_runs_on_the_cpu_instead(tmp_path: Path) -> None:
    target = NPU.model_copy(update={"provider_options": {**NPU.provider_options, "soc_model": "999", "htp_arch": "99"}})
    found = asked(saved(tmp_path, "Relu-float32"), target)
    assert not found.taken
    assert not any(taken for _, _, taken in found.nodes)


@NEEDS_COMPILER
@pytest.mark.parametrize("name", ["qnn-sm8550", "qnn-sm8650", "qnn-sm8850"])
def test_the_other_snapdragons_compile_too(tmp_path: Path, name: str) -> None:
    assert asked(saved(tmp_path, "block-residual-rms-plain"), load_target(name)).taken
