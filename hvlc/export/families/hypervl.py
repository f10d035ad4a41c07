"""HyperVL: two vision encoders with projectors, resolution compressor, embedding, decoder."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from huggingface_hub.errors import StrictDataclassError
from optimum.utils import NormalizedConfigManager
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from hvlc.bundle import Bundle, Component, Role, Wire
from hvlc.checkpoint import Checkpoint, read_json
from hvlc.errors import UserError
from hvlc.export import siglip
from hvlc.export.decoder import DecoderShape, decoder, embedding
from hvlc.export.mobilenet import resolution_compressor
from hvlc.graph import GraphBuilder
from hvlc.models.hypervl import HyperVLConfig
from hvlc.models.hypervl.configuration import BRANCHES

_LANGUAGE_MODEL = "model.language_model"
_EMBEDDING = f"{_LANGUAGE_MODEL}.embed_tokens.weight"
_COMPRESSOR = "model.resolution_compressor"
_CONTEXT_LIMIT = 32768


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a HyperVL checkpoint; weights stay in the checkpoint until they are written.

    Raises:
        UserError: the configuration is not a valid HyperVL or weights are missing.
    """
    try:
        config = HyperVLConfig.from_dict(dict(checkpoint.config))
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        cause = f"{checkpoint.directory}: {error.__cause__ or error}"
        raise UserError("checkpoint.config", cause, "correct config.json") from error
    shape = _decoder_shape(config)
    bundle = Bundle("hypervl")
    for branch in BRANCHES:
        bundle.add(_vision_encoder(checkpoint, config, branch))
    vrc = config.resolution_config
    builder = GraphBuilder("resolution", checkpoint)
    model = resolution_compressor(builder, _COMPRESSOR, vrc.proxy_size, vrc.layer_norm_eps)
    bundle.add(Component("resolution", Role.FRONT, model, "front"))
    builder = GraphBuilder("embedding", checkpoint)
    model = embedding(builder, _EMBEDDING, shape.vocabulary, shape.hidden, config.image_token_id)
    bundle.add(Component("embedding", Role.EMBEDDING, model, "model"))
    head = _EMBEDDING if config.tie_word_embeddings else "lm_head.weight"
    model = decoder(GraphBuilder("decoder", checkpoint), _LANGUAGE_MODEL, head, shape, _rotary(config, shape))
    bundle.add(Component("model", Role.DECODER, model, "model"))
    bundle.wires.append(Wire("embedding.inputs_embeds", "model.inputs_embeds"))
    bundle.facts.update(_facts(checkpoint.directory, config, shape))
    return bundle


def _decoder_shape(config: HyperVLConfig) -> DecoderShape:
    """Dimensions through optimum's normalized view, whatever the architecture calls them."""
    text = config.text_config
    normalized = NormalizedConfigManager.get_normalized_config_class(text.model_type)(text)
    heads = normalized.num_attention_heads
    return DecoderShape(
        layers=normalized.num_layers,
        hidden=normalized.hidden_size,
        intermediate=text.intermediate_size,
        heads=heads,
        kv_heads=normalized.num_key_value_heads,
        head_size=getattr(text, "head_dim", None) or normalized.hidden_size // heads,
        vocabulary=normalized.vocab_size,
        epsilon=text.rms_norm_eps,
        context=min(text.max_position_embeddings, _CONTEXT_LIMIT),
    )


def _rotary(config: HyperVLConfig, shape: DecoderShape) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine tables float32 `[context, head_size / 2]`, with transformers' own frequencies."""
    rotary = Qwen3RotaryEmbedding(config=config.text_config)
    positions = torch.arange(shape.context).float()
    angles = torch.outer(positions, rotary.inv_freq.float())
    scaling = rotary.attention_scaling
    return (angles.cos() * scaling).numpy(), (angles.sin() * scaling).numpy()


def _vision_encoder(checkpoint: Checkpoint, config: HyperVLConfig, branch: str) -> Component:
    """Tower, pixel shuffle and projector: tiles to visual tokens, one static tile shape."""
    vision, tile, hidden = config.vision_config(branch), config.tile_size, config.text_config.hidden_size
    b = GraphBuilder(f"vision_{branch}", checkpoint)
    pixels = b.input("pixel_values", ir.DataType.FLOAT, ["tiles", 3, tile, tile])
    prefix = f"model.branches.{branch}"
    x = siglip.tower(b, pixels, f"{prefix}.tower", vision)
    x = siglip.pixel_shuffle(b, x, tile // vision.patch_size, config.shuffle_factor, vision.hidden_size)
    x = b.linear(x, f"{prefix}.projector.linear_1", vision.hidden_size * config.shuffle_factor**2, hidden)
    x = siglip.activation(b, x, config.projector_hidden_act)
    x = b.linear(x, f"{prefix}.projector.linear_2", hidden, hidden)
    cells = (tile // config.cell_size) ** 2
    b.output(x, "tile_features", ir.DataType.FLOAT, ["tiles", cells, hidden])
    return Component(f"vision_{branch}", Role.VISION_ENCODER, b.model(), "vision")


def _facts(directory: Path, config: HyperVLConfig, shape: DecoderShape) -> dict[str, Any]:
    """What passes, package and runtime must know besides the graphs."""
    processor = _processor_settings(directory)
    generation = directory / "generation_config.json"
    eos = (read_json(generation, "checkpoint.config") if generation.is_file() else {}).get("eos_token_id")
    text = config.text_config
    return {
        "tile_size": config.tile_size,
        "cell_size": config.cell_size,
        "max_visual_tokens": processor.get("max_visual_tokens", config.max_visual_tokens),
        "image_mean": processor.get("image_mean", [0.5] * 3),
        "image_std": processor.get("image_std", [0.5] * 3),
        "proxy_size": config.resolution_config.proxy_size,
        "min_scale": config.resolution_config.min_scale,
        "scale_step": config.resolution_config.scale_step,
        "default_encoder": config.default_branch,
        "encoders": list(BRANCHES),
        "image_token_id": config.image_token_id,
        "row_token_id": config.row_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "eos_token_id": eos if eos is not None else text.eos_token_id,
        "pad_token_id": text.pad_token_id,
        "bos_token_id": text.bos_token_id,
        "tied_embeddings": config.tie_word_embeddings,
        "hidden_size": shape.hidden,
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
        "head_size": shape.head_size,
        "vocab_size": shape.vocabulary,
        "context_length": shape.context,
    }


def _processor_settings(directory: Path) -> dict[str, Any]:
    """The image processor's saved settings, wherever this transformers version put them."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (directory / name).is_file():
            settings = read_json(directory / name, "checkpoint.config")
            return settings.get("image_processor", settings)
    return {}
