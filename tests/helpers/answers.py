"""Packages of families that see, asked what transformers is asked: from the processor's first byte to the tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, ProcessorMixin

from hvlc.errors import HvlcError
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.vision import Seen
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.helpers.tiny import picture
from tests.helpers.tolerances import GRAPH_FLOAT32

QUESTION = "What is it?"

#: transformers' inputs for some images, its greedy tokens, and its logits for the last position of the prompt.
Reference = Callable[[list[Image.Image]], tuple[Any, list[int], np.ndarray]]


def packaged(checkpoint: Path) -> VisionLanguageModel:
    """The float32 package of a checkpoint, beside it."""
    output = checkpoint.parent / f"{checkpoint.name}-package"
    build(open_request(checkpoint, "cpu", "float32", output))
    return VisionLanguageModel(output, threads=1)


def asked_of_transformers(checkpoint: Path, processor: ProcessorMixin) -> Reference:
    """What transformers makes of the question about some images."""
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @torch.no_grad()
    def run(images: list[Image.Image]) -> tuple[Any, list[int], np.ndarray]:
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content if images else QUESTION}]
        text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(images=images or None, text=text, return_tensors="pt")
        inputs.pop("num_patches", None)  # Qianfan-OCR's processor leaves it in
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return inputs, tokens.tolist(), model(**inputs, logits_to_keep=1).logits[0].numpy()

    return run


def check_answer(
    package: VisionLanguageModel,
    reference: Reference,
    images: list[Image.Image],
    pixels: Callable[[list[Seen]], np.ndarray],
) -> None:
    """Compare prompt ids, pixels, greedy tokens and logits.

    Args:
        package: of float32.
        reference: of the same checkpoint.
        images: what is asked about.
        pixels: of what the front graph gives, in the order and shape of transformers' `pixel_values`.
    """
    inputs, tokens, logits = reference(images)
    seen = [package._vision.see(np.asarray(image), compress=True) for image in images]
    assert package.prompt_ids(QUESTION, seen).tolist() == inputs["input_ids"][0].tolist()
    if images:
        np.testing.assert_array_equal(pixels(seen), inputs["pixel_values"].numpy())
    answered = package.answer(QUESTION, images, encoder="auto", vrc=True, max_new_tokens=8)
    assert list(answered.tokens) == tokens
    found = package.logits(QUESTION, images, [0], encoder="auto", vrc=True)
    np.testing.assert_allclose(found, logits, atol=GRAPH_FLOAT32 * 10, rtol=0)


def check_bound(package: VisionLanguageModel, limit: int, *, fewest: int) -> None:
    """Ask about an image with a bound of visual tokens: it is kept, or refused where it is too low for any image.

    Args:
        package: of a family that obeys bounds.
        limit: the bound.
        fewest: visual tokens of the smallest image.
    """
    asked: dict[str, Any] = {"encoder": "auto", "vrc": True, "max_visual_tokens": limit, "max_new_tokens": 2}
    if limit < fewest:
        with pytest.raises(HvlcError, match=r"request\.max_visual_tokens"):
            package.start(QUESTION, [picture(90, 40)], **asked)
    else:
        generation = package.start(QUESTION, [picture(90, 40)], **asked)
        assert 0 < sum(seen.visual_tokens for seen in generation.images) <= limit


def sizes(images: list[Image.Image]) -> str:
    """The heights and widths of some images, as the name of a case."""
    return "-".join(f"{image.height}x{image.width}" for image in images)
