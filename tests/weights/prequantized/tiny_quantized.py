"""Small Llamas in every format that another tool may have quantized them to, and the float model they stand for.

Levels, scales and zero points are drawn at random, so that no value is special. Everything is written from the formats'
definitions: packing is a loop over words and bits, and ggml's blocks are bytes drawn at random.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from hvlc.training.tokenizer import SPECIAL_TOKENS, VOCABULARY_SIZE, build_nano_tokenizer, special_token_id

HIDDEN, LAYERS, HEADS, KV_HEADS, WIDTH = 256, 1, 4, 2, 64
#: transformers' names of the linears of a layer, ggml's, and their shapes.
LINEARS: dict[str, tuple[str, tuple[int, int]]] = {
    "self_attn.q_proj": ("attn_q", (HEADS * WIDTH, HIDDEN)),
    "self_attn.k_proj": ("attn_k", (KV_HEADS * WIDTH, HIDDEN)),
    "self_attn.v_proj": ("attn_v", (KV_HEADS * WIDTH, HIDDEN)),
    "self_attn.o_proj": ("attn_output", (HIDDEN, HEADS * WIDTH)),
    "mlp.gate_proj": ("ffn_gate", (512, HIDDEN)),
    "mlp.up_proj": ("ffn_up", (512, HIDDEN)),
    "mlp.down_proj": ("ffn_down", (HIDDEN, 512)),
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}

Weights = dict[str, np.ndarray]


def config(**changes: Any) -> LlamaConfig:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": 512,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 96,
        "eos_token_id": special_token_id("<|im_end|>"),
        "pad_token_id": special_token_id("<|endoftext|>"),
        "bos_token_id": special_token_id("<|endoftext|>"),
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**(settings | changes))


def float_model(weights: Weights, settings: LlamaConfig) -> LlamaForCausalLM:
    """transformers' model of dequantized weights."""
    model = LlamaForCausalLM(settings).eval()
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()}, strict=False)
    model.tie_weights()
    return model


def norms(random: np.random.Generator) -> Weights:
    names = [f"model.layers.{layer}.{name}.weight" for layer in range(LAYERS) for name in NORMS]
    drawn = {name: 1 + random.normal(0, 0.2, HIDDEN) for name in [*names, "model.norm.weight"]}
    return {name: value.astype(np.float32) for name, value in drawn.items()}


def half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16)


# --- GPTQ and AWQ -------------------------------------------------------------------------------------------------


