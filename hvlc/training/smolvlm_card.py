"""The model card of `smolvlm-nano`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import SmolVLMForConditionalGeneration

from hvlc.models.smolvlm import SmolVLMImageTextProcessor, load_processor, save_processor
from hvlc.training.card import assemble, measured, save, write_record
from hvlc.training.measuring import answer_smolvlm, score

#: Stages in the order of the card.
ORDER = ("read", "answer")


def write(
    model: SmolVLMForConditionalGeneration,
    processor: SmolVLMImageTextProcessor,
    output: Path,
    work: Path,
    count: int = 256,
) -> dict[str, Any]:
    """Save in float16, load what was saved, measure it in float32, and add `README.md` and `scores.json`.

    Args:
        model: what was trained.
        processor: belongs to it.
        output: directory of the checkpoint.
        work: where the stages left their state.
        count: held-out documents to measure on.

    Returns:
        What `scores.json` holds.
    """
    stored = SmolVLMForConditionalGeneration(model.config)
    stored.load_state_dict(model.state_dict())
    save(stored.half(), partial(save_processor, processor), output)
    loaded = SmolVLMForConditionalGeneration.from_pretrained(output, dtype=torch.float32).eval()
    found = score(partial(answer_smolvlm, loaded, load_processor(output)), count=count)
    record = measured([found], work, ORDER)
    write_record(record, render_card(record, model.num_parameters()), output)
    return record


def render_card(record: dict[str, Any], parameters: int) -> str:
    """The model card."""
    return assemble(_HEAD.format(millions=parameters / 1e6), score_lines(record["scores"]), _TRAINING, record)


def score_lines(scores: Sequence[dict[str, Any]]) -> list[str]:
    """Table of the scores of a model with one setting."""
    lines = ["| exact match | 95 % interval | visual tokens | n |", "|---|---|---|---|"]
    for row in scores:
        low, high = row["interval"]
        lines.append(f"| {row['exact']:.1%} | {low:.1%} to {high:.1%} | {row['visual_tokens']:.1f} | {row['count']} |")
    return lines


_HEAD = """\
# smolvlm-nano

A SmolVLM (transformers' `SmolVLMForConditionalGeneration`) of {millions:.2f} million parameters, trained on documents
drawn by `hvlc.zoo.documents`. It is a reference for measuring a compiler on a public architecture, not a reader of real
documents: it knows three fonts at 11 to 17 pixels, some two hundred words and the four kinds of page that the
generator draws.

A tower of four layers of 192 (patches of 8 pixels, tiles of 64), pixel shuffle by 2 to 16 visual tokens a tile, one
linear connector, a Llama of four layers of 192 that shares its embedding with its head. Every document is made
128 pixels long by LANCZOS and stretched to whole tiles: 2 or 4 of them and the overview. Letters come out at
about 9 to 22 pixels per em. A token is a byte or a special token of SmolVLM; the chat template is SmolVLM2's without
the blank after a colon. The file holds float16.

## Scores

Exact match on held-out documents: float32, greedy `generate` through the processor (Pillow), one question a document.

"""

_TRAINING = """
The recipe is `hvlc.training.smolvlm_nano` (`hvlc train smolvlm-nano`). It does not start from scratch: the tower is
that of hypervl-nano's large branch, the decoder its language model with the norms of queries and keys, which a Llama
does not have, folded into the projections at their mean, and the connector is fitted by least squares to the projector
that it replaces. Then read (the tower names the character under each patch of SmolVLM's tiles) and answer (connector
and decoder transcribe and answer packed questions, later the tower with them). `over` is in minutes, on one thread of
a machine that other work shared; values are means over the updates since the report before, on train documents.

"""
