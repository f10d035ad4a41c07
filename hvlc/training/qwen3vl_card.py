"""The model card of `qwen3vl-nano`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2VLImageProcessorPil,
    Qwen3VLForConditionalGeneration,
)

from hvlc.models.processors import load_processor
from hvlc.training.card import assemble, measured, save, write_record
from hvlc.training.measuring import answer_qwen3vl, score
from hvlc.training.smolvlm_card import score_lines

#: Stages in the order of the card.
ORDER = ("read", "answer")


def write(
    model: Qwen3VLForConditionalGeneration,
    images: Qwen2VLImageProcessorPil,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    work: Path,
    count: int = 256,
) -> dict[str, Any]:
    """Save in float16, load what was saved, measure it in float32, and add `README.md` and `scores.json`.

    Args:
        model: what was trained.
        images: its image processor.
        tokenizer: its tokenizer, with the chat template.
        output: directory of the checkpoint.
        work: where the stages left their state.
        count: held-out documents to measure on.

    Returns:
        What `scores.json` holds.
    """
    save_checkpoint(model, images, tokenizer, output)
    loaded = Qwen3VLForConditionalGeneration.from_pretrained(output, dtype=torch.float32).eval()
    found = score(partial(answer_qwen3vl, loaded, load_processor(output)), count=count)
    record = measured([found], work, ORDER)
    write_record(record, render_card(record, model.num_parameters()), output)
    return record


def save_checkpoint(
    model: Qwen3VLForConditionalGeneration,
    images: Qwen2VLImageProcessorPil,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
) -> None:
    """Write weights in float16, configuration, tokenizer and image processor; the directory appears complete."""

    def save_processor(directory: Path) -> None:
        tokenizer.save_pretrained(directory)
        images.save_pretrained(directory)

    stored = Qwen3VLForConditionalGeneration(model.config)
    stored.load_state_dict(model.state_dict())
    save(stored.half(), save_processor, output)


def render_card(record: dict[str, Any], parameters: int) -> str:
    """The model card."""
    return assemble(_HEAD.format(millions=parameters / 1e6), score_lines(record["scores"]), _TRAINING, record)


_HEAD = """\
# qwen3vl-nano

A Qwen3-VL (transformers' `Qwen3VLForConditionalGeneration`) of {millions:.2f} million parameters, trained on documents
drawn by `hvlc.zoo.documents`. It is a reference for measuring a compiler on a public architecture, not a reader of real
documents: it knows three fonts at 11 to 17 pixels, some two hundred words and the four kinds of page that the
generator draws.

A tower of four layers of 192 over an image's own grid (patches of 8 pixels, squares of 2 x 2 merged), a tap that the
decoder's first layer takes as well (DeepStack), a Qwen3 of four layers of 192 with multimodal positions that shares its
embedding with its head. A token is a byte or a special token. The file holds float16.

## Scores

Exact match on held-out documents: float32, greedy `generate` through the processor (Pillow), one question a document.

"""

_TRAINING = """
The recipe is `hvlc.training.qwen3vl_nano` (`hvlc train qwen3vl-nano`). It does not start from scratch: tower, connector
and decoder are those of hypervl-nano's large branch, the tap begins without effect. Then read (the tower names the
character under each patch) and answer (connector, tap and decoder transcribe and answer packed questions, later the
tower with them). While it learns to answer, two fifths of the documents are shrunk, to letters of no less than 9 pixels
per em. `over` is in minutes, on one thread of a machine that other work shared; values are means over the updates since
the report before, on train documents.

"""
