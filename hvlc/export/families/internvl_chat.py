"""InternVL as OpenGVLab's remote code saves it: other keys and names, the same model as `internvl`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import InternVLConfig

from hvlc.chat.source import read_template
from hvlc.errors import Collector, UserError, nearest
from hvlc.export.families import internvl
from hvlc.export.image_rules import ratio_tiles
from hvlc.export.internvl_names import with_transformers_names
from hvlc.export.prompt_tokens import PromptTokens
from hvlc.export.settings import image_settings
from hvlc.export.vision_language import Rule, vision_language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint

LEFT_OUT = internvl.LEFT_OUT

_IMAGE = "<image>"  # what the remote code replaces
_CONTEXT, _END = "<IMG_CONTEXT>", "<|im_end|>"

#: Keys of the tower's configuration that have the same name in transformers.
_SAME = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "norm_type",
    "hidden_act",
    "layer_norm_eps",
)
#: Keys of config.json that choose how images are read, and the only values that are exported.
_EXPORTED = {"ps_version": "v2", "select_layer": -1, "use_thumbnail": True, "dynamic_image_size": True}
_EPSILON = 1e-6  # of transformers' norms of queries and keys; the remote code takes layer_norm_eps


def read(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as transformers' `internvl` has it: configuration and names.

    Raises:
        UserError: a key is missing or asks for what is not exported, the tokenizer lacks a token, or fused projections
            are damaged.
    """
    original, found = checkpoint.config, Collector()
    parts = {}
    for key in ("vision_config", "llm_config"):
        parts[key] = original.get(key) or {}
        if not isinstance(parts[key], Mapping) or not parts[key]:
            found.problems.append(_refusal("checkpoint.config", f"{key} is missing or is not an object"))
    found.raise_all()
    kind = parts["llm_config"].get("model_type")
    if kind not in internvl.DECODERS:
        cause = f"config.json: llm_config is of model_type {kind!r:.80}"
        found.problems.append(UserError("export.text_model", cause, nearest(str(kind), internvl.DECODERS)))
    for key, value in _EXPORTED.items():
        if original.get(key) != value:
            found.problems.append(
                _refusal("export.config", f"{key} is {original.get(key)!r:.80}, exported is {value!r}")
            )
    vision: dict[str, Any] = {}
    with found:
        vision = _vision_config(original, parts["vision_config"])
    with found:
        tokens = PromptTokens(checkpoint.directory)
        context, end = tokens.ids_of([_CONTEXT, _END])
        config = {
            **original,
            "model_type": InternVLConfig.model_type,
            "architectures": ["InternVLForConditionalGeneration"],
            "vision_config": vision,
            "text_config": _text_config(parts["llm_config"], end),
            "tie_word_embeddings": parts["llm_config"].get("tie_word_embeddings") is True,
            "image_token_id": context,
            "projector_hidden_act": "gelu",
        }
        checkpoint = replace(checkpoint, config=config)
    with found:
        checkpoint = with_transformers_names(checkpoint, internvl.LAYERS)
    found.raise_all()
    return checkpoint


def _refusal(code: str, cause: str) -> UserError:
    return UserError(code, f"config.json: {cause}", "choose a checkpoint of InternVL 3 or 3.5, or correct it")


def _vision_config(original: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The tower's configuration with transformers' keys.

    Raises:
        UserError: a key is missing, or contradicts another one.
    """
    missing = [key for key in (*_SAME, "qkv_bias", "qk_normalization") if stored.get(key) is None]
    if missing:
        raise _refusal("checkpoint.config", f"vision_config has no {', '.join(missing)}")
    forced = original.get("force_image_size")
    if forced not in (None, stored["image_size"]):
        cause = f"force_image_size is {forced!r:.80}, the tower's positions are for {stored['image_size']} pixels"
        raise _refusal("export.image_size", cause)
    if stored["qk_normalization"] and stored["layer_norm_eps"] != _EPSILON:
        cause = f"layer_norm_eps is {stored['layer_norm_eps']} with qk_normalization, exported is {_EPSILON}"
        raise _refusal("export.norm", cause)
    same = {key: stored[key] for key in _SAME}
    biases = {"attention_bias": stored["qkv_bias"], "use_qk_norm": stored["qk_normalization"]}
    return same | biases | {"model_type": "internvl_vision"}


def _text_config(stored: Mapping[str, Any], end: int) -> dict[str, Any]:
    """The decoder's configuration; the remote code ends answers with the end of a turn, whatever it says."""
    named = stored.get("eos_token_id")
    ends = named if isinstance(named, list) else [] if named is None else [named]
    return {**stored, "eos_token_id": [*ends, *([] if end in ends else [end])]}


def _rule(checkpoint: Checkpoint, config: Any) -> Rule:
    """Tiles as the remote code's examples cut them, bounded by config.json, normalized as the processor says.

    Raises:
        UserError: as `ratio_tiles`; or the processor does not say how it normalizes.
    """
    settings, bounds = image_settings(checkpoint.directory), checkpoint.config
    if settings.get("image_mean") is None or settings.get("image_std") is None:
        cause = f"{checkpoint.directory}: the image processor names no image_mean or no image_std"
        raise UserError("checkpoint.processor", cause, "add them to preprocessor_config.json")
    settings |= {"min_patches": bounds.get("min_dynamic_patch") or 1}
    settings |= {"max_patches": bounds.get("max_dynamic_patch") or 12}
    template = read_template(checkpoint.directory)
    placeholder = _IMAGE if template is not None and _IMAGE in template.text else None
    return ratio_tiles(checkpoint, config, settings, internvl.visual_tokens(config), placeholder)


FAMILY = replace(internvl.FAMILY, rule=_rule)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a checkpoint that `read` has renamed; see `vision_language_bundle`."""
    name = checkpoint.config.get("template")
    checkpoint.notes.append(f"chats go through the tokenizer's chat template, not the remote code's {name!r:.80}")
    return vision_language_bundle(checkpoint, FAMILY)
