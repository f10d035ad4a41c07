"""How well the checkpoint answers: the product's own path, one question a document."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration
from hvlc.models.hypervl.processing import HyperVLProcessor
from hvlc.results import wilson
from hvlc.zoo.documents import Document, Question, examples


@dataclass(frozen=True)
class Score:
    """Answers of one branch to the questions of a split.

    Attributes:
        branch: "base" or "large".
        compressed: Whether the Visual Resolution Compressor chose the scale.
        count: Documents, one question each.
        exact: Share of answers that are the right string.
        interval: Wilson 95 % interval of `exact`.
        visual_tokens: Mean per document.
        mean_scale: Mean scale per side.
    """

    branch: str
    compressed: bool
    count: int
    exact: float
    interval: tuple[float, float]
    visual_tokens: float
    mean_scale: float

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)


@torch.no_grad()
def answer(
    model: HyperVLForConditionalGeneration,
    processor: HyperVLProcessor,
    document: Document,
    question: Question,
    branch: str,
    scale: float = 1.0,
) -> tuple[str, int]:
    """The model's greedy answer and the visual tokens it took."""
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    prompt = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(images=[document.image], text=prompt, scales=[scale])
    generated = model.generate(**inputs, branch=branch, max_new_tokens=24, do_sample=False)
    said = generated[0, inputs["input_ids"].shape[1] :]
    text = processor.tokenizer.decode(said, skip_special_tokens=True)
    return text, int(inputs["image_grids"].prod(-1).sum())


def measure(
    model: HyperVLForConditionalGeneration,
    processor: HyperVLProcessor,
    branch: str,
    *,
    compressed: bool,
    split: str = "heldout",
    count: int = 256,
) -> Score:
    """Exact match on the first `count` examples of a split."""
    model.eval()
    right, tokens, scales = 0, 0, 0.0
    for document, question in examples(split, count):
        scale = 1.0
        if compressed:
            seen = processor.image_processor.proxies([document.image])
            scale = float(model.predict_scale(seen["proxy_values"], seen["image_sizes"])[0])
        said, used = answer(model, processor, document, question, branch, scale)
        right, tokens, scales = right + (said == question.answer), tokens + used, scales + scale
    return Score(branch, compressed, count, right / count, wilson(right / count, count), tokens / count, scales / count)
