"""A vision-language checkpoint as transformers loads it: model, processor, and how a question becomes their inputs."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from hvlc.chat.reference import CheckpointTemplate
from hvlc.errors import UserError
from hvlc.models.loading import check_config, loading
from hvlc.models.numbers import Numbers, VisionLanguageNumbers
from hvlc.models.processors import load_processor
from hvlc.weights.checkpoint import Checkpoint

_AUTO = "auto"


class LoadedModel:
    """A checkpoint that transformers computes in float32, loaded when it is first needed.

    Args:
        directory: the checkpoint.
        encoders: names of its vision encoders.
        default: the one that answers where a request names none.
        numbers: bounds of its configuration's numbers.

    Raises:
        UserError: it is damaged, or a number of its configuration is outside its bounds.
    """

    def __init__(
        self, directory: Path, encoders: Sequence[str], default: str, numbers: type[Numbers] = VisionLanguageNumbers
    ) -> None:
        checkpoint = Checkpoint.open(directory)
        check_config(checkpoint.config, numbers)
        logging.disable_progress_bar()  # the caller has its own
        self.directory, self.encoders, self.default, self.numbers = directory, tuple(encoders), default, numbers
        self.model_type = checkpoint.model_type

    @cached_property
    def model(self) -> Any:
        """transformers' model."""
        with loading(self.directory):
            return AutoModelForImageTextToText.from_pretrained(self.directory, dtype=torch.float32).eval()

    @cached_property
    def processor(self) -> Any:
        """transformers' processor (`hvlc.models.processors`)."""
        with loading(self.directory):
            return load_processor(self.directory)

    @cached_property
    def _template(self) -> CheckpointTemplate:
        return CheckpointTemplate(self.directory)

    def encoder(self, asked: str) -> str:
        """The encoder that answers.

        Args:
            asked: its name, or "auto" for the checkpoint's default.

        Raises:
            UserError: the checkpoint has no such encoder.
        """
        if asked not in (*self.encoders, _AUTO):
            cause = f"the checkpoint has no encoder {asked!r}"
            raise UserError("request.encoder", cause, f"use {', '.join(self.encoders)}")
        return self.default if asked == _AUTO else asked

    def scales(self, images: Sequence[Image.Image], *, vrc: bool) -> list[float]:
        """Scale per side that is asked for, for each image; 1 where no compressor chooses.

        Args:
            images: RGB.
            vrc: whether the resolution compressor chooses.
        """
        return [1.0] * len(images)

    def used(self, images: Sequence[Image.Image], scales: Sequence[float]) -> list[float]:
        """The scales after the bound of visual tokens."""
        return list(scales)

    def inputs(self, prompt: str, images: Sequence[Image.Image], scales: Sequence[float]) -> dict[str, Any]:
        """Tensors for the model; `input_ids` int64 `[1, prompt]`.

        Args:
            prompt: the question, without template or placeholders.
            images: RGB, in the order they are shown.
            scales: of each image.

        Raises:
            UserError: there is no chat template.
        """
        text = self.text(prompt, len(images))
        found = self.processor(images=list(images) or None, text=text, return_tensors="pt")
        taken = inspect.signature(self.model.forward).parameters  # some processors leave in what they counted
        return {name: tensor for name, tensor in found.items() if name in taken}

    def chosen(self, encoder: str) -> dict[str, Any]:
        """Keyword arguments of the model's forward pass that select an encoder."""
        return {}

    def pieces(self, inputs: dict[str, Any]) -> list[np.ndarray]:
        """Pixels that a processor made, float32 `[3, H, W]` of each piece of all images."""
        values = inputs["pixel_values"]
        return [piece.numpy() for piece in values.reshape(-1, *values.shape[-3:])]

    def laid(self, name: str, values: np.ndarray, inputs: dict[str, Any]) -> np.ndarray:
        """Output of a module of the vision half, as traces have it (`hvlc.results.trace_points`).

        Args:
            name: of the trace's value.
            values: as the module returns them.
            inputs: of the model.
        """
        return values

    def text(self, prompt: str, images: int) -> str:
        """The prompt through the chat template.

        Raises:
            UserError: there is none.
        """
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        text = self._template.rendered([{"role": "user", "content": content if images else prompt}])
        if text is None:
            cause = f"{self.directory} has no chat template to show an image with"
            raise UserError("checkpoint.template", cause, "save the processor with its template")
        return text


def followed(inputs: Mapping[str, Any], tokens: torch.Tensor) -> dict[str, Any]:
    """Inputs of a model with more tokens of text behind the prompt; kinds of tokens, where it takes them, are 0 there.

    Args:
        inputs: with `input_ids` int64 `[1, prompt]`.
        tokens: int64 `[1, n]`.
    """
    ids = torch.cat([inputs["input_ids"], tokens], -1)
    beside = {
        name: torch.cat([tensor, torch.zeros_like(tokens)], -1)
        for name, tensor in inputs.items()
        if name.endswith("token_type_ids")
    }
    return {**inputs, **beside, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
