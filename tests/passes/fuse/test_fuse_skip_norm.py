"""Residual additions and norms become one operator, and only those."""

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.graphs.builder import IR_VERSION
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.passes.fuse.fuse_skip_norm import FuseSkipNorm
from hvlc.targets import Target, load_target
from tests.helpers.sessions import run
from tests.helpers.tolerances import GRAPH_FLOAT32

BEFORE = """
graph (float[b, s, 8] x, float[b, s, 8] y) => (float[b, s, 8] normed, float[b, s, 8] total)
   <float[8] scale = {ZEROS}, float[8] bias = {ZEROS}> {
      [residual] total = Add (x, y)
      [norm] normed = %s
}
""".replace("ZEROS", "0, 0, 0, 0, 0, 0, 0, 0")
RMS = "RMSNormalization <axis = -1, epsilon = 0.001> (total, scale)"
LAYER = "LayerNormalization <axis = -1, epsilon = 0.001> (total, scale, bias)"
FUSED = '[norm] normed, "", "", total = com.microsoft.'
EXPECTED = {
    RMS: f"{FUSED}SkipSimplifiedLayerNormalization <epsilon = 0.001> (x, y, scale)",
    LAYER: f"{FUSED}SkipLayerNormalization <epsilon = 0.001> (x, y, scale, bias)",
}
CPU = load_target("cpu")

NEAR_MISSES = {
    "adds a weight": (BEFORE.replace("Add (x, y)", "Add (x, bias)") % RMS, "adds a weight, not a residual"),
    "norm over two axes": (
        BEFORE.replace("[8] scale = {", "[2, 8] scale = {0, 0, 0, 0, 0, 0, 0, 0, ").replace("b, s, 8", "b, 2, 8")
        % "RMSNormalization <axis = -2> (total, scale)",
        "normalizes over more than the last axis",
    ),
    "no addition": (BEFORE.replace("Add (x, y)", "Mul (x, y)") % RMS, "no residual addition before it"),
    "norm without bias": (BEFORE % "LayerNormalization <axis = -1> (total, scale)", "has no bias"),
}


def bundle(text: str, role: Role = Role.DECODER) -> Bundle:
    header = f'<ir_version: {IR_VERSION}, opset_import: ["" : 23, "com.microsoft" : 1]>'
    model = ir.from_onnx_text(header + text.strip())
    random = np.random.default_rng(0)
    for value in model.graph.initializers.values():
        dims = tuple(int(d) for d in value.shape)
        value.const_value = ir.tensor(random.normal(size=dims).astype(np.float32), name=value.name)
    made = Bundle("test")
    made.add(Component("graph", role, model, "graph"))
    return made


def nodes(made: Bundle) -> list[str]:
    """The nodes as ONNX text, attributes sorted out of the way."""
    texts = []
    for node in made.components["graph"].graph:
        outputs = ", ".join(v.name or '""' for v in node.outputs)
        domain = f"{node.domain}." if node.domain else ""
        attributes = ", ".join(f"{a.name} = {round(a.value, 6)}" for a in node.attributes.values())
        inputs = ", ".join(v.name if v else '""' for v in node.inputs)
        texts.append(f"[{node.name}] {outputs} = {domain}{node.op_type} <{attributes}> ({inputs})")
    return texts


def feeds(dims: tuple[int, ...] = (2, 4, 8)) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {name: random.normal(size=dims).astype(np.float32) for name in "xy"}


@pytest.mark.parametrize("norm", EXPECTED)
@pytest.mark.usefixtures("checked")
def test_the_pair_becomes_one_node(norm: str) -> None:
    made = bundle(BEFORE % norm)
    FuseSkipNorm(lambda role: CPU.takes_op).run(made)
    assert nodes(made) == [EXPECTED[norm]]
    assert [(e.changed, e.skipped) for e in made.journal] == [(1, ())]


@pytest.mark.parametrize("norm", EXPECTED)
def test_the_numbers_stay(norm: str) -> None:
    before, after = bundle(BEFORE % norm), bundle(BEFORE % norm)
    FuseSkipNorm(lambda role: CPU.takes_op).run(after)
    expected, found = (run(b.components["graph"].model, feeds()) for b in (before, after))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=GRAPH_FLOAT32, rtol=0)


def test_the_comparison_sees_another_epsilon() -> None:
    before, after = bundle(BEFORE % RMS), bundle(BEFORE % RMS.replace("0.001", "0.1"))
    FuseSkipNorm(lambda role: CPU.takes_op).run(after)
    expected, found = (run(b.components["graph"].model, feeds())[0] for b in (before, after))
    assert np.abs(expected - found).max() > 100 * GRAPH_FLOAT32


def test_a_sum_that_nobody_reads_is_not_made() -> None:
    made = bundle(BEFORE.replace(", float[b, s, 8] total)", ")") % RMS)
    FuseSkipNorm(lambda role: CPU.takes_op).run(made)
    (node,) = made.components["graph"].graph
    assert [v.name for v in node.outputs] == ["normed", "", "", ""]


@pytest.mark.parametrize("case", NEAR_MISSES)
@pytest.mark.usefixtures("checked")
def test_a_near_miss_stays_untouched_and_is_explained(case: str) -> None:
    text, reason = NEAR_MISSES[case]
    made = bundle(text)
    before = nodes(made)
    FuseSkipNorm(lambda role: CPU.takes_op).run(made)
    assert nodes(made) == before
    ((changed, (skip,)),) = [(e.changed, e.skipped) for e in made.journal]
    assert (changed, skip.where, skip.reason) == (0, "norm", reason)


def test_a_target_without_the_operator_keeps_the_pair() -> None:
    target = Target.model_validate(CPU.model_dump() | {"name": "npu", "contrib_ops": ("MatMulNBits",)})
    made = bundle(BEFORE % RMS)
    FuseSkipNorm(lambda role: target.takes_op).run(made)
    assert [node.op_type for node in made.components["graph"].graph] == ["Add", "RMSNormalization"]
    assert "npu does not take com.microsoft.SkipSimplified" in made.journal[0].skipped[0].reason


def test_roles_without_residuals_are_left_alone() -> None:
    made = bundle(BEFORE % RMS, Role.EMBEDDING)
    FuseSkipNorm(lambda role: CPU.takes_op).run(made)
    assert made.journal == []
