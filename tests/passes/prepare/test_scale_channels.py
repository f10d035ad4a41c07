"""Factors of channels go where they cancel, the outputs stay, and what takes no factors says why."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.graphs.bundle import Bundle
from hvlc.graphs.linears import LinearGroup, inverse_factors, linear_groups
from hvlc.graphs.producers import producer_of
from hvlc.passes.lists import structural_passes
from hvlc.passes.prepare.scale_channels import Factors, ScaleChannels
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.lazy import Computed
from tests.export.tiny_families import TEXT, save_text, save_vision
from tests.helpers.sessions import run
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.passes.float_models import (
    attention,
    bundle_from,
    bundle_of,
    difference,
    image_logits,
    run_component,
    text_logits,
    weights_of,
)


def factors_for(group: LinearGroup, seed: int) -> np.ndarray:
    """Random factors from 1/8 to 8; heads that share their values get the same."""
    weight = group.nodes[0].inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    width = int(weight.const_value.shape[0])
    factors = (8 ** np.random.default_rng(seed).uniform(-1, 1, width)).astype(np.float32)
    producer = producer_of(group)
    return factors if isinstance(producer, str) else factors[producer.channels]


def all_factors(bundle: Bundle) -> dict[tuple[str, str], np.ndarray]:
    groups = [(c.name, g) for c in bundle.components.values() for g in linear_groups(c.graph)]
    return {(name, str(g.input.name)): factors_for(g, seed) for seed, (name, g) in enumerate(groups)}


def scale(bundle: Bundle) -> None:
    ScaleChannels(all_factors(bundle)).run(bundle)


@pytest.fixture(scope="module", params=[(family, tied) for family in TEXT for tied in (True, False)], ids=str)
def decoder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, tied = request.param
    biases = {} if family == "qwen2" else {"attention_bias": True}
    return save_text(tmp_path_factory.mktemp(family) / "c", family, tie_word_embeddings=tied, **biases)


def test_a_decoder_computes_what_it_did(decoder: Path) -> None:
    assert difference(decoder, scale, text_logits) < GRAPH_FLOAT32


@pytest.mark.parametrize("target", ["cpu", "webgpu"])
def test_a_kernel_takes_the_factors_of_the_projection_after_it(tmp_path: Path, target: str) -> None:
    """Also where a target has the convolution in parts."""
    checkpoint = save_text(tmp_path / "c", "lfm2", conv_bias=True)

    def lowered(bundle: Bundle) -> None:
        structural_passes(bundle.facts, load_target(target)).run(bundle)

    def change(bundle: Bundle) -> None:
        lowered(bundle)
        scale(bundle)
        assert bundle.journal[-1].changed == 8
        assert ("Conv" in {node.op_type for node in bundle.components["model"].graph}) is (target == "webgpu")

    assert difference(checkpoint, change, text_logits) < GRAPH_FLOAT32


@pytest.mark.parametrize("encoder", ["vision_base", "vision_large"])
def test_a_vision_language_model_computes_what_it_did(tiny_checkpoint: Path, encoder: str) -> None:
    assert difference(tiny_checkpoint, scale, lambda bundle: image_logits(bundle, encoder)) < GRAPH_FLOAT32


@pytest.mark.parametrize("family", ["siglip_vision_model", "siglip2_vision_model"])
def test_a_tower_computes_what_it_did(tmp_path: Path, family: str) -> None:
    checkpoint = save_vision(tmp_path / "c", family)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    for output in ("last_hidden_state", "pooler_output"):

        def outputs(bundle: Bundle, output: str = output) -> np.ndarray:
            return run_component(bundle, "vision", {"pixel_values": pixels})[output]

        assert difference(checkpoint, scale, outputs) < GRAPH_FLOAT32


def test_every_group_of_a_decoder_is_scaled_but_a_tied_head(decoder: Path) -> None:
    bundle = bundle_of(decoder)
    tied = "lm_head.weight" not in Checkpoint.open(decoder).tensors
    scale(bundle)
    entry = bundle.journal[-1]
    assert entry.changed == (8 if tied else 9)
    expected = [("model: lm_head", "it shares its bytes with a table, which would be stored again")] if tied else []
    assert [(s.where, s.reason) for s in entry.skipped] == expected


@pytest.mark.usefixtures("checked")
def test_a_second_run_finds_its_own_factors(decoder: Path, tiny_checkpoint: Path) -> None:
    for checkpoint in (decoder, tiny_checkpoint):
        scale(bundle_of(checkpoint, fused=False))


def test_an_encoder_declines_what_follows_an_activation_and_a_reshape(tiny_checkpoint: Path) -> None:
    bundle = bundle_of(tiny_checkpoint)
    scale(bundle)
    skips = [(s.where.partition(": "), s.reason) for s in bundle.journal[-1].skipped]
    found = {(place[2].rpartition(".")[2], reason) for place, reason in skips if place[0].startswith("vision")}
    assert found == {
        ("fc2", "Gelu takes no factors"),
        ("linear_1", "Reshape takes no factors"),
        ("linear_2", "Gelu takes no factors"),
    }


def test_weights_are_multiplied_and_their_producers_divided(tmp_path: Path) -> None:
    """Llama's first layer by hand: which matrix gets which factor along which axis."""
    checkpoint = save_text(tmp_path / "c", "llama", attention_bias=True, tie_word_embeddings=False)
    bundle = bundle_of(checkpoint)
    before, factors = weights_of(bundle), all_factors(bundle)
    groups = {str(n.name): str(g.input.name) for g in linear_groups(bundle.components["model"].graph) for n in g.nodes}
    ScaleChannels(factors).run(bundle)
    after, layer = weights_of(bundle), "model.layers.0"
    readers = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    attention, output, mlp, down = (factors["model", groups[f"{layer}.{name}"]] for name in readers)
    values = np.concatenate([output[:16], output[32:48]])  # four query heads of 16, two of them to a value head
    expected = {
        "input_layernorm.weight": lambda w: w / attention,
        "self_attn.q_proj.weight": lambda w: w * attention[:, None],
        "self_attn.k_proj.weight": lambda w: w * attention[:, None],
        "self_attn.v_proj.weight": lambda w: w * attention[:, None] / values,
        "self_attn.q_proj.bias": lambda w: w,
        "self_attn.v_proj.bias": lambda w: w / values,
        "self_attn.o_proj.weight": lambda w: w * output[:, None],
        "self_attn.o_proj.bias": lambda w: w,
        "post_attention_layernorm.weight": lambda w: w / mlp,
        "mlp.gate_proj.weight": lambda w: w * mlp[:, None],
        "mlp.up_proj.weight": lambda w: w * mlp[:, None] / down,
        "mlp.down_proj.weight": lambda w: w * down[:, None],
    }
    for name, change in expected.items():
        key = "model", f"{layer}.{name}"
        np.testing.assert_allclose(after[key], change(before[key].astype(np.float64)), rtol=1e-6, err_msg=name)


