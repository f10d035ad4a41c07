"""genai_config.json of a package whose decoder runs in stages of fixed shapes (onnxruntime-genai 0.18).

`decoder.pipeline` is a list of graphs that hand values on by name. The prompt goes through it in windows; the last one
is padded, and the host reads the logits of the last token that is not padding. Only two types have a pipeline:
`qwen2_5_vl`, which copies the rows of its vision graph's output over the image placeholders of what the first stage
gives, and `decoder-pipeline` for text alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hvlc.errors import UserError
from hvlc.graphs.builder import LAST_INDEX, MOST_TOKENS
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.facts import Facts
from hvlc.graphs.placement import Phase
from hvlc.inputs.documents import read_json
from hvlc.inputs.tokenizer import chat_template, opening_tokens
from hvlc.manifest.manifest import HOST_FEATURES
from hvlc.package.genai import configuration, decoder_facts, session, session_entries

_VISION_TYPE, _TEXT_TYPE = "qwen2_5_vl", "decoder-pipeline"
_HEAD_OUTPUT = "logits"
_CODE = "checkpoint.tokenizer"


def stages(bundle: Bundle) -> list[Component]:
    """The embedding and the parts of a decoder of fixed shapes, in the order they run; none of another decoder."""
    found = [c for c in bundle.components.values() if c.role in (Role.EMBEDDING, Role.DECODER)]
    return found if any(c.phase is not Phase.ALWAYS for c in found) else []


def chunk_of(components: list[Component]) -> int:
    """Tokens of the prompt that run at once."""
    first = next(c for c in components if c.phase is Phase.PROMPT)
    _, tokens, *_ = first.graph.inputs[0].shape or (None, 0)
    return int(str(tokens))


def staged_config(bundle: Bundle, files: Mapping[str, str], tokenizer: Path) -> dict[str, Any]:
    """The configuration as a JSON value.

    Args:
        bundle: with a decoder of fixed shapes.
        files: file name of each component.
        tokenizer: directory of its files.

    Raises:
        UserError: a file of the tokenizer cannot be read.
    """
    text = replace(bundle.facts.speaks, pad_token_id=padding_token(tokenizer, bundle.facts))
    facts = replace(bundle.facts, text=text)
    components = stages(bundle)
    inputs = {
        "input_ids": "input_ids",
        "inputs_embeds": "inputs_embeds",
        "past_sequence_length": LAST_INDEX,
        "total_sequence_length": MOST_TOKENS,
    }
    decoder = {
        **decoder_facts(facts, inputs, {}),
        "sliding_window": {
            "window_size": chunk_of(components),
            "pad_value": 0,
            "alignment": "left",
            "slide_key_value_cache": False,
        },
        "pipeline": [{c.name: _stage(c, files[c.name]) for c in components}],
    }
    kind, vision = (_VISION_TYPE, _vision(facts, files)) if facts.image else (_TEXT_TYPE, {})
    return configuration(kind, facts, {"decoder": decoder, **vision})


def padding_token(tokenizer: Path, facts: Facts) -> int:
    """An id with which windows are filled: one that prompts do not hold, because the first of it ends the prompt.

    That is a row of the vocabulary for which the tokenizer has no token; else an added token that no template writes
    and that has no other meaning; else what the checkpoint pads with.

    Args:
        tokenizer: directory of its files.
        facts: the bundle's facts.

    Raises:
        UserError: a file cannot be read.
    """
    added, known = _tokens(tokenizer / "tokenizer.json")
    text = facts.speaks
    if known < text.vocab_size:
        return text.vocab_size - 1
    template = chat_template(tokenizer, _CODE) or ""
    used: set[int | None] = {*text.end_tokens, *(facts.image.special_ids if facts.image else ())}
    used |= {text.bos_token_id} if "bos_token" in template else set(opening_tokens(tokenizer, _CODE))
    free = [token for token, text in added.items() if token not in used and text not in template]
    pad = text.pad_token_id
    fallback = pad if pad is not None else min(token for token in used if token is not None)
    return int(pad if pad in free else next(iter(free), fallback))


def _tokens(path: Path) -> tuple[dict[int, str], int]:
    """Texts of the added tokens by id, and one more than the largest id of all tokens.

    Raises:
        UserError: the file cannot be read.
    """
    content = read_json(path, _CODE)
    try:
        added = {int(token["id"]): str(token["content"]) for token in content["added_tokens"]}
        vocabulary = content["model"]["vocab"]
        own = max(vocabulary.values(), default=-1) + 1 if isinstance(vocabulary, dict) else len(vocabulary)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(_CODE, f"{path} is not a tokenizer: {error}", "save the tokenizer again") from error
    return added, max(own, *(number + 1 for number in added), 0)


def _stage(component: Component, file: str) -> dict[str, Any]:
    outputs = [str(value.name) for value in component.graph.outputs]
    return {
        "filename": file,
        "inputs": [str(value.name) for value in component.graph.inputs],
        "outputs": outputs,
        "run_on_prompt": component.phase is not Phase.TOKEN,
        "run_on_token_gen": component.phase is not Phase.PROMPT,
        "is_lm_head": _HEAD_OUTPUT in outputs,
        "session_options": {**session_entries(component), **session()},
    }


def _vision(facts: Facts, files: Mapping[str, str]) -> dict[str, Any]:
    """The graph that hands on what the host has computed: the type knows one input of it, by the name of pixels."""
    return {
        "image_token_id": facts.sees.image_token_id,
        "vision_start_token_id": facts.sees.start_token_id,
        "vision": {
            "filename": files["vision"],
            "inputs": {"pixel_values": HOST_FEATURES},
            "outputs": {"image_features": "image_features"},
            "session_options": {"session.disable_prepacking": "1", **session()},
        },
    }
