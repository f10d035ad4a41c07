"""Accuracy of a checkpoint by the product's own path, one question a document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import Qwen3VLForConditionalGeneration, SmolVLMForConditionalGeneration

from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration
from hvlc.models.hypervl.processing import HyperVLProcessor
from hvlc.models.smolvlm import SmolVLMImageTextProcessor
from hvlc.results import wilson
from hvlc.zoo.documents import Document, Question
from hvlc.zoo.editions import EDITIONS, NARROW, Edition

#: No answer is longer.
MAX_NEW_TOKENS = 24

#: Gives the answer to a question about a document, and the visual tokens that it took.
Ask = Callable[[Document, Question], tuple[str, int]]


@dataclass(frozen=True)
class Score:
    """Answers to the questions of a split.

    Attributes:
        count: Documents, one question each.
        exact: Share of answers that are the right string.
        interval: Wilson 95 % interval of `exact`.
        visual_tokens: Mean per document.
    """

    count: int
    exact: float
    interval: tuple[float, float]
    visual_tokens: float

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)


@dataclass(frozen=True)
class BranchScore(Score):
    """Answers of one branch of a HyperVL.

    Attributes:
        branch: "base" or "large".
        compressed: Whether the Visual Resolution Compressor chose the scale.
        mean_scale: Mean scale per side.
        edition: Of the documents, by its name in `hvlc.zoo.editions`.
    """

    branch: str
    compressed: bool
    mean_scale: float
    edition: str = "narrow"


def score(ask: Ask, split: str = "heldout", count: int = 256, edition: Edition = NARROW) -> Score:
    """Exact match on the first `count` examples of a split of an edition."""
    right, tokens = 0, 0
    for document, question in edition.examples(split, count):
        said, used = ask(document, question)
        right, tokens = right + (said == question.answer), tokens + used
    return Score(count, right / count, wilson(right / count, count), tokens / count)


def prompt(tokenizer: Any, question: Question) -> str:
    """The chat that asks `question` about one image."""
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return text


def generate(model: Any, tokenizer: Any, inputs: Any, **options: Any) -> str:
    """The model's greedy answer."""
    generated = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, **options)
    text: str = tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


@torch.no_grad()
def answer(
    model: HyperVLForConditionalGeneration,
    processor: HyperVLProcessor,
    document: Document,
    question: Question,
    branch: str,
    scale: float = 1.0,
) -> tuple[str, int]:
    """A HyperVL's greedy answer and the visual tokens it took."""
    inputs = processor(images=[document.image], text=prompt(processor.tokenizer, question), scales=[scale])
    return generate(model, processor.tokenizer, inputs, branch=branch), int(inputs["image_grids"].prod(-1).sum())


@torch.no_grad()
def answer_smolvlm(
    model: SmolVLMForConditionalGeneration,
    processor: SmolVLMImageTextProcessor,
    document: Document,
    question: Question,
) -> tuple[str, int]:
    """A SmolVLM's greedy answer and the visual tokens it took."""
    text = prompt(processor.tokenizer, question)
    inputs = processor(images=[document.image], text=text, return_tensors="pt")
    seen = int((inputs["input_ids"] == model.config.image_token_id).sum())
    return generate(model, processor.tokenizer, inputs), seen


@torch.no_grad()
def answer_qwen3vl(
    model: Qwen3VLForConditionalGeneration, processor: Any, document: Document, question: Question
) -> tuple[str, int]:
    """A Qwen3-VL's greedy answer and the visual tokens it took."""
    text = prompt(processor.tokenizer, question)
    inputs = processor(images=[document.image], text=text, return_tensors="pt")
    seen = int((inputs["input_ids"] == model.config.image_token_id).sum())
    return generate(model, processor.tokenizer, inputs), seen


def measure(
    model: HyperVLForConditionalGeneration,
    processor: HyperVLProcessor,
    branch: str,
    *,
    compressed: bool,
    split: str = "heldout",
    count: int = 256,
    edition: str = "narrow",
) -> BranchScore:
    """Exact match of one branch of a HyperVL on the first `count` examples of a split of an edition."""
    model.eval()
    scales: list[float] = []

    def ask(document: Document, question: Question) -> tuple[str, int]:
        scales.append(_scale(model, processor, document) if compressed else 1.0)
        return answer(model, processor, document, question, branch, scales[-1])

    found = score(ask, split, count, EDITIONS[edition])
    mean = sum(scales) / max(1, len(scales))
    return BranchScore(**found.as_dict(), branch=branch, compressed=compressed, mean_scale=mean, edition=edition)


@torch.no_grad()
def _scale(model: HyperVLForConditionalGeneration, processor: HyperVLProcessor, document: Document) -> float:
    """The scale that the compressor chooses."""
    seen = processor.image_processor.proxies([document.image])
    return float(model.predict_scale(seen["proxy_values"], seen["image_sizes"])[0])
