"""What can be evaluated."""

from collections.abc import Sequence
from typing import Protocol

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
        """Answers greedily.

        Args:
            prompt: the question, without chat template or image placeholders.
            images: RGB images, in the order they are shown.
            encoder: "base", "large" or "auto".
            vrc: whether the resolution compressor chooses the scale.
            max_new_tokens: bound of generated tokens.
        """
        ...
