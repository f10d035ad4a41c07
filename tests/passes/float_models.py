"""Tiny float models on their way to quantization, and what they compute."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hvlc.errors import raise_all
from hvlc.export import export_bundle
from hvlc.graphs.builder import IR_VERSION
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.states import empty_shape
from hvlc.passes.lists import structural_passes
from hvlc.targets import load_target
from hvlc.training.tokenizer import VOCABULARY_SIZE, special_token_id
from hvlc.weights.checkpoint import Checkpoint
from tests.helpers.sessions import session
from tests.helpers.tiny import TILE

HEADER = f'<ir_version: {IR_VERSION}, opset_import: ["" : 23, "com.microsoft" : 1]>'
Weights = dict[tuple[str, str], np.ndarray]


def bundle_of(checkpoint: Path, *, fused: bool = True) -> Bundle:
    """The graphs as exported, or after the passes that stand before quantization."""
    opened = Checkpoint.open(checkpoint)
    bundle = export_bundle(opened)
    raise_all(opened.problems)
    for step in structural_passes(bundle.facts, load_target("cpu")) if fused else ():
        step.run(bundle)
    return bundle


def run_component(bundle: Bundle, name: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    model = session(bundle.components[name].model)
    empty = {i.name: np.zeros(empty_shape(i.shape), np.float32) for i in model.get_inputs() if "past" in i.name}
    return dict(zip([o.name for o in model.get_outputs()], model.run(None, feeds | empty), strict=True))


def text_logits(bundle: Bundle) -> np.ndarray:
    """Of a text decoder after a random prompt."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY_SIZE, (1, 9))
    return run_component(bundle, "model", {"input_ids": ids, "attention_mask": np.ones((1, 9), np.int64)})["logits"]


def image_logits(bundle: Bundle, encoder: str = "vision_base") -> np.ndarray:
    """Of a HyperVL after one random tile and some text."""
    random = np.random.default_rng(0)
    pixels = random.normal(size=(1, 3, TILE, TILE)).astype(np.float32)
    features = run_component(bundle, encoder, {"pixel_values": pixels})["tile_features"][0]
    ids = random.integers(0, 200, (1, len(features) + 6))
    ids[0, 2 : 2 + len(features)] = special_token_id("<|image_pad|>")
    feeds = {"input_ids": ids, "image_features": features}
    embedded = run_component(bundle, "embedding", feeds)["inputs_embeds"]
    feeds = {"inputs_embeds": embedded, "attention_mask": np.ones(ids.shape, np.int64)}
    return run_component(bundle, "model", feeds)["logits"]


def difference(checkpoint: Path, change: Callable[[Bundle], None], output: Callable[[Bundle], np.ndarray]) -> float:
    """Largest difference that a change makes to an output, relative to the largest value."""
    before, after = bundle_of(checkpoint), bundle_of(checkpoint)
    change(after)
    expected, found = output(before), output(after)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def weights_of(bundle: Bundle) -> Weights:
    """Every initializer of every graph, by component and name."""
    return {
        (name, str(value.name)): value.const_value.numpy()
        for name, component in bundle.components.items()
        for value in component.graph.initializers.values()
        if value.const_value is not None
    }


def attention(heads: int, kv_heads: int, size: int, width: int, seed: int) -> Bundle:
    """Query, key and value projections of `x`, an attention, and a projection of its output."""
    q, kv = heads * size, kv_heads * size
    text = f"""
graph (float[b, s, {width}] x) => (float[b, s, 5] y)
   <float[{width}, {q}] wq = {{0}}, float[{width}, {kv}] wk = {{0}}, float[{width}, {kv}] wv = {{0}},
    float[{kv}] bias = {{0}}, float[{q}, 5] wo = {{0}}> {{
      q = MatMul (x, wq)
      k = MatMul (x, wk)
      p = MatMul (x, wv)
      v = Add (p, bias)
      mixed = Attention <q_num_heads = {heads}, kv_num_heads = {kv_heads}> (q, k, v)
      y = MatMul (mixed, wo)
}}"""
    return bundle_from(text, seed)


def bundle_from(text: str, seed: int = 0) -> Bundle:
    """A graph whose float initializers are random."""
    model = ir.from_onnx_text(HEADER + text.strip())
    random = np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        dims = tuple(int(d) for d in value.shape)
        if value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(random.normal(size=dims).astype(np.float32), name=value.name)
    bundle = Bundle("test")
    bundle.add(Component("graph", Role.DECODER, model, "graph"))
    return bundle
