"""Every family computes what transformers computes from the same files, whatever dtype they are stored in.

Graphs run with onnxruntime's own rewrites off, prefill and two decoding steps with the cache; the widest variant of
each family also with them on.
"""

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from hvlc.errors import UserError, raise_all
from hvlc.export import export_bundle, known_families
from hvlc.export.decoder.graph import decoder
from hvlc.export.language import (
    CONTEXT_LIMIT,
    decoder_shape,
    graph_name,
    head_parameter,
    rotary_tables,
    with_graph_names,
)
from hvlc.export.settings import read_config
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle
from hvlc.graphs.plan import Action
from hvlc.graphs.states import empty_shape
from hvlc.models.numbers import LanguageNumbers
from hvlc.results.build import BuildResult
from hvlc.runtime.generation import LanguageModel
from hvlc.solvers import SOLVERS
from hvlc.weights.checkpoint import Checkpoint, StoredTensor
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import (
    CONTEXT,
    DTYPES,
    IMAGE,
    PATCH,
    SIDE,
    TEXT,
    VISION_LANGUAGE,
    hollow_text,
    hollow_vision,
    save_text,
    save_vision,
    vision_tower,
)
from tests.helpers.sessions import OPTIMIZATIONS, session
from tests.helpers.tolerances import GRAPH_FLOAT32

VISION = ("siglip", "siglip2", "siglip_vision_model", "siglip2_vision_model")


def exported(directory: Path) -> Bundle:
    """The bundle, or what is wrong with the checkpoint."""
    checkpoint = Checkpoint.open(directory)
    bundle = export_bundle(checkpoint)
    raise_all(checkpoint.problems)
    return bundle


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Decoder:
    """A decoder graph from tokens or embeddings to logits, its cache carried from call to call."""

    def __init__(self, graph: ort.InferenceSession) -> None:
        self.session = graph
        past = [i for i in self.session.get_inputs() if i.name.startswith("past")]
        self.cache = {i.name: np.zeros(empty_shape(i.shape), np.float32) for i in past}
        self.total = 0

    def __call__(self, given: torch.Tensor) -> np.ndarray:
        self.total += given.shape[1]
        feeds = {
            self.session.get_inputs()[0].name: given.numpy(),
            "attention_mask": np.ones((1, self.total), np.int64),
            **self.cache,
        }
        outputs = dict(zip([o.name for o in self.session.get_outputs()], self.session.run(None, feeds), strict=True))
        logits = outputs.pop("logits")
        self.cache = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
        return logits


def cache_of(model: torch.nn.Module) -> DynamicCache:
    """transformers' cache, with states where there are some: its caches of windows get a window of one wrong."""
    convolves = "conv" in (getattr(model.config, "layer_types", None) or ())
    return DynamicCache(config=model.config) if convolves else DynamicCache()


