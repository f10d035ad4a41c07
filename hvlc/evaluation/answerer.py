"""Protocols of what can be evaluated."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from hvlc.results import Answered


class Answerer(Protocol):
    """A model that answers a question about images: a package or its reference.

    Attributes:
        name: name of the model or package, as reports show it.
        runs_on: what it runs on, e.g. "onnxruntime CPU" or "torch CPU".
    """

    @property
    def name(self) -> str: ...

    @property
    def runs_on(self) -> str: ...

    def answer(
        self, prompt: str, images: Sequence[Image.Image], *, encoder: str, vrc: bool, max_new_tokens: int
    ) -> Answered:
        """Answer greedily.

        Args:
            prompt: the question, without chat template or image placeholders.
            images: RGB images, in the order they are shown.
            encoder: "base", "large" or "auto".
            vrc: whether the resolution compressor chooses the scale.
            max_new_tokens: bound of generated tokens.
        """
        ...


class TeacherForced(Protocol):
    """A model that says what it expects before each token of an answer that is given to it."""

    def logits(
        self, prompt: str, images: Sequence[Image.Image], answer: Sequence[int], *, encoder: str, vrc: bool
    ) -> np.ndarray:
        """float32 `[len(answer), vocabulary]`: row `i` after the prompt and `answer[:i]`.

        Args:
            prompt: the question, without chat template or image placeholders.
            images: RGB images, in the order they are shown.
            answer: ids of at least one token.
            encoder: as in `Answerer.answer`.
            vrc: as in `Answerer.answer`.
        """
        ...
