"""A decoder computes the same in a rotated basis, its outliers are spread, and what is not exact is declined."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.graphs.bundle import Bundle, Role
from hvlc.graphs.linears import linear_groups, operand
from hvlc.passes.prepare.rotate_residual import RotateResidual
from hvlc.solvers.rtn import round_to_nearest
from hvlc.weights.formats import weight_format
from hvlc.weights.lazy import LazyTensor
from hvlc.weights.rotation import Rotation
from tests.export.tiny_families import TEXT, save_text
from tests.helpers.sessions import run, session
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.passes.float_models import bundle_from, bundle_of, difference, image_logits, text_logits, weights_of

HIDDEN = 64


def rotate(bundle: Bundle) -> None:
    RotateResidual(seed=3).run(bundle)


def untie(bundle: Bundle) -> None:
    RotateResidual(seed=3, untie=True).run(bundle)


def changes(bundle: Bundle) -> dict[str, list[str]]:
    """Initializers whose values a rotation changed, or made, by component."""
    before = weights_of(bundle)
    rotate(bundle)
    after = weights_of(bundle)
    found: dict[str, list[str]] = {}
    for (component, name), values in after.items():
        old = before.get((component, name))
        if old is None or not np.array_equal(old, values):
            found.setdefault(component, []).append(name)
    return found


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", TEXT)
def test_a_decoder_computes_what_it_did(tmp_path: Path, family: str, tied: bool) -> None:
    biases = {} if family == "qwen2" else {"attention_bias": True}
    checkpoint = save_text(tmp_path / "c", family, tie_word_embeddings=tied, **biases)
    assert difference(checkpoint, rotate, text_logits) < GRAPH_FLOAT32
    assert difference(checkpoint, untie, text_logits) < GRAPH_FLOAT32


def test_a_stream_that_norms_write_to_stays_and_says_why(tmp_path: Path) -> None:
    """A gain after a product, unlike one before it, cannot be folded into a matrix that a rotation is folded into."""
    found = bundle_of(save_text(tmp_path / "c", "gemma3_text"))
    assert changes(found) == {}
    (skip,) = found.journal[-1].skipped
    assert "adds the output of model.layers.0.post_attention_layernorm, whose gain" in skip.reason


@pytest.mark.parametrize("hidden", [96, 72, 52])  # Hadamard matrices of 12 x 8 and 36 x 2, and none
def test_a_decoder_of_another_width_computes_what_it_did(tmp_path: Path, hidden: int) -> None:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    checkpoint = save_text(tmp_path / "c", "qwen3", hidden_size=hidden, tie_word_embeddings=False, **heads)
    assert difference(checkpoint, rotate, text_logits) < GRAPH_FLOAT32


@pytest.mark.parametrize("encoder", ["vision_base", "vision_large"])
@pytest.mark.parametrize("change", [rotate, untie])
def test_a_vision_language_model_computes_what_it_did(
    tiny_checkpoint: Path, untied_checkpoint: Path, encoder: str, change: Callable[[Bundle], None]
) -> None:
    for checkpoint in (tiny_checkpoint, untied_checkpoint):
        assert difference(checkpoint, change, lambda bundle: image_logits(bundle, encoder)) < GRAPH_FLOAT32


@pytest.mark.usefixtures("checked")
def test_a_second_run_changes_nothing(tmp_path: Path, tiny_checkpoint: Path, untied_checkpoint: Path) -> None:
    for checkpoint in (save_text(tmp_path / "c", "llama"), tiny_checkpoint, untied_checkpoint):
        for fused in (True, False):
            bundle = bundle_of(checkpoint, fused=fused)
            rotate(bundle)
            assert (bundle.journal[-1].changed, bundle.journal[-1].skipped) == (1, ())


def test_a_tied_head_and_table_stay_and_the_basis_changes_around_them(tiny_checkpoint: Path) -> None:
    found = changes(bundle_of(tiny_checkpoint))
    assert set(found) == {"model"}
    assert {"residual.rotate.weight", "model.language_model.norm.unrotate.weight"} <= set(found["model"])
    assert not any("lm_head" in name or "embed_tokens" in name for name in found["model"])


def test_an_untied_model_is_rotated_where_it_is_written(untied_checkpoint: Path) -> None:
    """No node is added: the table and both projectors, weight and bias, write rotated vectors."""
    bundle = bundle_of(untied_checkpoint)
    nodes = {name: len(component.graph) for name, component in bundle.components.items()}
    found = changes(bundle)
    assert {name: len(component.graph) for name, component in bundle.components.items()} == nodes
    assert found["embedding"] == ["model.language_model.embed_tokens.weight"]
    for branch in ("base", "large"):
        projector = f"model.branches.{branch}.projector.linear_2"
        assert found[f"vision_{branch}"] == [f"{projector}.weight", f"{projector}.bias"]
    assert "lm_head.weight" in found["model"]


def test_a_decoder_whose_inputs_come_from_elsewhere_rotates_them_itself(untied_checkpoint: Path) -> None:
    found = changes(bundle_of(untied_checkpoint, fused=False))  # no wire says yet where visual tokens come from
    assert set(found) == {"model"}
    assert "residual.rotate.weight" in found["model"]


def test_every_matrix_is_multiplied_by_gain_and_rotation(tmp_path: Path) -> None:
    """Llama by hand: readers `R^T diag(g) W`, writers `W R`, gains one."""
    checkpoint = save_text(tmp_path / "c", "llama", attention_bias=True, tie_word_embeddings=False)
    bundle = bundle_of(checkpoint)
    before = {name: values.astype(np.float64) for (_, name), values in weights_of(bundle).items()}
    rotate(bundle)
    after = {name: values for (_, name), values in weights_of(bundle).items()}
    r = Rotation(HIDDEN, 3).matrix().read().astype(np.float64)
    expected = {"model.embed_tokens.weight": before["model.embed_tokens.weight"] @ r}
    gains = {"lm_head": "model.norm"}
    for layer in ("model.layers.0", "model.layers.1"):
        gains |= {f"{layer}.self_attn.{p}_proj": f"{layer}.input_layernorm" for p in "qkv"}
        gains |= {f"{layer}.mlp.{p}_proj": f"{layer}.post_attention_layernorm" for p in ("gate", "up")}
        for writer in ("self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.down_proj.weight"):
            expected[f"{layer}.{writer}"] = before[f"{layer}.{writer}"] @ r
    for reader, norm in gains.items():
        expected[f"{reader}.weight"] = r.T @ (before[f"{norm}.weight"][:, None] * before[f"{reader}.weight"])
        expected[f"{norm}.weight"] = np.ones(HIDDEN)
    for name, values in after.items():
        np.testing.assert_allclose(values, expected.get(name, before[name]), atol=1e-6, err_msg=name)


def test_the_comparison_sees_one_matrix_left_out(tmp_path: Path) -> None:
    def wrong(bundle: Bundle) -> None:
        graph = bundle.components["model"].graph
        kept = graph.initializers["model.layers.1.self_attn.o_proj.weight"].const_value
        rotate(bundle)
        graph.initializers["model.layers.1.self_attn.o_proj.weight"].const_value = kept

    assert difference(save_text(tmp_path / "c", "llama"), wrong, text_logits) > 10 * GRAPH_FLOAT32


def test_a_planted_outlier_is_spread(tmp_path: Path) -> None:
    """One channel of the stream is forty times the others: the peak and the kurtosis of what linears read fall."""
    checkpoint = save_text(tmp_path / "c", "llama", tie_word_embeddings=False)

    def inputs(change: Callable[[Bundle], None]) -> np.ndarray:
        bundle = bundle_of(checkpoint)
        graph = bundle.components["model"].graph
        table = graph.initializers["model.embed_tokens.weight"]
        assert table.const_value is not None
        values = table.const_value.numpy().copy()
        values[:, 7] += 40 * values.std()
        table.const_value = ir.tensor(values, name=table.name)
        change(bundle)
        first = linear_groups(graph)[0].input
        first.type, first.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["b", "s", HIDDEN])
        graph.outputs.append(first)
        model = session(bundle.components["model"].model)
        ids = np.random.default_rng(0).integers(0, 200, (1, 9))
        cache = {i.name: np.zeros((1, 2, 0, 16), np.float32) for i in model.get_inputs() if "past" in i.name}
        feeds = {"input_ids": ids, "attention_mask": np.ones((1, 9), np.int64), **cache}
        found: np.ndarray = model.run([str(first.name)], feeds)[0].reshape(-1, HIDDEN)
        return found

    plain, rotated = inputs(lambda bundle: None), inputs(rotate)
    assert peak(rotated) < 0.6 * peak(plain)
    assert kurtosis(rotated) < 0.3 * kurtosis(plain)


def peak(rows: np.ndarray) -> float:
    """Largest magnitude over the root mean square, averaged over rows."""
    return float(np.mean(np.abs(rows).max(1) / np.sqrt((rows**2).mean(1))))


def kurtosis(rows: np.ndarray) -> float:
    """Fourth moment over the squared second, averaged over rows."""
    return float(np.mean((rows**4).mean(1) / (rows**2).mean(1) ** 2))


def test_four_bits_hold_the_changes_of_basis(tiny_checkpoint: Path) -> None:
    bundle = bundle_of(tiny_checkpoint)
    rotate(bundle)
    graph = bundle.components["model"].graph
    for name in ("residual.rotate.weight", "model.language_model.norm.unrotate.weight"):
        tensor = graph.initializers[name].const_value
        assert tensor is not None
        rows = np.ascontiguousarray(tensor.numpy().T)
        restored = round_to_nearest(rows, weight_format(4, 32)).dequantize(HIDDEN)
        np.testing.assert_allclose(restored, rows, rtol=2**-11)  # the rounding of a float16 scale


def test_any_box_of_a_rotated_weight_has_the_same_bits(tiny_checkpoint: Path) -> None:
    bundle = bundle_of(tiny_checkpoint)
    rotate(bundle)
    for node in bundle.components["model"].graph:
        if node.op_type == "MatMul":
            tensor = operand(node, 1).const_value
            assert isinstance(tensor, LazyTensor)
            rows = tensor.expression.transpose()
            parts = [rows.rows(start, min(start + 7, rows.shape[0])) for start in range(0, rows.shape[0], 7)]
            np.testing.assert_array_equal(np.concatenate(parts), rows.read(), err_msg=str(node.name))


@given(width=st.sampled_from([4, 6, 8, 12, 20]), inner=st.integers(1, 5), seed=st.integers(0, 9))
def test_a_small_stream_of_any_shape_computes_what_it_did(width: int, inner: int, seed: int) -> None:
    bundle = bundle_from(STREAM.replace("WIDTH", str(width)).replace("INNER", str(inner)), seed)
    x = {"x": np.random.default_rng(seed).normal(size=(2, 3, width)).astype(np.float32)}
    (expected,) = run(bundle.components["graph"].model, x)
    rotate(bundle)
    assert bundle.journal[-1].changed == 1
    (found,) = run(bundle.components["graph"].model, x)
    np.testing.assert_allclose(found, expected, atol=GRAPH_FLOAT32 * np.abs(expected).max())


STREAM = """
graph (float[b, s, WIDTH] x) => (float[b, s, 5] y)
   <float[WIDTH] gain = {0}, float[WIDTH] gain2 = {0}, float[WIDTH, INNER] up = {0}, float[INNER, WIDTH] down = {0},
    float[WIDTH] bias = {0}, float[WIDTH, 5] head = {0}> {
      [norm] n = RMSNormalization <axis = -1> (x, gain)
      [up] u = MatMul (n, up)
      a = Relu (u)
      [down] d = MatMul (a, down)
      [bias] e = Add (bias, d)
      [residual] z = Add (e, x)
      [last] m = RMSNormalization <axis = -1> (z, gain2)
      [head] y = MatMul (m, head)
}
"""
NAMED = STREAM.replace("WIDTH", "4").replace("INNER", "3")
NEAR_MISSES = {
    "a layer norm": (
        NAMED.replace("[last] m = RMSN", "[last] m = LayerN"),
        "last takes the mean out, which a rotation moves",
    ),
    "a norm with a bias": (
        NAMED.replace("      [residual] z = Add (e, x)\n", "").replace(
            "RMSNormalization <axis = -1> (z, gain2)",
            "com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.1> (e, x, gain2, bias)",
        ),
        "last has more than a constant gain over the last axis",
    ),
    "a norm of a computed gain": (
        NAMED.replace("[last]", "g = Neg (gain2)\n[last]").replace("(z, gain2)", "(z, g)"),
        "last has more than a constant gain over the last axis",
    ),
    "an output of the stream": (
        NAMED.replace("5] y)", "5] y, float[b, s, 4] z)"),
        "the residual stream leaves the graph as z",
    ),
    "an operator in the stream": (
        NAMED.replace("[last]", "[odd] r = Relu (z)\n[last]").replace("(z, gain2)", "(r, gain2)"),
        "odd (Relu) reads the residual stream",
    ),
    "a norm that is read by others": (
        NAMED.replace("a = Relu (u)", "c = MatMul (n, up)\na = Add (u, n)")
        .replace("[4, 3] up", "[4, 4] up")
        .replace("[3, 4] down", "[4, 4] down"),
        "the output of norm is not read by linears alone",
    ),
    "a constant that is added": (
        NAMED.replace("(e, x)", "(bias, x)"),
        "residual adds what no linear of its own makes to the residual stream",
    ),
    "a writer with other readers": (
        NAMED.replace("(m, head)", "(m, head)\ns = Relu (e)"),
        "residual adds what no linear of its own makes to the residual stream",
    ),
    "a stream that is added to itself": (
        NAMED.replace("(e, x)", "(x, x)"),
        "residual adds what no linear of its own makes to the residual stream",
    ),
    "a shared gain": (NAMED.replace("(z, gain2)", "(z, gain)"), "gain has more than one reader"),
    "a scalar bias": (NAMED.replace("[4] bias", "[1] bias"), "bias is not 4 wide"),
    "no norm": (
        NAMED.replace("RMSNormalization <axis = -1> (x, gain)", "Relu (x)").replace(
            "RMSNormalization <axis = -1> (z, gain2)", "Relu (z)"
        ),
        "it has no norm",
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_a_near_miss_stays_untouched_and_is_explained(case: str) -> None:
    text, reason = NEAR_MISSES[case]
    bundle = bundle_from(text)
    before = weights_of(bundle)
    rotate(bundle)
    ((changed, (skip,)),) = [(e.changed, e.skipped) for e in bundle.journal]
    assert (changed, skip.where, skip.reason) == (0, "graph", reason)
    after = weights_of(bundle)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_only_decoders_have_a_residual_stream_that_is_rotated() -> None:
    bundle = bundle_from(NAMED)
    bundle.components["graph"] = replace(bundle.components["graph"], role=Role.VISION_ENCODER)
    rotate(bundle)
    assert [(e.changed, e.skipped) for e in bundle.journal] == [(0, ())]