def packed(rows: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 words of unsigned fields along the last axis; `order` names the field at each place of a word."""
    fields = 32 // bits
    places = order or tuple(range(fields))
    words = np.zeros((rows.shape[0], rows.shape[1] // fields), np.uint64)
    for column in range(words.shape[1]):
        for place, field in enumerate(places):
            words[:, column] |= rows[:, column * fields + field].astype(np.uint64) << np.uint64(place * bits)
    return words.astype(np.uint32).view(np.int32)


def grouped_layer(
    random: np.random.Generator,
    shape: tuple[int, int],
    bits: int,
    group: int,
    *,
    awq: bool = False,
    symmetric: bool = False,
    less_one: bool = True,
    shuffled: bool = False,
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """The stored tensors of one layer, its float weight `[out, in]`, and the levels, zeros and scales behind them."""
    out, into = shape
    size = into if group == -1 else group
    groups = -(-into // size)
    levels = random.integers(0, 2**bits, (into, out))
    zeros = random.integers(1, 2**bits, (groups, out))
    if symmetric:
        zeros[:] = 2 ** (bits - 1)
    scales = half(random.uniform(0.5, 1.5, (groups, out)) * into**-0.5 / 2 ** (bits - 2))
    index = np.arange(into) // size
    if shuffled:
        random.shuffle(index)
    weight = np.zeros(shape, np.float64)
    for column, g in enumerate(index):
        weight[:, column] = (levels[column] - zeros[g]) * scales[g].astype(np.float64)
    stored = {"scales": scales}
    if awq:
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        stored |= {"qweight": packed(levels, bits, order), "qzeros": packed(zeros, bits, order)}
    else:
        stored |= {
            "qweight": packed(levels.T, bits).T.copy(),
            "qzeros": packed(zeros - less_one, bits),
            "g_idx": index.astype(np.int32),
        }
    return stored, weight.astype(np.float32), {"levels": levels, "zeros": zeros, "scales": scales}


def save_grouped(directory: Path, quantization: dict[str, Any], seed: int = 0, **options: Any) -> Weights:
    """A Llama whose linears are GPTQ or AWQ; returns its float weights."""
    random = np.random.default_rng(seed)
    weights = norms(random)
    stored = dict(weights)
    table = random.normal(0, 0.05, (VOCABULARY_SIZE, HIDDEN)).astype(np.float32)
    weights["model.embed_tokens.weight"] = stored["model.embed_tokens.weight"] = table
    for layer in range(LAYERS):
        for name, (_, shape) in LINEARS.items():
            path = f"model.layers.{layer}.{name}"
            bits, group = quantization["bits"], quantization["group_size"]
            tensors, weights[f"{path}.weight"], _ = grouped_layer(random, shape, bits, group, **options)
            stored |= {f"{path}.{leaf}": value for leaf, value in tensors.items()}
    directory.mkdir()
    save_file({name: torch.tensor(value) for name, value in stored.items()}, directory / "model.safetensors")
    settings = config()
    settings.quantization_config = quantization
    settings.save_pretrained(directory)
    build_nano_tokenizer().save_pretrained(directory)
    return weights


# --- GGUF ---------------------------------------------------------------------------------------------------------

#: Byte offsets of the float16 numbers of a block, and how large they are for weights of about 1 / 16.
_HALVES: dict[str, dict[int, float]] = {
    "Q4_0": {0: 0.01},
    "Q4_1": {0: 0.01, 2: -0.075},
    "Q5_0": {0: 0.005},
    "Q5_1": {0: 0.005, 2: -0.075},
    "Q8_0": {0: 0.0006},
    "Q2_K": {80: 0.006, 82: 0.008},
    "Q3_K": {108: 0.0012},
    "Q4_K": {0: 0.0003, 2: 0.0022},
    "Q5_K": {0: 0.00015, 2: 0.0022},
    "Q6_K": {208: 0.00003},
    "IQ4_NL": {0: 0.0008},
}
KINDS = tuple(_HALVES)


def random_blocks(random: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """Rows of ggml's blocks, uint8 `[rows, bytes]`: any bytes are a block, with float16 numbers of a plain size."""
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (shape[0], shape[1] // values, size), dtype=np.uint8)
    for start, scale in _HALVES[kind].items():
        numbers = half(scale * random.uniform(0.5, 1.5, blocks.shape[:2]))
        blocks[..., start : start + 2] = numbers[..., None].view(np.uint8)
    return blocks.reshape(shape[0], -1)


def blocks_with_whole_minima(random: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """Q4_1 or Q5_1 whose minima are 0 to 15 scales of few bits, which float16 holds: uint8 `[rows, bytes]`."""
    raw = random_blocks(random, kind, shape)
    blocks = raw.reshape(raw.size // gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1], -1)
    scales = (random.integers(1, 64, len(blocks)) / 4096).astype(np.float16)
    minima = (-random.integers(0, 16, len(blocks)) * scales.astype(np.float64)).astype(np.float16)
    blocks[:, :2], blocks[:, 2:4] = (part.reshape(-1, 1).view(np.uint8) for part in (scales, minima))
    return raw


def unrotated(rows: np.ndarray, heads: int) -> np.ndarray:
    """transformers' order of the rows that llama.cpp's converter interleaved (`LlamaModel.permute`), by loops."""
    half_head = len(rows) // heads // 2
    restored = np.empty_like(rows)
    for head in range(heads):
        for part in range(2):
            for place in range(half_head):
                restored[(head * 2 + part) * half_head + place] = rows[(head * half_head + place) * 2 + part]
    return restored


def save_gguf(
    path: Path,
    kind: str,
    seed: int = 0,
    *,
    table: str = "Q8_0",
    draw: Callable[[np.random.Generator, str, tuple[int, int]], np.ndarray] = random_blocks,
    edit: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Weights:
    """A Llama in one GGUF file, its tokenizer inside; returns its float weights under transformers' names."""
    random = np.random.default_rng(seed)
    weights = norms(random)
    writer = gguf.GGUFWriter(path, "llama")
    _write_metadata(writer)
    edit(writer)
    for layer in range(LAYERS):
        for ours, theirs in NORMS.items():
            name = f"model.layers.{layer}.{ours}.weight"
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weights[name])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    matrices = {"model.embed_tokens": ("token_embd", (VOCABULARY_SIZE, HIDDEN), table)}
    for layer in range(LAYERS):
        for ours, (theirs, shape) in LINEARS.items():
            matrices[f"model.layers.{layer}.{ours}"] = (f"blk.{layer}.{theirs}", shape, kind)
    for name, (stored_name, shape, type_name) in matrices.items():
        number = gguf.GGMLQuantizationType[type_name]
        if type_name == "F16":
            blocks = half(random.normal(0, 0.06, shape))
            writer.add_tensor(f"{stored_name}.weight", blocks)
        else:
            blocks = (draw if type_name == kind else random_blocks)(random, type_name, shape)
            writer.add_tensor(f"{stored_name}.weight", blocks, raw_dtype=number)
        values = blocks.astype(np.float32) if type_name == "F16" else gguf.dequantize(blocks, number)
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(stored_name.rpartition(".")[2])
        weights[f"{name}.weight"] = unrotated(values, heads) if heads else values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _write_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(96)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(512)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    vocabulary = build_nano_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    tokens[255] = "ab"  # in place of a byte that no text has
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(special_token_id("<|endoftext|>"))
    writer.add_eos_token_id(special_token_id("<|im_end|>"))
    writer.add_pad_token_id(special_token_id("<|endoftext|>"))
