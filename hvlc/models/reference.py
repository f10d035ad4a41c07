"""A vision-language checkpoint as a reference: the same questions, answered by transformers in float32."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers.generation.streamers import BaseStreamer

from hvlc.models.loaded import LoadedModel, followed
from hvlc.results import Answered


class _FirstToken(BaseStreamer):
    """Clock of the first generated token (the prompt is put first)."""

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
    """transformers' `generate` behind the interface that packages have.

    Args:
        loaded: the checkpoint.
        name: as reports show it.

    Raises:
        UserError: transformers cannot load it.
    """

    def __init__(self, loaded: LoadedModel, name: str = "checkpoint") -> None:
        self.name = name
        self.runs_on = "torch CPU"
        self.loaded, self.model, self.processor = loaded, loaded.model, loaded.processor

    @torch.no_grad()
    def answer(
        self, prompt: str, images: Sequence[Image.Image], *, encoder: str, vrc: bool, max_new_tokens: int
    ) -> Answered:
        """Answer greedily.

        Args:
            prompt: the question, without template or placeholders.
            images: RGB images in the order they are shown.
            encoder: name of the vision encoder, or "auto" for the checkpoint's default.
            vrc: whether the resolution compressor chooses each image's scale.
            max_new_tokens: bound of generated tokens.

        Raises:
            UserError: the checkpoint has no such encoder, or no chat template.
        """
        started = time.perf_counter()
        branch = self.loaded.encoder(encoder)
        scales = self.loaded.scales(images, vrc=vrc)
        inputs = self.loaded.inputs(prompt, images, scales)
        first = _FirstToken()
        chosen = self.loaded.chosen(branch) if images else {}
        output = self.model.generate(**inputs, **chosen, max_new_tokens=max_new_tokens, do_sample=False, streamer=first)
        ended = time.perf_counter()
        prompt_tokens = inputs["input_ids"].shape[1]
        tokens = output[0, prompt_tokens:].tolist()
        return Answered(
            text=self.processor.tokenizer.decode(tokens, skip_special_tokens=True),
            tokens=tuple(tokens),
            encoder=branch if images else "",
            scales=tuple(self.loaded.used(images, scales)),
            tiles=len(self.loaded.pieces(inputs)) if images else 0,
            visual_tokens=int((inputs["input_ids"] == self.model.config.image_token_id).sum()) if images else 0,
            prompt_tokens=prompt_tokens,
            time_to_first_token=first.at - started,
            decode_seconds=ended - first.at,
        )

    @torch.no_grad()
    def logits(
        self, prompt: str, images: Sequence[Image.Image], answer: Sequence[int], *, encoder: str, vrc: bool
    ) -> np.ndarray:
        """Logits before each token of a given answer: float32 `[len(answer), vocabulary]`.

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
        branch = self.loaded.encoder(encoder)
        inputs = self.loaded.inputs(prompt, images, self.loaded.scales(images, vrc=vrc))
        given = torch.tensor([list(answer[:-1])], dtype=torch.long)
        inputs = followed(inputs, given)
        chosen = self.loaded.chosen(branch) if images else {}
        found: np.ndarray = self.model(**inputs, **chosen, logits_to_keep=len(answer)).logits[0].float().numpy()
        return found
