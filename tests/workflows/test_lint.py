"""Lint of whole models: packages, fixes that keep every number, and outputs that appear whole."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from hvlc.errors import UserError
from hvlc.manifest.lock import LOCK
from hvlc.manifest.manifest import Manifest
from hvlc.targets import Condition, Evidence, OperandIs, Rule, load_target
from hvlc.workflows.lint.lint import lint
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.lint.corpus import corpus
from tests.lint.tape import MICROSOFT, S, Tape

NPU = load_target("qnn-sm8750")
CASES = {case.name: case for case in corpus()}


def saved(directory: Path, name: str) -> Path:
    directory.mkdir(exist_ok=True)
    onnx.save(CASES[name].model, directory / "model.onnx")
    return directory / "model.onnx"


def outputs(path: Path) -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    return session.run(None, {i.name: random.normal(size=i.shape).astype(np.float32) for i in session.get_inputs()})


def test_every_graph_of_a_package_is_held_against_the_target(tiny_float32: Path) -> None:
    found = lint(tiny_float32, NPU)
    components = Manifest.load(tiny_float32).components
    assert [(graph.name, graph.role) for graph in found.graphs] == [(n, c.role) for n, c in components.items()]
    on_cpu = {graph.name for graph in found.graphs if graph.on_cpu}
    assert {"front", "embedding", "stitch"} <= on_cpu
    decoder = next(graph for graph in found.graphs if graph.role == "decoder")
    assert {f.rule for f in decoder.findings} == {"fixed_shapes", "operators", "operators.fused-norms"}
    assert found.refused(allow_hazards=True)


def test_the_cpu_takes_its_own_packages(tiny_float32: Path, tiny_w4a16: Path) -> None:
    for package in (tiny_float32, tiny_w4a16):
        found = lint(package, load_target("cpu"))
        assert [graph.findings for graph in found.graphs] == [()] * len(found.graphs)
        assert all(graph.partitions == 1 for graph in found.graphs)
        assert not found.refused(allow_hazards=False)


def test_what_the_target_declares_for_the_cpu_does_not_count(tiny_float32: Path) -> None:
    declared = NPU.model_copy(update={"cpu_roles": ("decoder", "vision_encoder", *NPU.cpu_roles)})
    found = lint(tiny_float32, declared)
    assert any(graph.refused for graph in found.graphs)
    assert not found.refused(allow_hazards=False)


def test_a_hazard_counts_unless_it_is_allowed(tmp_path: Path) -> None:
    found = lint(saved(tmp_path, "MatMul-dynamic-uint16-uint16"), NPU)
    assert (found.graphs[0].refused, found.graphs[0].hazards) == (0, 1)
    assert found.refused(allow_hazards=False)
    assert not found.refused(allow_hazards=True)


# Fixes.


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("block-residual-rms-fused", {"DecomposeSkipNorm": 1}),
        ("block-residual-layer-fused", {"DecomposeSkipNorm": 1}),
        ("SkipLayerNormalization-float32", {"DecomposeSkipNorm": 1}),
        ("SkipSimplifiedLayerNormalization-float32", {"RaiseOpset": 1, "DecomposeSkipNorm": 1}),
        ("Gemm-uint16-LPBQ32-transB0-bias-none", {"GemmToMatMulAdd": 1}),
        ("Gemm-uint16-LPBQ32-transB0-bias-float", {"GemmToMatMulAdd": 1}),
        ("MatMul-negative-uint16-int8-channel", {"MakeScalesPositive": 1}),
        ("Conv-negative-uint8-int4-tensor", {"MakeScalesPositive": 1}),
        ("MatMul-bare-uint16-int4-channel", {"AddZeroPoints": 1}),
        ("MatMul-bare-uint16-int4-lpbq32", {"AddZeroPoints": 1}),
        ("Mul-bare-int4", {"AddZeroPoints": 1}),
    ],
)
def test_a_fixed_model_is_taken_and_computes_the_same(tmp_path: Path, name: str, fixed: dict[str, int]) -> None:
    path = saved(tmp_path / "in", name)
    content = path.read_bytes()
    assert lint(path, NPU).refused(allow_hazards=False)
    found = lint(path, NPU, output=tmp_path / "out")
    assert (found.fixed, found.declined) == (fixed, ())
    assert not found.refused(allow_hazards=False), found.graphs[0].findings
    assert path.read_bytes() == content
    for one, other in zip(outputs(path), outputs(tmp_path / "out" / "model.onnx"), strict=True):
        np.testing.assert_allclose(other, one, atol=GRAPH_FLOAT32, rtol=0)


def rotary(opset: int) -> Tape:
    tape = Tape(opset)
    positions = tape.constant(np.arange(S)[None], np.int64)
    tables = [tape.normal(16, 8) for _ in range(2)]
    x = tape.input("x", (1, S, 64))
    tape.output(tape.op("RotaryEmbedding", x, positions, *tables, domain=MICROSOFT, num_heads=4), (1, S, 64))
    return tape


def test_a_rotary_embedding_is_made_standard(tmp_path: Path) -> None:
    onnx.save(rotary(21).case("rotary").model, tmp_path / "model.onnx")
    found = lint(tmp_path / "model.onnx", NPU, output=tmp_path / "out")
    assert found.fixed == {"RaiseOpset": 1, "ReplaceContribRotary": 1}
    assert not found.refused(allow_hazards=False)
    one, other = (outputs(path)[0] for path in (tmp_path / "model.onnx", tmp_path / "out" / "model.onnx"))
    np.testing.assert_allclose(other, one, atol=GRAPH_FLOAT32, rtol=0)


def test_constant_indices_are_narrowed_where_a_target_has_no_int64(tmp_path: Path) -> None:
    rule = Rule(
        operators=("Gather",),
        when=Condition(inputs=(OperandIs(at=1, dtypes=("int64",)),)),
        reason="no int64",
        evidence=Evidence.INFERRED,
        source="a test",
    )
    target = NPU.model_copy(update={"rules": {**NPU.rules, "indices": rule}})
    path = saved(tmp_path / "in", "Gather-constant")
    found = lint(path, target, output=tmp_path / "out")
    assert found.fixed == {"NarrowIntegers": 1}
    assert not found.refused(allow_hazards=False)
    np.testing.assert_array_equal(*(outputs(p)[0] for p in (path, tmp_path / "out" / "model.onnx")))


def test_norms_of_heads_are_flattened_where_their_rows_go_wrong(tmp_path: Path) -> None:
    tape = Tape(23)
    heads = tape.op("Reshape", tape.input("x", (1, 64, 64)), tape.constant([0, 0, 2, 32], np.int64))
    normed = tape.op("RMSNormalization", heads, tape.normal(32))
    tape.output(tape.op("Reshape", normed, tape.constant([1, 64, 64], np.int64)), (1, 64, 64))
    onnx.save(tape.case("norm").model, tmp_path / "model.onnx")
    assert lint(tmp_path / "model.onnx", NPU).graphs[0].hazards == 1
    found = lint(tmp_path / "model.onnx", NPU, output=tmp_path / "out")
    assert found.fixed is not None
    assert found.fixed["FlattenNorms"] == 1
    assert not found.refused(allow_hazards=False)
    one, other = (outputs(path)[0] for path in (tmp_path / "model.onnx", tmp_path / "out" / "model.onnx"))
    np.testing.assert_allclose(other, one, atol=GRAPH_FLOAT32, rtol=0)


def test_a_gemm_that_only_has_dynamic_shapes_stays(tmp_path: Path) -> None:
    tape = Tape(23)
    tape.output(tape.op("Gemm", tape.input("x", ("rows", 64)), tape.normal(64, 32)), ("rows", 32))
    onnx.save(tape.case("gemm").model, tmp_path / "model.onnx")
    found = lint(tmp_path / "model.onnx", NPU, output=tmp_path / "out")
    assert [f.rule for f in found.graphs[0].findings] == ["fixed_shapes"]
    assert (found.fixed, found.declined) == ({}, ())
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_what_cannot_be_fixed_is_said(tmp_path: Path) -> None:
    onnx.save(rotary(17).case("rotary").model, tmp_path / "model.onnx")
    found = lint(tmp_path / "model.onnx", NPU, output=tmp_path / "out")
    assert found.fixed == {"RaiseOpset": 0, "ReplaceContribRotary": 0}
    assert found.declined == (
        "model: model: opset 17 is older than 21: export the model again",
        "model: RotaryEmbedding_0: RotaryEmbedding needs opset 23, the model has 17",
    )
    assert found.refused(allow_hazards=False)


def test_a_package_is_fixed_whole_and_verifies(tiny_float32: Path, tmp_path: Path) -> None:
    found = lint(tiny_float32, NPU, output=tmp_path / "fixed")
    assert found.fixed is not None
    assert found.fixed["DecomposeSkipNorm"] > 4
    made = Manifest.load(tmp_path / "fixed")
    made.verify(tmp_path / "fixed")
    assert set(made.files) == set(Manifest.load(tiny_float32).files) - {LOCK}
    decoder = next(graph for graph in found.graphs if graph.role == "decoder")
    assert {f.rule for f in decoder.findings} == {"fixed_shapes", "operators"}  # Shape of what is dynamic


def test_a_fixed_model_takes_its_data_along(tiny_float32: Path, tmp_path: Path) -> None:
    found = lint(tiny_float32 / "vision_base.onnx", NPU, output=tmp_path / "fixed")
    assert found.fixed is not None
    assert found.fixed["DecomposeSkipNorm"] > 0
    assert sorted(p.name for p in (tmp_path / "fixed").iterdir()) == ["vision.onnx.data", "vision_base.onnx"]
    ort.InferenceSession(tmp_path / "fixed" / "vision_base.onnx", providers=["CPUExecutionProvider"])


# What is refused before the work.


def test_an_output_that_exists_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "in", "Relu-float32")
    with pytest.raises(UserError, match="exists") as error:
        lint(path, NPU, output=tmp_path / "in")
    assert error.value.code == "output.exists"
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["model.onnx"]


def test_missing_data_leaves_no_output(tiny_float32: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(tiny_float32 / "vision_base.onnx", tmp_path / "in")
    with pytest.raises(UserError) as error:
        lint(tmp_path / "in" / "vision_base.onnx", NPU, output=tmp_path / "out")
    assert error.value.code == "lint.data"
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(("name", "code"), [("absent.onnx", "lint.missing"), ("", "package.missing")])
def test_no_model_is_the_users_error(tmp_path: Path, name: str, code: str) -> None:
    with pytest.raises(UserError) as error:
        lint(tmp_path / name, NPU)
    assert error.value.code == code