def test_the_comparison_sees_one_factor_missing(tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "c", "llama")

    def wrong(bundle: Bundle) -> None:
        scale(bundle)
        weight = bundle.components["model"].graph.initializers["model.layers.1.mlp.down_proj.weight"]
        assert weight.const_value is not None
        values = weight.const_value.numpy().copy()
        values[3] *= 1.5
        weight.const_value = ir.tensor(values, name=weight.name)

    assert difference(checkpoint, wrong, text_logits) > 10 * GRAPH_FLOAT32


@given(heads=st.integers(1, 3), shared=st.integers(1, 3), half=st.integers(1, 2), seed=st.integers(0, 9))
def test_heads_of_any_shape_keep_their_mixture(heads: int, shared: int, half: int, seed: int) -> None:
    size, width = 8 * half, 6
    bundle = attention(heads * shared, heads, size, width, seed)
    x = {"x": np.random.default_rng(seed).normal(size=(2, 3, width)).astype(np.float32)}
    (expected,) = run(bundle.components["graph"].model, x)
    group = linear_groups(bundle.components["graph"].graph)[-1]
    ScaleChannels({("graph", "mixed"): factors_for(group, seed)}).run(bundle)
    assert bundle.journal[-1].changed == 1
    (found,) = run(bundle.components["graph"].model, x)
    np.testing.assert_allclose(found, expected, atol=GRAPH_FLOAT32 * np.abs(expected).max())


def test_factors_that_are_not_known_yet_are_read_when_weights_are() -> None:
    known, later = attention(4, 2, 8, 6, 0), attention(4, 2, 8, 6, 0)
    factors = factors_for(linear_groups(known.components["graph"].graph)[-1], 3)
    asked: list[str] = []

    def tell(name: str, values: np.ndarray) -> np.ndarray:
        asked.append(name)
        return values

    inverse = inverse_factors(factors, np.r_[0:8, 0:8, 8:16, 8:16])
    direct, divided = (
        Computed(lambda name=name, values=values: tell(name, values), (), values.shape, values.dtype)
        for name, values in {"direct": factors, "inverse": inverse}.items()
    )
    ScaleChannels({("graph", "mixed"): factors}).run(known)
    lazily = ScaleChannels({("graph", "mixed"): Factors(direct, divided)})
    for changed in (1, 0):  # the second time they are there already
        lazily.run(later)
        assert (later.journal[-1].changed, later.journal[-1].skipped) == (changed, ())
    assert asked == []
    expected = weights_of(known)
    for place, values in weights_of(later).items():
        np.testing.assert_array_equal(values, expected[place])
    assert set(asked) == {"direct", "inverse"}


def test_heads_that_share_values_share_factors_or_are_declined() -> None:
    bundle = attention(4, 2, 8, 6, 0)
    factors = np.ones(32, np.float32)
    factors[3] = 2  # channel 3 of the first query head, not of the second
    assert reason(bundle, factors) == "heads that share their values have different factors"
    factors[8 + 3] = 2
    ScaleChannels({("graph", "mixed"): factors}).run(bundle)
    assert bundle.journal[-1].changed == 1


