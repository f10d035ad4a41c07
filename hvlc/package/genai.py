"""genai_config.json of a package (onnxruntime-genai 0.18).

With host-run vision encoders, `type: gemma3` selects the plain vision state: one run, one-dimensional positions,
rewind works, and no token id is baked in; `qwen2_5_vl` is the same with positions that follow the grids of images, and
`lfm2_vl` for decoders with states of convolutions, which it refuses to rewind.
`hidden_size` is read for the widths of `inputs_embeds` and `image_features` alone. A text decoder has the type of its
family (`TEXT_TYPES`). Unknown keys below the root are errors there; unknown scalars at the root are not.
"""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Component, Role
from hvlc.graphs.facts import Facts, TextFacts
from hvlc.graphs.placement import Provider
from hvlc.graphs.states import CONVOLUTION, PAST, PRESENT
from hvlc.manifest.manifest import FLOAT_PRODUCTS, HOST_FEATURES, MANIFEST
from hvlc.opening.configuration import TEXT_TYPES

_VISION_TYPE, _GRID_TYPE, _TYPE_WITH_STATES = "gemma3", "qwen2_5_vl", "lfm2_vl"


def passthrough(width: int, reason: str = "") -> Component:
    """The vision graph that genai runs: the host has already computed the visual tokens.

    Args:
        width: of a visual token.
        reason: why it runs on the CPU.
    """
    b = GraphBuilder("vision")
    features = b.input(HOST_FEATURES, ir.DataType.FLOAT, ["visual_tokens", width])
    b.output(b.op("Identity", features), "image_features", ir.DataType.FLOAT, ["visual_tokens", width])
    return Component("vision", Role.VISION_ROUTER, b.model(), "front", reason=reason)


def genai_config(
    model_type: str,
    facts: Facts,
    files: Mapping[str, str],
    entries: Mapping[str, str],
    provider: Provider | None = None,
) -> dict[str, Any]:
    """The configuration as a JSON value.

    Args:
        model_type: of the checkpoint; the type of a text decoder.
        facts: the bundle's facts.
        files: file name of each component.
        entries: session options of the decoder (`session_entries`).
        provider: of the decoder.
    """
    image = facts.image
    model = {
        "decoder": _decoder(facts, files["model"], "inputs_embeds" if image else "input_ids", entries, provider),
        **(_vision(facts, files) if image else {}),
    }
    if image is None:
        return configuration(TEXT_TYPES[model_type], facts, model)
    plain = _VISION_TYPE if facts.speaks.rewinds else _TYPE_WITH_STATES
    return configuration(_GRID_TYPE if image.grid_positions else plain, facts, model)


def configuration(kind: str, facts: Facts, model: Mapping[str, Any]) -> dict[str, Any]:
    """Entries that every configuration has.

    Args:
        kind: onnxruntime-genai's name of the type.
        facts: the bundle's facts.
        model: what this type has besides.
    """
    text = facts.speaks
    first_eos = text.end_tokens[0]
    return {
        "model": {
            "type": kind,
            "bos_token_id": first_eos if text.bos_token_id is None else text.bos_token_id,
            "eos_token_id": text.eos_token_id,
            "pad_token_id": first_eos if text.pad_token_id is None else text.pad_token_id,
            "vocab_size": text.vocab_size,
            "context_length": text.context_length,
            **model,
        },
        "search": {
            "max_length": text.context_length,
            "do_sample": False,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "top_k": 50,
            "top_p": 1.0,
            "temperature": 1.0,
        },
        "vlm_manifest": MANIFEST,
    }


def session(provider: Provider | None = None) -> dict[str, Any]:
    """Options of a session. Said for every graph: one without its own would inherit the decoder's."""
    return {"provider_options": [{provider.name: dict(provider.options)}] if provider else []}


def session_entries(component: Component) -> dict[str, str]:
    """Session options without which the graph does not compute what it says: see `FLOAT_PRODUCTS`."""
    rows = [n for n in component.graph if n.op_type == "DequantizeLinear" and "block_size" not in n.attributes]
    fused = any(node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.INT8 for node in rows)
    return dict([FLOAT_PRODUCTS]) if fused else {}


def _decoder(
    facts: Facts, file: str, reads: str, entries: Mapping[str, str], provider: Provider | None
) -> dict[str, Any]:
    names = (reads, "attention_mask", *(["position_ids"] if facts.image and facts.image.grid_positions else []))
    return {"filename": file, **decoder_facts(facts, {name: name for name in names}, entries, provider)}


def decoder_facts(
    facts: Facts, inputs: Mapping[str, str], entries: Mapping[str, str], provider: Provider | None = None
) -> dict[str, Any]:
    """Dimensions of a decoder, names of its inputs and outputs, and the options of its session.

    Args:
        facts: the bundle's facts.
        inputs: what it reads besides the KV cache.
        entries: session options (`session_entries`).
        provider: of its session.
    """
    text = facts.speaks
    states, past, present = _states(text)
    return {
        "head_size": text.head_size,
        "hidden_size": facts.embedding_width,  # the runtime's only use of it
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": text.num_kv_heads,
        **states,
        "session_options": {"log_id": "onnxruntime-genai", **entries, **session(provider)},
        "inputs": {
            **inputs,
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
            **past,
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
            **present,
        },
    }


def _states(text: TextFacts) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Kinds of the layers where some have a convolution, and the names of its state before and after."""
    short = text.convolution
    if short is None:
        return {}, {}, {}
    kinds = ["conv" if index in short.layers else "full_attention" for index in range(text.num_layers)]
    past, present = (f"{start}%d.{CONVOLUTION}" for start in (PAST, PRESENT))
    entries = {"layer_types": kinds, "conv_cache_size": short.positions}
    return entries, {"past_conv_names": past}, {"present_conv_names": present}


def _vision(facts: Facts, files: Mapping[str, str]) -> dict[str, Any]:
    """Entries of a model that sees besides the decoder's."""
    grids = facts.sees.grid_positions
    return {
        "image_token_id": facts.sees.image_token_id,
        **({"vision_start_token_id": facts.sees.start_token_id} if grids else {}),
        "vision": {
            "filename": files["vision"],
            "inputs": {"pixel_values": "pixel_values"},
            "outputs": {"image_features": "image_features"},
            **({"spatial_merge_size": 1} if grids else {}),  # grids count visual tokens
            "session_options": {"session.disable_prepacking": "1", **session()},
        },
        "embedding": {
            "filename": files["embedding"],
            "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
            "outputs": {"inputs_embeds": "inputs_embeds"},
            "session_options": session(),
        },
    }
