"""A HyperVL checkpoint as a reference: the same questions, answered by transformers in float32."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.generation.streamers import BaseStreamer

from hvlc.errors import UserError
from hvlc.models.hypervl.configuration import BRANCHES
from hvlc.models.hypervl.numbers import HyperVLNumbers
from hvlc.models.hypervl.processing import cap_scale
from hvlc.models.loading import check_config, loading
from hvlc.results import Answered
from hvlc.weights.checkpoint import Checkpoint


class _FirstToken(BaseStreamer):
    """Notes when the first generated token arrives (the prompt is put first)."""

    def __init__(self) -> None:
        self.puts = 0
        self.at = 0.0

    def put(self, value: torch.Tensor) -> None:
        self.puts += 1
        if self.puts == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        """Nothing to flush."""


class Reference:
    """`HyperVLForConditionalGeneration.generate` behind the interface that packages have.

    Args:
        directory: a HyperVL checkpoint.
        name: as reports show it.

    Raises:
        UserError: it is damaged, or transformers cannot load it.
    """

    def __init__(self, directory: Path, name: str = "checkpoint") -> None:
        self.name = name
        self.runs_on = "torch CPU"
        check_config(Checkpoint.open(directory).config, HyperVLNumbers)
        with loading(directory):
            self.model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
            self.processor = AutoProcessor.from_pretrained(directory)

    @torch.no_grad()
    def answer(
        self, prompt: str, images: Sequence[Image.Image], *, encoder: str, vrc: bool, max_new_tokens: int
    ) -> Answered:
        """Answer greedily.

        Args:
            prompt: the question, without template or placeholders.
            images: RGB images in the order they are shown.
            encoder: "base", "large" or "auto" for the checkpoint's default.
            vrc: whether the resolution compressor chooses each image's scale.
            max_new_tokens: bound of generated tokens.

        Raises:
            UserError: the checkpoint has no such encoder.
        """
        started = time.perf_counter()
        branch = self._branch(encoder)
        scales = self._scales(images, vrc)
        inputs = self._inputs(prompt, images, scales)
        first = _FirstToken()
        chosen = {"branch": branch} if images else {}
        output = self.model.generate(**inputs, **chosen, max_new_tokens=max_new_tokens, do_sample=False, streamer=first)
        ended = time.perf_counter()
        prompt_tokens = inputs["input_ids"].shape[1]
        tokens = output[0, prompt_tokens:].tolist()
        grids = inputs["image_grids"].tolist() if images else []
        return Answered(
            text=self.processor.tokenizer.decode(tokens, skip_special_tokens=True),
            tokens=tuple(tokens),
            encoder=branch if images else "",
            scales=tuple(self._used(image, scale) for image, scale in zip(images, scales, strict=True)),
            tiles=len(inputs["pixel_values"]) if images else 0,
            visual_tokens=sum(rows * columns for rows, columns in grids),
            prompt_tokens=prompt_tokens,
            time_to_first_token=first.at - started,
            decode_seconds=ended - first.at,
        )

    @torch.no_grad()
    def logits(
        self, prompt: str, images: Sequence[Image.Image], answer: Sequence[int], *, encoder: str, vrc: bool
    ) -> np.ndarray:
        """What the model expects before each token of a given answer: float32 `[len(answer), vocabulary]`.

        Prompt and answer run at once, without cache.

        Args:
            prompt: as in `answer`.
            images: as in `answer`.
            answer: ids of at least one token.
            encoder: as in `answer`.
            vrc: as in `answer`.

        Raises:
            UserError: the checkpoint has no such encoder.
        """
        branch = self._branch(encoder)
        inputs = self._inputs(prompt, images, self._scales(images, vrc))
        given = torch.tensor([list(answer[:-1])], dtype=torch.long)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], given], -1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        chosen = {"branch": branch} if images else {}
        found: np.ndarray = self.model(**inputs, **chosen, logits_to_keep=len(answer)).logits[0].float().numpy()
        return found

    def _branch(self, encoder: str) -> str:
        if encoder not in (*BRANCHES, "auto"):
            raise UserError(
                "request.encoder", f"the checkpoint has no encoder {encoder!r}", f"use {', '.join(BRANCHES)}"
            )
        return str(self.model.config.default_branch) if encoder == "auto" else encoder

    def _inputs(self, prompt: str, images: Sequence[Image.Image], scales: list[float]) -> Any:
        return self.processor(images=list(images) or None, text=self._text(prompt, len(images)), scales=scales or None)

    def _scales(self, images: Sequence[Image.Image], vrc: bool) -> list[float]:
        if not vrc or not images:
            return [1.0] * len(images)
        proxies = self.processor.image_processor.proxies(images)
        return self.model.predict_scale(**proxies).tolist()

    def _used(self, image: Image.Image, scale: float) -> float:
        """The scale after the bound of visual tokens."""
        cut = self.processor.image_processor
        return float(cap_scale(image.height, image.width, scale, cut.cell_size, cut.max_visual_tokens))

    def _text(self, prompt: str, images: int) -> str:
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        message = {"role": "user", "content": content if images else prompt}
        return self.processor.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
