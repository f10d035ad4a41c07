"""HyperVL: two vision encoders with projectors, resolution compressor, embedding, decoder."""

from pathlib import Path
from typing import Any

import onnx_ir as ir

from hvlc.errors import Collector, UserError
from hvlc.export import siglip
from hvlc.export.decoder import DecoderShape, decoder, embedding
from hvlc.export.families.qwen3 import FAMILY
from hvlc.export.language import decoder_shape, head_parameter, language_facts, rotary_tables, with_table
from hvlc.export.mobilenet import resolution_compressor
from hvlc.export.settings import end_tokens, processor_settings, read_config
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role, Wire
from hvlc.manifest.manifest import Kind
from hvlc.models.hypervl import HyperVLConfig
from hvlc.models.hypervl.configuration import BRANCHES
from hvlc.models.hypervl.numbers import HyperVLNumbers
from hvlc.weights.checkpoint import Checkpoint

_LANGUAGE_MODEL = "model.language_model"
_EMBEDDING = f"{_LANGUAGE_MODEL}.embed_tokens.weight"
_COMPRESSOR = "model.resolution_compressor"
_TOKENS = ("image_token_id", "row_token_id", "vision_start_token_id", "vision_end_token_id")
_CHANNELS = 3


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a HyperVL checkpoint; weights stay in the checkpoint until they are written.

    Raises:
        UserError: the configuration is not a valid HyperVL or weights are missing.
    """
    config = read_config(HyperVLConfig, checkpoint, HyperVLNumbers)
    checkpoint = with_table(checkpoint, config, _EMBEDDING)
    text = config.text_config
    if text.model_type != "qwen3":
        cause = f"config.json: text_config is of model_type {text.model_type!r}"
        raise UserError("export.text_model", cause, "a HyperVL speaks through a Qwen3")
    _check_relations(config)
    shape = decoder_shape(text, FAMILY, checkpoint.config.get("text_config") or {}, checkpoint.problems)
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
    builder = GraphBuilder("decoder", checkpoint)
    head = head_parameter(builder, config, _EMBEDDING)
    tables = rotary_tables(text, FAMILY, shape, checkpoint.problems)
    model = decoder(builder, _LANGUAGE_MODEL, head, shape, tables)
    bundle.add(Component("model", Role.DECODER, model, "model"))
    bundle.wires.append(Wire("embedding.inputs_embeds", "model.inputs_embeds"))
    bundle.facts.update(_facts(checkpoint.directory, config, shape))
    return bundle


def _check_relations(config: HyperVLConfig) -> None:
    """Compare the parts' configurations with each other.

    Raises:
        UserError: a tower contradicts itself, or tokens are outside the vocabulary or the same; all of it at once.
    """
    found = Collector()
    for branch in BRANCHES:
        tower = config.vision_config(branch)
        with found:
            siglip.check_tower(tower)
        if tower.num_channels != _CHANNELS:
            cause = f"config.json: num_channels of {branch}_vision_config is {tower.num_channels}, not {_CHANNELS}"
            found.problems.append(UserError("checkpoint.config", cause, "correct it"))
    ids = {name: getattr(config, name) for name in _TOKENS}
    outside = [f"{name} is {token}" for name, token in ids.items() if token >= config.text_config.vocab_size]
    if outside:
        cause = f"config.json: {', '.join(outside)}, the vocabulary has {config.text_config.vocab_size} tokens"
        found.problems.append(UserError("checkpoint.config", cause, "correct it"))
    if len(set(ids.values())) < len(ids):
        cause = f"config.json: {', '.join(ids)} are {', '.join(map(str, ids.values()))}, expected are four tokens"
        found.problems.append(UserError("checkpoint.config", cause, "correct it"))
    found.raise_all()


def _vision_encoder(checkpoint: Checkpoint, config: HyperVLConfig, branch: str) -> Component:
    """Tower, pixel shuffle and projector: tiles to visual tokens, one static tile shape."""
    vision, tile, hidden = config.vision_config(branch), config.tile_size, config.text_config.hidden_size
    b = GraphBuilder(f"vision_{branch}", checkpoint)
    pixels = b.input("pixel_values", ir.DataType.FLOAT, ["tiles", 3, tile, tile])
    prefix = f"model.branches.{branch}"
    x = siglip.tower(b, pixels, f"{prefix}.tower.", vision)
    x = siglip.pixel_shuffle(b, x, tile // vision.patch_size, config.shuffle_factor, vision.hidden_size)
    x = siglip.linear(b, x, f"{prefix}.projector.linear_1", vision.hidden_size * config.shuffle_factor**2, hidden)
    x = siglip.activation(b, x, config.projector_hidden_act, "projector_hidden_act")
    x = siglip.linear(b, x, f"{prefix}.projector.linear_2", hidden, hidden)
    cells = (tile // config.cell_size) ** 2
    b.output(x, "tile_features", ir.DataType.FLOAT, ["tiles", cells, hidden])
    return Component(f"vision_{branch}", Role.VISION_ENCODER, b.model(), "vision")


def _facts(directory: Path, config: HyperVLConfig, shape: DecoderShape) -> dict[str, Any]:
    """What passes, package and runtime must know besides the graphs."""
    processor = processor_settings(directory, _CHANNELS)
    sizes = {
        "tile_size": config.tile_size,
        "cell_size": config.cell_size,
        "proxy_size": config.resolution_config.proxy_size,
    }
    wrong = [f"{name} is {size}, not {sizes[name]}" for name, size in processor.sizes.items() if size != sizes[name]]
    if wrong:
        cause = f"{directory}: the image processor contradicts config.json: {', '.join(wrong)}"
        raise UserError("checkpoint.config", cause, "save the processor again")
    return {
        "kind": Kind.VISION_LANGUAGE,
        **sizes,
        "max_visual_tokens": processor.max_visual_tokens or config.max_visual_tokens,
        "image_mean": processor.mean or [0.5] * 3,
        "image_std": processor.deviation or [0.5] * 3,
        "min_scale": config.resolution_config.min_scale,
        "scale_step": config.resolution_config.scale_step,
        "default_encoder": config.default_branch,
        "encoders": list(BRANCHES),
        "image_token_id": config.image_token_id,
        "row_token_id": config.row_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "eos_token_id": end_tokens(directory, config.text_config),
        **language_facts(config.text_config, shape),
    }