def text_difference(directory: Path, bundle: Bundle, optimization: str = "as written") -> float:
    """Largest difference between a bundle's logits and those of transformers."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return logits_difference(model, session(bundle.components["model"].model, optimization))


@torch.no_grad()
def logits_difference(model: torch.nn.Module, graph: ort.InferenceSession) -> float:
    """Largest difference of the logits after a prompt and after each of two more tokens."""
    decode, cache, random = Decoder(graph), cache_of(model), generator()
    differences = []
    for length in (11, 1, 1):
        ids = torch.randint(0, 256, (1, length), generator=random)
        expected = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1:].numpy()
        assert expected.std() > 0.1
        differences.append(np.abs(decode(ids) - expected).max())
    return float(max(differences))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", TEXT)
@torch.no_grad()
def test_a_decoder_is_the_text_half_of_a_model_that_sees(tmp_path: Path, family: str, tied: bool) -> None:
    """It has a prefix and takes embeddings, some of which are not of a token."""
    directory = save_text(tmp_path / "checkpoint", family, tie_word_embeddings=tied)
    opened = Checkpoint.open(directory)
    renamed = {name.replace("model.", "model.text_model.", 1): t for name, t in opened.tensors.items()}
    record = importlib.import_module(f"hvlc.export.families.{family}").FAMILY
    checkpoint = with_graph_names(replace(opened, tensors=renamed), record, "model.text_model")
    config = read_config(record.config, checkpoint, LanguageNumbers)
    shape = decoder_shape(config, record, checkpoint.config, checkpoint.problems)
    b = GraphBuilder("decoder", checkpoint)
    head = head_parameter(b, config, "model.text_model.embed_tokens.weight")
    tables = rotary_tables(config, record, shape, checkpoint.problems)
    decode = Decoder(session(decoder(b, "model.text_model", head, shape, tables)))
    raise_all(checkpoint.problems)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    cache = cache_of(model)
    for length in (11, 1, 1):
        embeds = torch.randn(1, length, shape.hidden, generator=generator(length))
        expected = model(inputs_embeds=embeds, past_key_values=cache, use_cache=True).logits[:, -1:].numpy()
        assert np.abs(decode(embeds) - expected).max() < GRAPH_FLOAT32


SCALED = {"factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": CONTEXT // 4}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "llama3": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **SCALED},
    "yarn": {"rope_type": "yarn", **SCALED},
    "yarn with its own scaling": {"rope_type": "yarn", "attention_factor": 1.7, "beta_fast": 16.0, **SCALED},
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
    "long_factor": [float(i) for i in range(8, 16)],
    "original_max_position_embeddings": CONTEXT // 2,
}
PART_OF_LONG_ROPE = LONG_ROPE | {"original_max_position_embeddings": CONTEXT}
QUERIES = {"rope_type": "yarn", "llama_4_scaling_beta": 0.1, **SCALED}
GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0625,
    "logits_scaling": 3.0,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 4}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ernie4_5 untied": ("ernie4_5", {"tie_word_embeddings": False}),
    "ernie4_5 biases, wide heads": ("ernie4_5", {"use_bias": True, "head_dim": 32}),
    "ernie4_5 yarn": ("ernie4_5", {"rope_parameters": ROPES["yarn"]}),
    "gemma3_text untied": ("gemma3_text", {"tie_word_embeddings": False}),
    "gemma3_text scaled by the root of no square": ("gemma3_text", {"hidden_size": 96, "query_pre_attn_scalar": 24}),
    "gemma3_text more layers than a period": ("gemma3_text", {"num_hidden_layers": 7, "layer_types": None}),
    "gemma3_text other period": (
        "gemma3_text",
        {"num_hidden_layers": 4, "layer_types": None, "sliding_window_pattern": 3, "sliding_window": 1},
    ),
    "gemma3_text full layers alone": ("gemma3_text", {"layer_types": ["full_attention"] * 2}),
    "gemma3_text windows alone": ("gemma3_text", {"layer_types": ["sliding_attention"] * 2}),
    "gemma3_text biases, narrow heads": ("gemma3_text", {"attention_bias": True, "head_dim": 16}),
    "gemma3_text silu": ("gemma3_text", {"hidden_activation": "silu"}),
    "gemma3_text exact gelu": ("gemma3_text", {"hidden_activation": "gelu"}),
    "gemma3_text yarn": (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": {"rope_type": "default"}, "full_attention": ROPES["yarn"]}},
    ),
    "gemma3_text old rope settings": (
        "gemma3_text",
        {
            "rope_parameters": None,
            "rope_theta": 5000.0,
            "rope_local_base_freq": 50.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "granite tied": ("granite", GRANITE | {"tie_word_embeddings": True}),
    "granite biases": ("granite", GRANITE | {"attention_bias": True, "mlp_bias": True}),
    "granite without multipliers": ("granite", dict.fromkeys(GRANITE, 1.0)),
    "lfm2 untied": ("lfm2", {"tie_word_embeddings": False}),
    "lfm2 convolution last": ("lfm2", {"layer_types": ["full_attention", "conv"]}),
    "lfm2 biases": ("lfm2", {"conv_bias": True}),
    "lfm2 kernel of two": ("lfm2", {"conv_L_cache": 2}),
    "lfm2 kernel longer than the prompt": (
        "lfm2",
        {"conv_L_cache": 16, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    "lfm2 width as configured": ("lfm2", {"block_auto_adjust_ff_dim": False}),
    "lfm2 width times a factor": ("lfm2", {"block_ffn_dim_multiplier": 1.3, "intermediate_size": 100}),
    "lfm2 indices of attention": ("lfm2", {"layer_types": None, "full_attn_idxs": [1, 3], "num_hidden_layers": 5}),
    "lfm2 yarn": ("lfm2", {"rope_parameters": ROPES["yarn"]}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama long rope": ("llama", {"rope_parameters": LONG_ROPE}),
    "ministral tied": ("ministral", {"tie_word_embeddings": True}),
    "ministral without windows": ("ministral", {"layer_types": ["full_attention"] * 2}),
    "ministral windows everywhere, wide heads": ("ministral", {"layer_types": None, "head_dim": 32}),
    "ministral yarn": ("ministral", {"rope_parameters": ROPES["yarn with its own scaling"]}),
    "ministral3 tied": ("ministral3", {"tie_word_embeddings": True}),
    "ministral3 queries and windows": ("ministral3", {"rope_parameters": QUERIES, "sliding_window": 6}),
    "mistral tied": ("mistral", {"tie_word_embeddings": True, "head_dim": 48}),
    "mistral without windows": ("mistral", {"sliding_window": None}),
    "mistral window of one": ("mistral", {"sliding_window": 1}),
    "mistral llama3": ("mistral", {"rope_parameters": ROPES["llama3"]}),
    "phi3 tied": ("phi3", {"tie_word_embeddings": True}),
    "phi3 window": ("phi3", {"sliding_window": 5}),
    "phi3 one kv head": ("phi3", {"num_key_value_heads": 1}),
    "phi3 multi-head": ("phi3", {"num_key_value_heads": None}),
    "phi3 long rope": ("phi3", {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": CONTEXT // 2}),
    "phi3 first channels": ("phi3", {"hidden_size": 128, "partial_rotary_factor": 0.5}),
    "phi3 first channels of a long rope": (
        "phi3",
        {"hidden_size": 256, "rope_parameters": LONG_ROPE, "partial_rotary_factor": 0.25},
    ),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama heads of their own width": ("llama", {"head_dim": 48}),
    "llama multi-head": ("llama", {"num_key_value_heads": 4}),
    "llama one kv head": ("llama", {"num_key_value_heads": 1}),
    **{f"llama {name}": ("llama", {"rope_parameters": rope}) for name, rope in ROPES.items()},
    "llama old rope settings": (
        "llama",
        {"rope_theta": 500.0, "rope_scaling": {k: v for k, v in ROPES["llama3"].items() if k != "rope_theta"}},
    ),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 window in the upper layers": ("qwen2", WINDOW | {"max_window_layers": 1}),
    "qwen2 window of one": ("qwen2", WINDOW | {"sliding_window": 1, "max_window_layers": 0}),
    "qwen2 window switched off": ("qwen2", {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": ROPES["yarn"]}),
    "qwen2 dynamic": ("qwen2", {"rope_parameters": ROPES["dynamic"]}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3 wide heads and biases": ("qwen3", {"head_dim": 32, "attention_bias": True}),
    "qwen3 layer types": ("qwen3", WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}),
    "smollm3 untied": ("smollm3", {"tie_word_embeddings": False}),
    "smollm3 biases": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    "smollm3 window": ("smollm3", WINDOW),
    "smollm3 interval": ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2, "num_hidden_layers": 4}),
    "smollm3 without positions": ("smollm3", {"no_rope_layers": [0, 0], "head_dim": 24}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", TEXT)
def test_a_text_decoder_stored_in_any_dtype(tmp_path: Path, family: str, dtype: str) -> None:
    directory = save_text(tmp_path / "checkpoint", family, dtype)
    bundle = exported(directory)
    for optimization in OPTIMIZATIONS if dtype == "bfloat16" else ("as written",):
        assert text_difference(directory, bundle, optimization) < GRAPH_FLOAT32


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_a_text_decoder(tmp_path: Path, variant: str) -> None:
    family, changes = VARIANTS[variant]
    directory = save_text(tmp_path / "checkpoint", family, **changes)
    assert text_difference(directory, exported(directory)) < GRAPH_FLOAT32


def _vision_run(directory: Path, bundle: Bundle, images: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return vision_outputs(vision_tower(directory), session(bundle.components["vision"].model), images)


@torch.no_grad()
def vision_outputs(tower: Any, graph: ort.InferenceSession, images: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Outputs of the graph, each with what transformers computes."""
    pixels = torch.randn(images, 3, IMAGE, IMAGE, generator=generator(images))
    if hasattr(tower.config, "num_patches"):
        patches = np.stack([convert_image_to_patches(image, PATCH) for image in pixels.numpy()])
        inputs: dict[str, Any] = {
            "pixel_values": torch.from_numpy(patches),
            "pixel_attention_mask": torch.ones(images, SIDE**2, dtype=torch.int32),
            "spatial_shapes": torch.tensor([[SIDE, SIDE]] * images),
        }
    else:
        inputs = {"pixel_values": pixels}
    expected = tower(**inputs)
    names = [o.name for o in graph.get_outputs()]
    found = graph.run(None, {"pixel_values": pixels.numpy()})
    return [(value, expected[name].numpy()) for name, value in zip(names, found, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", VISION)
def test_a_vision_tower_stored_in_any_dtype(tmp_path: Path, family: str, dtype: str) -> None:
    directory = save_vision(tmp_path / "checkpoint", family, dtype)
    bundle = exported(directory)
    for images in (1, 3):
        outputs = _vision_run(directory, bundle, images)
        assert [value.shape for value, _ in outputs] == [(images, SIDE**2, 48), (images, 48)]
        for value, expected in outputs:
            assert np.abs(value - expected).max() < GRAPH_FLOAT32


VISION_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "no head": ("siglip_vision_model", {"vision_use_head": False}),
    "no head, siglip2": ("siglip2_vision_model", {"vision_use_head": False}),
    "no head in the whole": ("siglip", {"vision_use_head": False}),
    "heads of an odd width": ("siglip", {"hidden_size": 36, "num_attention_heads": 4}),
    "exact gelu": ("siglip2_vision_model", {"hidden_act": "gelu"}),
    "a rest at the edge": ("siglip_vision_model", {"image_size": IMAGE, "patch_size": 9}),
}


@pytest.mark.parametrize("variant", VISION_VARIANTS)
def test_a_variant_of_a_vision_tower(tmp_path: Path, variant: str) -> None:
    family, changes = VISION_VARIANTS[variant]
    directory = save_vision(tmp_path / "checkpoint", family, **changes)
    outputs = _vision_run(directory, exported(directory), 2)
    assert len(outputs) == 2 - (not changes.get("vision_use_head", True))
    for value, expected in outputs:
        assert np.abs(value - expected).max() < GRAPH_FLOAT32


def test_sizes_may_be_pairs(tmp_path: Path) -> None:
    """transformers allows them in a configuration, its model does not."""
    directory = save_vision(tmp_path / "saved", "siglip_vision_model")
    pairs = {"image_size": [IMAGE, IMAGE], "patch_size": [PATCH, PATCH]}
    bundle = exported(changed(directory, tmp_path / "checkpoint", lambda c: c.update(pairs)))
    for value, expected in _vision_run(directory, bundle, 1):
        assert np.abs(value - expected).max() < GRAPH_FLOAT32


def test_a_tower_of_transformers_4_has_a_prefix(tmp_path: Path) -> None:
    directory = save_vision(tmp_path / "checkpoint", "siglip_vision_model")
    tensors = load_file(directory / "model.safetensors")
    save_file({f"vision_model.{name}": t for name, t in tensors.items()}, directory / "model.safetensors")
    for value, expected in _vision_run(directory, exported(directory), 1):
        assert np.abs(value - expected).max() < GRAPH_FLOAT32


def test_a_bias_that_is_not_stored_is_missed(tmp_path: Path) -> None:
    directory = save_vision(tmp_path / "checkpoint", "siglip_vision_model")
    tensors = load_file(directory / "model.safetensors")
    missing = ["encoder.layers.1.mlp.fc2.bias", "head.attention.out_proj.bias", "post_layernorm.bias"]
    save_file({k: v for k, v in tensors.items() if k not in missing}, directory / "model.safetensors")
    with pytest.raises(UserError) as error:
        exported(directory)
    assert sorted(p.cause for p in error.value.problems) == sorted(f"parameter {name} is missing" for name in missing)


def test_the_parity_checks_fail_for_other_weights(tmp_path: Path) -> None:
    one, other = (save_text(tmp_path / str(seed), "llama", seed=seed) for seed in (0, 1))
    assert text_difference(one, exported(other)) > 100 * GRAPH_FLOAT32
    towers = [save_vision(tmp_path / f"vision{seed}", "siglip2", seed=seed) for seed in (0, 1)]
    outputs = _vision_run(towers[0], exported(towers[1]), 1)
    assert min(np.abs(value - expected).max() for value, expected in outputs) > 100 * GRAPH_FLOAT32


@pytest.mark.parametrize("family", TEXT)
def test_what_sets_a_family_apart_is_in_the_graph(tmp_path: Path, family: str) -> None:
    """So the parity above holds it too."""
    graph = exported(save_text(tmp_path / "checkpoint", family)).components["model"].graph
    attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
    rotations = [node.attributes["do_rotary"].as_int() for node in attentions]
    windows = [node.attributes.get_int("local_window_size", 0) for node in attentions]
    scales = {node.attributes["scale"].as_float() for node in attentions}
    biases = [name for name in graph.initializers if name.endswith(".bias")]
    norms = [name for name in graph.initializers if name.endswith(("q_norm.weight", "k_norm.weight"))]
    expected = {
        "gemma3_text": (0, 4, [1, 1], [6, 0], {0.25}),
        "granite": (0, 0, [1, 1], [0, 0], {0.125}),
        "lfm2": (0, 2, [1], [0], {0.25}),
        "ministral": (0, 0, [1, 1], [8, 0], {0.25}),
        "mistral": (0, 0, [1, 1], [8, 8], {0.25}),
        "qwen2": (6, 0, [1, 1], [0, 0], {0.25}),
        "qwen3": (0, 4, [1, 1], [0, 0], {0.25}),
        "smollm3": (0, 0, [1, 0], [0, 0], {0.25}),
    }
    found = len(biases), len(norms), rotations, windows, scales
    assert found == expected.get(family, (0, 0, [1, 1], [0, 0], {0.25}))
    kinds = [n.op_type for n in graph]
    gates = 1 if family == "gemma3_text" else 2  # a gate multiplies, and so does SiLU
    more = {"gemma3_text": 1, "granite": 1, "lfm2": 2}  # the embedding's factor, a convolution's gates
    assert kinds.count("Mul") == 2 * gates + more.get(family, 0)
    assert kinds.count("Gelu") == 2 * (family == "gemma3_text")
    assert kinds.count("RMSNormalization") == 1 + len(norms) + 2 * (4 if family == "gemma3_text" else 2)
    assert kinds.count("CausalConvWithState") == (family == "lfm2")


INT4 = """
schema_version: 1
name: int4
description: every matrix in four bits
rules:
"""


def built(checkpoint: Path, recipe: str) -> BuildResult:
    return build(open_request(checkpoint, "cpu", recipe, checkpoint.parent / "package"))


def int4(checkpoint: Path, block_size: int, *roles: str) -> BuildResult:
    recipe = checkpoint.parent / "int4.yaml"
    rules = [f"  - {{role: {role}, quantize: {{bits: 4, block_size: {block_size}}}}}\n" for role in roles]
    recipe.write_text(INT4 + "".join(rules), "utf-8")
    return built(checkpoint, str(recipe))


def dequantized(result: BuildResult, weights: dict[str, torch.Tensor]) -> None:
    """Put what the package's integers stand for into the parameters that they were made from."""
    assignments = result.plan.assignments
    assert all(a.action is not Action.KEEP for a in assignments)
    stored = {a.weight: weights[a.weight].numpy().copy() for a in assignments}
    for a in assignments:
        levels = SOLVERS[str(a.solver)](stored[a.weight], a.format)
        weights[a.weight].copy_(torch.from_numpy(levels.dequantize(a.in_features)))


def weights_by_projection(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A decoder's parameters under the names that a plan has for them; fused ones as views."""
    weights, config = dict(model.state_dict()), model.config
    for name in [name for name in weights if "qkv_proj" in name or "gate_up_proj" in name]:
        fused = weights.pop(name)
        if "qkv_proj" in name:
            keys = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
            sizes, parts = [fused.shape[0] - 2 * keys, keys, keys], ("q_proj", "k_proj", "v_proj")
        else:
            sizes, parts = [fused.shape[0] // 2] * 2, ("gate_proj", "up_proj")
        views = zip(parts, fused.split(sizes), strict=True)
        weights |= {name.replace(name.split(".")[-2], part): view for part, view in views}
    names = importlib.import_module(f"hvlc.export.families.{config.model_type}").FAMILY.names
    return {graph_name(name, "model", names): value for name, value in weights.items()}


def opened(result: BuildResult, component: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(result.output / result.manifest.components[component].file, options)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", TEXT)
@torch.no_grad()
def test_a_text_decoder_in_four_bits_is_that_of_the_dequantized_weights(
    tmp_path: Path, family: str, tied: bool
) -> None:
    directory = save_text(tmp_path / "checkpoint", family, "bfloat16", tie_word_embeddings=tied)
    result = int4(directory, 32, "decoder", *([] if tied else ["embedding"]))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    graph = opened(result, "model")
    assert logits_difference(model, graph) > 100 * GRAPH_FLOAT32
    dequantized(result, weights_by_projection(model))
    assert logits_difference(model, graph) < GRAPH_FLOAT32
    proto = onnx.load(result.output / "model.onnx", load_external_data=False)
    kinds = [node.op_type for node in proto.graph.node]
    assert ("MatMul" in kinds, kinds.count("GatherBlockQuantized")) == (False, 1)
    places = {
        tensor.name: tuple(sorted((e.key, e.value) for e in tensor.external_data)) for tensor in proto.graph.initializer
    }
    table, head = (
        next(place for name, place in places.items() if name.startswith(start) and ".int4" in name)
        for start in ("model.embed_tokens", "lm_head")
    )
    assert (table == head) is tied


@pytest.mark.parametrize("family", VISION)
@torch.no_grad()
def test_a_vision_tower_in_four_bits_is_that_of_the_dequantized_weights(tmp_path: Path, family: str) -> None:
    directory = save_vision(tmp_path / "checkpoint", family, "float16")
    result = int4(directory, 16, "vision_encoder")
    tower, graph = vision_tower(directory), opened(result, "vision")
    weights = dict(tower.named_parameters())
    rows = weights["head.attention.in_proj_weight"].chunk(3)  # views of the one parameter
    weights |= {f"head.attention.{part}_proj.weight": view for part, view in zip("qkv", rows, strict=True)}
    prefix = "" if family.endswith("_model") else "vision_model."
    dequantized(result, {f"{prefix}{name}": value.data for name, value in weights.items()})
    for value, expected in vision_outputs(tower, graph, 2):
        assert np.abs(value - expected).max() < GRAPH_FLOAT32


GENERATED: dict[str, dict[str, Any]] = {
    "ernie4_5": {"use_bias": True},
    "gemma3_text": {"num_hidden_layers": 7, "layer_types": None, "hidden_size": 96},
    "granite": GRANITE | {"residual_multiplier": 0.7, "embedding_multiplier": 1.5},
    "ministral": {},
    "ministral3": {"rope_parameters": QUERIES | {"original_max_position_embeddings": CONTEXT}},
    "mistral": {"rope_parameters": ROPES["llama3"]},
    "phi3": {"hidden_size": 128, "partial_rotary_factor": 0.5, "rope_parameters": PART_OF_LONG_ROPE},
    "llama": {"rope_parameters": ROPES["llama3"]},
    "qwen2": WINDOW | {"max_window_layers": 1},
    "qwen3": {"tie_word_embeddings": True},
    "smollm3": WINDOW,
}


@pytest.mark.parametrize("family", GENERATED)
@torch.no_grad()
def test_a_built_package_generates_the_tokens_of_transformers(tmp_path: Path, family: str) -> None:
    directory = save_text(tmp_path / "checkpoint", family, "bfloat16", **GENERATED[family])
    result = built(directory, "float32")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    package = LanguageModel(result.output)
    for prompt in ("What?", "Grüße, 你好! " * 2):
        message = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        expected = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        answered = package.answer(prompt, [], encoder="auto", vrc=False, max_new_tokens=24)
        assert list(answered.tokens) == expected.tolist()
        assert answered.prompt_tokens == inputs["input_ids"].shape[1]
        assert len(set(answered.tokens)) > 2


def test_every_family_is_here() -> None:
    assert set(known_families()) == {*TEXT, *VISION, *VISION_LANGUAGE}


def test_the_first_of_a_long_context_is_exported_and_said(tmp_path: Path) -> None:
    directory = save_text(tmp_path / "checkpoint", "qwen3", max_position_embeddings=CONTEXT_LIMIT + 8)
    facts = exported(directory).facts.speaks
    assert (facts.context_length, facts.trained_context_length) == (CONTEXT_LIMIT, CONTEXT_LIMIT + 8)


@pytest.mark.parametrize(
    ("family", "rope"), [("phi3", LONG_ROPE), ("ministral3", QUERIES), ("llama", QUERIES | {"rope_type": "yarn"})]
)
def test_positions_end_where_longer_sequences_are_computed_otherwise(
    tmp_path: Path, family: str, rope: dict[str, Any]
) -> None:
    first = rope["original_max_position_embeddings"]
    settings = {"original_max_position_embeddings": first} if family == "phi3" else {}  # which wins there
    directory = save_text(tmp_path / "checkpoint", family, rope_parameters=rope, **settings)
    facts = exported(directory).facts.speaks
    assert (facts.context_length, facts.trained_context_length) == (first, CONTEXT)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    ids = torch.randint(0, 256, (1, first + 1), generator=generator())
    with torch.no_grad():
        whole, within = model(ids).logits[:, :first], model(ids[:, :first]).logits
    assert bool((whole - within).abs().max() > 100 * GRAPH_FLOAT32) is (family == "phi3")


PAPER: dict[str, Callable[[Path], Path]] = {
    "qwen3 1.7b": lambda path: hollow_text(
        path,
        "qwen3",
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "siglip2 base": lambda path: hollow_vision(
        path,
        "siglip2_vision_model",
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        patch_size=16,
        num_patches=256,
    ),
    "siglip2 large": lambda path: hollow_vision(
        path,
        "siglip_vision_model",
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=16,
        image_size=256,
    ),
}


@pytest.mark.parametrize("size", PAPER)
def test_a_graph_of_paper_size_is_made_without_reading_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    directory = PAPER[size](tmp_path / "checkpoint")

    def read(tensor: StoredTensor) -> np.ndarray:
        raise AssertionError(f"{tensor.name} was read")

    monkeypatch.setattr(StoredTensor, "read", read)
    bundle = exported(directory)
    (component,) = bundle.components.values()
    layers = [n for n in component.graph if n.op_type in ("GroupQueryAttention", "Attention")]
    assert len(layers) == {"qwen3 1.7b": 28, "siglip2 base": 13, "siglip2 large": 25}[size]
    stored = sum(t.nbytes for v in component.graph.initializers.values() if (t := v.const_value) is not None)
    assert stored > 300_000_000


Config = dict[str, Any]
REFUSED: dict[str, tuple[str, Callable[[Config], Any], str]] = {
    "proportional rope": (
        "llama",
        lambda c: c.update(rope_parameters={"rope_type": "proportional", "partial_rotary_factor": 0.5}),
        "export.rope",
    ),
    "a long rope of fewer factors": (
        "llama",
        lambda c: c.update(rope_parameters={**LONG_ROPE, "short_factor": [1.0] * 4}),
        "checkpoint.config",
    ),
    "a long rope of no length": (
        "llama",
        lambda c: c.update(rope_parameters={**LONG_ROPE, "original_max_position_embeddings": 0}),
        "checkpoint.config",
    ),
    "queries that grow from no length on": (
        "ministral3",
        lambda c: c.update(rope_parameters={"rope_type": "default", "llama_4_scaling_beta": 0.1}),
        "checkpoint.config",
    ),
    "a rope of full attention that no table holds": (
        "gemma3_text",
        lambda c: c["rope_parameters"]["full_attention"].update(rope_type="proportional"),
        "export.rope",
    ),
    "a base of windows that is not a number": (
        "gemma3_text",
        lambda c: c["rope_parameters"]["sliding_attention"].update(rope_theta=0),
        "checkpoint.config",
    ),
    "queries that are divided by nothing": (
        "gemma3_text",
        lambda c: c.update(query_pre_attn_scalar=0),
        "checkpoint.config",
    ),
    "an activation of Gemma that is not exported": (
        "gemma3_text",
        lambda c: c.update(hidden_activation="relu"),
        "export.activation",
    ),
    "Gemma's soft-capped logits": ("gemma3_text", lambda c: c.update(final_logit_softcapping=30.0), "export.config"),
    "Gemma's soft-capped scores": ("gemma3_text", lambda c: c.update(attn_logit_softcapping=50.0), "export.config"),
    "tokens that see what follows": (
        "gemma3_text",
        lambda c: c.update(use_bidirectional_attention=True),
        "export.config",
    ),
    "layers of a kind that Gemma has not": (
        "gemma3_text",
        lambda c: c.update(layer_types=["chunked_attention", "full_attention"]),
        "several",  # they have no rotary settings either
    ),
    "fewer kinds than layers of Gemma": (
        "gemma3_text",
        lambda c: c.update(layer_types=["sliding_attention"]),
        None,
    ),
    "windows of no length": ("gemma3_text", lambda c: c.update(sliding_window=None), "checkpoint.config"),
    "norms that Llama has not": ("gemma3_text", lambda c: c.update(model_type="llama"), "checkpoint.surplus"),
    "a rope that Phi-3 has not": ("phi3", lambda c: c.update(rope_parameters={"rope_type": "linear"}), None),
    "few channels rotated": (
        "phi3",
        lambda c: c["rope_parameters"].update(partial_rotary_factor=0.5),
        "export.rope",
    ),
    "a window of nothing for all": ("mistral", lambda c: c.update(sliding_window=0), "checkpoint.config"),
    "layer types that Mistral has not": (
        "mistral",
        lambda c: c.update(layer_types=["sliding_attention", "full_attention"]),
        "export.attention",
    ),
    "multipliers that Llama has not": ("llama", lambda c: c.update(residual_multiplier=0.22), "export.config"),
    "a multiplier that is not a number": ("granite", lambda c: c.update(logits_scaling=0), "checkpoint.config"),
    "biases that are not stored, by ERNIE's switch": (
        "ernie4_5",
        lambda c: c.update(use_bias=True),
        "checkpoint.weights",
    ),
    "a switch for biases that Llama has not": ("llama", lambda c: c.update(use_bias=True), "export.config"),
    "fused rows of another number": ("phi3", lambda c: c.update(num_key_value_heads=1), "checkpoint.weights"),
    "a rope nobody knows": ("qwen2", lambda c: c.update(rope_parameters={"rope_type": "spiral"}), "export.rope"),
    "a part of the head rotated": ("llama", lambda c: c.update(partial_rotary_factor=0.5), "export.rope"),
    "yarn without factor": ("qwen3", lambda c: c.update(rope_parameters={"rope_type": "yarn"}), "checkpoint.config"),
    "another activation": ("qwen3", lambda c: c.update(hidden_act="gelu"), "export.activation"),
    "tensor-parallel sums": ("llama", lambda c: c.update(pretraining_tp=2), "export.config"),
    "soft-capped logits": ("llama", lambda c: c.update(final_logit_softcapping=30.0), "export.config"),
    "a window that Llama has not": ("llama", lambda c: c.update(sliding_window=8), "export.config"),
    "layer types that Llama has not": (
        "llama",
        lambda c: c.update(layer_types=["sliding_attention"] * 2),
        "export.attention",
    ),
    "layer types nobody knows": ("qwen2", lambda c: c.update(layer_types=["full_attention", "moon"]), None),
    "a window of nothing": (
        "qwen3",
        lambda c: c.update(layer_types=["sliding_attention"] * 2, use_sliding_window=False),
        "checkpoint.config",
    ),
    "quantized weights": (
        "llama",
        lambda c: c.update(quantization_config={"quant_method": "awq"}),
        "checkpoint.quantized",
    ),
    "an end that nobody names": ("llama", lambda c: c.update(eos_token_id=None), "checkpoint.config"),
    "other shapes than stored": ("qwen3", lambda c: c.update(intermediate_size=32), "checkpoint.weights"),
    "biases that are not stored": ("llama", lambda c: c.update(attention_bias=True), "checkpoint.weights"),
    "a head that is not stored": ("smollm3", lambda c: c.update(tie_word_embeddings=False), "checkpoint.weights"),
    "fewer layers than stored": (
        "qwen2",
        lambda c: c.update(num_hidden_layers=1, layer_types=None),
        "checkpoint.surplus",
    ),
    "no heads": ("qwen3", lambda c: c.update(num_attention_heads=0), "checkpoint.config"),
    "heads of no width": ("qwen3", lambda c: c.update(head_dim=-16), "checkpoint.config"),
    "angles that are not numbers": ("llama", lambda c: c["rope_parameters"].update(rope_theta=0), "checkpoint.config"),
    "rotation of fewer layers": ("smollm3", lambda c: c.update(no_rope_layers=[1]), "checkpoint.config"),
    "an end outside the vocabulary": ("llama", lambda c: c.update(eos_token_id=[5, 10_000]), "checkpoint.config"),
    "fewer layer types than layers": ("qwen3", lambda c: c.update(layer_types=["full_attention"]), None),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: save_text(root / family, family) for family in TEXT}


def changed(directory: Path, target: Path, change: Callable[[Config], Any]) -> Path:
    """The checkpoint with another configuration; weights are shared."""
    target.mkdir()
    for path in directory.iterdir():
        if path.suffix == ".safetensors":
            (target / path.name).symlink_to(path)
        else:
            shutil.copy(path, target)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    change(config)
    for name in ("config.json", "generation_config.json"):
        (target / name).unlink(missing_ok=True)
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    return target


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_the_numbers_is_refused(saved: dict[str, Path], tmp_path: Path, case: str) -> None:
    family, change, code = REFUSED[case]
    with pytest.raises(UserError) as error:
        exported(changed(saved[family], tmp_path / "checkpoint", change))
    assert error.value.code == (code or "checkpoint.config")
    assert error.value.fix


def test_heads_that_onnxruntime_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiples of 16") as error:
        exported(save_text(tmp_path / "checkpoint", "llama", head_dim=24))
    assert error.value.code == "export.head_size"


def test_a_parameter_without_a_place_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    """transformers would drop the bias with a warning; a Llama that stores one is none."""
    directory = save_text(tmp_path / "biased", "llama", attention_bias=True)
    with pytest.raises(UserError, match=r"q_proj\.bias") as error:
        exported(changed(directory, tmp_path / "checkpoint", lambda c: c.update(attention_bias=False)))
    assert error.value.code == "checkpoint.surplus"
    normed = changed(saved["qwen3"], tmp_path / "normed", lambda c: c.update(model_type="llama"))
    with pytest.raises(UserError, match="q_norm") as error:
        exported(normed)
    assert error.value.code == "checkpoint.surplus"


@pytest.mark.parametrize(
    ("change", "code"),
    [({"model_type": "llama"}, "export.text_model"), ({"hidden_act": "gelu"}, "export.activation")],
)
def test_the_text_model_of_a_hypervl_is_held_to_the_same(
    tiny_checkpoint: Path, tmp_path: Path, change: Config, code: str
) -> None:
    directory = changed(tiny_checkpoint, tmp_path / "checkpoint", lambda c: c["text_config"].update(change))
    with pytest.raises(UserError) as error:
        exported(directory)
    assert error.value.code == code


def test_every_problem_is_found_at_once(saved: dict[str, Path], tmp_path: Path) -> None:
    wrong = {"hidden_act": "gelu", "intermediate_size": 32, "rope_parameters": {"rope_type": "proportional"}}
    with pytest.raises(UserError) as error:
        exported(changed(saved["qwen3"], tmp_path / "checkpoint", lambda c: c.update(wrong)))
    codes = [problem.code for problem in error.value.problems]
    assert set(codes) == {"export.activation", "export.rope", "checkpoint.weights"}
    assert codes.count("checkpoint.weights") == 2 * 3  # gate, up and down of both layers


def test_a_stored_head_wins_over_tying_as_in_transformers(saved: dict[str, Path], tmp_path: Path) -> None:
    directory = changed(saved["llama"], tmp_path / "checkpoint", lambda c: c.update(tie_word_embeddings=True))
    assert text_difference(directory, exported(directory)) < GRAPH_FLOAT32


VISION_REFUSED: dict[str, tuple[str, Callable[[Config], Any], str]] = {
    "images that are not square": ("siglip_vision_model", lambda c: c.update(image_size=[32, 64]), "export.image_size"),
    "patches that are not square": ("siglip2_vision_model", lambda c: c.update(patch_size=[8, 4]), "export.image_size"),
    "no square grid": ("siglip2_vision_model", lambda c: c.update(num_patches=15), "checkpoint.config"),
    "another activation": ("siglip_vision_model", lambda c: c.update(hidden_act="relu"), "export.activation"),
    "heads that do not divide": ("siglip_vision_model", lambda c: c.update(num_attention_heads=5), "checkpoint.config"),
    "fewer layers than stored": ("siglip_vision_model", lambda c: c.update(num_hidden_layers=1), "checkpoint.surplus"),
    "no width": ("siglip_vision_model", lambda c: c.update(hidden_size=0), "checkpoint.config"),
    "quantized weights": (
        "siglip2_vision_model",
        lambda c: c.update(quantization_config={"bits": 4}),
        "checkpoint.quantized",
    ),
}


@pytest.mark.parametrize("case", VISION_REFUSED)
def test_a_vision_tower_that_would_differ_is_refused(tmp_path: Path, case: str) -> None:
    family, change, code = VISION_REFUSED[case]
    directory = save_vision(tmp_path / "saved", family)
    with pytest.raises(UserError) as error:
        exported(changed(directory, tmp_path / "checkpoint", change))
    assert error.value.code == code


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (None, (None, None, None, None)),
        (
            {"image_mean": 0.5, "image_std": [0.1, 0.2, 1], "resample": 2},
            ([0.5] * 3, [0.1, 0.2, 1.0], None, "bilinear"),
        ),
        ({"image_mean": [0.5] * 3, "do_normalize": False, "rescale_factor": 0.5}, (None, None, 0.5, None)),
        ({"image_mean": [0.5] * 2}, None),
        ({"image_std": "x"}, None),
        ({"resample": [2]}, None),
        ({"rescale_factor": "1/255"}, None),
        ([], None),
    ],
)
def test_what_the_image_processor_says(tmp_path: Path, settings: Any, expected: Any) -> None:
    directory = save_vision(tmp_path / "checkpoint", "siglip_vision_model")
    if settings is not None:
        (directory / "preprocessor_config.json").write_text(json.dumps(settings), "utf-8")
    if expected is None:
        with pytest.raises(UserError) as error:
            exported(directory)
        assert error.value.code == "checkpoint.config"
    else:
        tower = exported(directory).facts.tower
        assert tower is not None
        assert (tower.mean, tower.std, tower.rescale_factor, tower.resample) == expected


def test_a_pooling_head_that_is_not_stored_is_missed(tmp_path: Path) -> None:
    directory = save_vision(tmp_path / "saved", "siglip2", vision_use_head=False)
    change = changed(directory, tmp_path / "checkpoint", lambda c: c["vision_config"].update(vision_use_head=True))
    with pytest.raises(UserError, match=r"vision_model\.head\.probe is missing") as error:
        exported(change)
    assert {problem.code for problem in error.value.problems} == {"checkpoint.weights"}
