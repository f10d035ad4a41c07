"""genai_config.json of a package (onnxruntime-genai 0.18).

With host-run vision encoders, `type: gemma3` selects the plain vision state: one run, one-dimensional positions,
rewind works, and no token id is baked in. A text decoder has the type of its family (`TEXT_TYPES`). Unknown keys below
the root are errors there; unknown scalars at the root are not.
"""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Component, Role
from hvlc.graphs.facts import Facts
from hvlc.graphs.placement import Provider
from hvlc.manifest.manifest import FLOAT_PRODUCTS, HOST_FEATURES, MANIFEST
from hvlc.opening.configuration import TEXT_TYPES

_VISION_TYPE = "gemma3"


def passthrough(hidden_size: int, reason: str = "") -> Component:
    """The vision graph that genai runs: the host has already computed the visual tokens.

    Args:
        hidden_size: width of a visual token.
        reason: why it runs on the CPU.
    """
    b = GraphBuilder("vision")
    features = b.input(HOST_FEATURES, ir.DataType.FLOAT, ["visual_tokens", hidden_size])
    b.output(b.op("Identity", features), "image_features", ir.DataType.FLOAT, ["visual_tokens", hidden_size])
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
    sees = facts.image is not None
    model = {
        "decoder": _decoder(facts, files["model"], "inputs_embeds" if sees else "input_ids", entries, provider),
        **(_vision(facts, files) if sees else {}),
    }
    return configuration(_VISION_TYPE if sees else TEXT_TYPES[model_type], facts, model)


def configuration(kind: str, facts: Facts, model: Mapping[str, Any]) -> dict[str, Any]:
    """What every configuration has.

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
    """What a session has to be told so that the graph computes what it says: see `FLOAT_PRODUCTS`."""
    rows = [n for n in component.graph if n.op_type == "DequantizeLinear" and "block_size" not in n.attributes]
    fused = any(node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.INT8 for node in rows)
    return dict([FLOAT_PRODUCTS]) if fused else {}


def _decoder(
    facts: Facts, file: str, reads: str, entries: Mapping[str, str], provider: Provider | None
) -> dict[str, Any]:
    return {
        "filename": file,
        **decoder_facts(facts, {reads: reads, "attention_mask": "attention_mask"}, entries, provider),
    }


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
    return {
        "head_size": text.head_size,
        "hidden_size": text.hidden_size,
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": text.num_kv_heads,
        "session_options": {"log_id": "onnxruntime-genai", **entries, **session(provider)},
        "inputs": {
            **inputs,
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _vision(facts: Facts, files: Mapping[str, str]) -> dict[str, Any]:
    """What a model that sees has besides the decoder."""
    return {
        "image_token_id": facts.sees.image_token_id,
        "vision": {
            "filename": files["vision"],
            "inputs": {"pixel_values": "pixel_values"},
            "outputs": {"image_features": "image_features"},
            "session_options": {"session.disable_prepacking": "1", **session()},
        },
        "embedding": {
            "filename": files["embedding"],
            "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
            "outputs": {"inputs_embeds": "inputs_embeds"},
            "session_options": session(),
        },
    }