NORMED = """
graph (float[b, s, 4] x) => (float[b, s, 4] y, float[b, s, 4] z)
   <float[4] gain = {0}, float[4] other = {0}, float[4, 4] w = {0}, float[4, 4] w2 = {0}, int64[1] zero = {0},
    int64[1] one = {0}> {
      mixed = RMSNormalization <axis = -1> (x, gain)
      y = MatMul (mixed, w)
      z = MatMul (x, w2)
}
"""
NORM = "mixed = RMSNormalization <axis = -1> (x, gain)"
FUSED = 'n, "", "", mixed = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.1> (x, x, gain)'
KEYED = "p = MatMul (x, w3)\nmixed = Attention <q_num_heads = 1, kv_num_heads = 1> (x, p, p)"
PAST = "p = MatMul (x, w3)\nq = Neg (x)\nmixed, k, v = Attention <q_num_heads = 1, kv_num_heads = 1> (x, x, p, , q, q)"
INPUT = "graph (float[b, s, 4] mixed) => (float[b, s, 4] y) <float[4, 4] w = {0}> { y = MatMul (mixed, w) }"
NEAR_MISSES = {
    "a residual reads the norm": (
        NORMED.replace("MatMul (x, w2)", "Add (mixed, x)"),
        "its input is also read by others",
    ),
    "the norm is an output": (NORMED.replace("] z)", "] mixed)"), "its input is also read by others"),
    "the gain has two readers": (
        NORMED.replace("MatMul (x, w2)", "RMSNormalization <axis = -1> (x, gain)"),
        "what makes its input shares a weight with another node",
    ),
    "the weight has two readers": (NORMED.replace("w2)", "w)"), "a weight of it is shared with another node"),
    "the gain is computed": (
        NORMED.replace(NORM, f"computed = Neg (gain)\n{NORM}").replace("(x, gain)", "(x, computed)"),
        "the norm before it has a computed weight",
    ),
    "the gain is a scalar": (
        NORMED.replace("[4] gain", "[1] gain"),
        "what makes its input has a weight of another shape",
    ),
    "two axes are normed": (
        NORMED.replace("[4] gain", "[3, 4] gain").replace("axis = -1", "axis = -2").replace("b, s, 4", "b, 3, 4"),
        "the norm before it spans more than the last axis",
    ),
    "the graph's input is read": (INPUT, "its input is an input of the graph"),
    "an activation is between": (NORMED.replace(NORM, "mixed = Gelu (x)"), "Gelu takes no factors"),
    "no factor is linear": (
        NORMED.replace(NORM, "mixed = Mul (x, x)"),
        "no factor of the product before it is linear",
    ),
    "a linear factor is squared": (
        NORMED.replace(NORM, "p = MatMul (x, w3)\nmixed = Mul (p, p)").replace(
            "w2 = {0}", "w2 = {0}, float[4, 4] w3 = {0}"
        ),
        "no factor of the product before it is linear",
    ),
    "the values are the keys too": (
        NORMED.replace(NORM, KEYED).replace("w2 = {0}", "w2 = {0}, float[4, 4] w3 = {0}"),
        "what makes its input is not a linear of its own",
    ),
    "the past values are computed": (
        NORMED.replace(NORM, PAST).replace("w2 = {0}", "w2 = {0}, float[4, 4] w3 = {0}"),
        "the attention before it has past values that the graph makes",
    ),
    "the norm's output is cut": (
        NORMED.replace("mixed =", "whole =").replace("y =", "mixed = Slice (whole, zero, one, one)\n y ="),
        "its input is a slice",
    ),
    "the other output of the norm is read": (NORMED.replace(NORM, FUSED), "its input is a residual sum"),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_a_near_miss_stays_untouched_and_is_explained(case: str) -> None:
    text, expected = NEAR_MISSES[case]
    assert reason(bundle_from(text), np.full(4, 2, np.float32)) == expected


@pytest.mark.parametrize("values", [[1, 1, 1], [1, 1, 0, 1], [1, -1, 1, 1], [1, np.nan, 1, 1], [1, np.inf, 1, 1]])
def test_factors_have_to_be_as_many_and_positive(values: list[float]) -> None:
    assert reason(bundle_from(NORMED), np.array(values, np.float32)) == "the factors are no 4 finite numbers above 0"


def test_factors_for_nothing_are_told_of() -> None:
    bundle = bundle_from(NORMED)
    ScaleChannels({("graph", "nothing"): np.ones(4, np.float32), ("none", "x"): np.ones(4, np.float32)}).run(bundle)
    (entry,) = bundle.journal
    assert {(s.where, s.reason) for s in entry.skipped} == {
        ("graph: nothing", "no linear reads it"),
        ("none: x", "no linear reads it"),
    }


def reason(bundle: Bundle, factors: np.ndarray) -> str:
    """Why factors of `mixed` are declined; nothing may have changed."""
    before = weights_of(bundle)
    ScaleChannels({("graph", "mixed"): factors}).run(bundle)
    (entry,) = bundle.journal
    assert entry.changed == 0
    after = weights_of(bundle)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    (skip,) = entry.skipped
    return skip.reason
