"""Values are rotated within their heads, back again behind the attention, and nowhere else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.graphs.bundle import Bundle
from hvlc.passes.prepare.rotate_heads import RotateHeads
from hvlc.weights.rotation import Rotation
from tests.export.tiny_families import TEXT, save_text, save_vision
from tests.helpers.sessions import run
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.passes.float_models import (
    attention,
    bundle_of,
    difference,
    image_logits,
    run_component,
    text_logits,
    weights_of,
)


def rotate(bundle: Bundle) -> None:
    RotateHeads(seed=3).run(bundle)


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.usefixtures("checked")
def test_a_decoder_computes_what_it_did(tmp_path: Path, family: str) -> None:
    biases = {} if family == "qwen2" else {"attention_bias": True}
    checkpoint = save_text(tmp_path / "c", family, **biases)
    assert difference(checkpoint, rotate, text_logits) < GRAPH_FLOAT32


@pytest.mark.parametrize("encoder", ["vision_base", "vision_large"])
def test_a_vision_language_model_computes_what_it_did(tiny_checkpoint: Path, encoder: str) -> None:
    assert difference(tiny_checkpoint, rotate, lambda bundle: image_logits(bundle, encoder)) < GRAPH_FLOAT32


def test_every_attention_of_a_tower_is_rotated(tmp_path: Path) -> None:
    bundle = bundle_of(save_vision(tmp_path / "c", "siglip_vision_model"))
    rotate(bundle)
    assert (bundle.journal[-1].changed, bundle.journal[-1].skipped) == (3, ())  # two layers and the pooling head


def test_a_tower_computes_what_it_did(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)

    def pooled(bundle: Bundle) -> np.ndarray:
        return run_component(bundle, "vision", {"pixel_values": pixels})["pooler_output"]

    assert difference(save_vision(tmp_path / "c", "siglip_vision_model"), rotate, pooled) < GRAPH_FLOAT32


@given(heads=st.integers(1, 3), shared=st.integers(1, 3), size=st.sampled_from([3, 8, 12, 20]), seed=st.integers(0, 9))
def test_heads_of_any_shape_are_rotated_by_blocks(heads: int, shared: int, size: int, seed: int) -> None:
    bundle = attention(heads * shared, heads, size, 6, seed)
    before = weights_of(bundle)
    x = {"x": np.random.default_rng(seed).normal(size=(2, 3, 6)).astype(np.float32)}
    (expected,) = run(bundle.components["graph"].model, x)
    rotate(bundle)
    (found,) = run(bundle.components["graph"].model, x)
    np.testing.assert_allclose(found, expected, atol=GRAPH_FLOAT32 * np.abs(expected).max())
    block = Rotation(size, 3).matrix().read().astype(np.float64)
    oracle: dict[str, Any] = {
        "wv": lambda w: w @ np.kron(np.eye(heads), block),
        "bias": lambda w: w @ np.kron(np.eye(heads), block),
        "wo": lambda w: np.kron(np.eye(heads * shared), block).T @ w,
        "wq": lambda w: w,
        "wk": lambda w: w,
    }
    for (_, name), values in weights_of(bundle).items():
        np.testing.assert_allclose(values, oracle[name](before["graph", name]), atol=1e-5, err_msg=name)


def test_packed_heads_are_declined() -> None:
    bundle = attention(2, 2, 8, 6, 0)
    node = next(n for n in bundle.components["graph"].graph if n.op_type == "Attention")
    node.attributes.pop("kv_num_heads")
    rotate(bundle)
    ((changed, (skip,)),) = [(e.changed, e.skipped) for e in bundle.journal]
    assert (changed, skip.reason) == (0, "the attention before it has packed or separate heads")
