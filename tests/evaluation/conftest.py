from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from PIL import Image

from hvlc.evaluation.task import Example
from hvlc.results import Answered


@dataclass
class Scripted:
    """Gives the answers of its script in turn, and notes how it was asked."""

    script: Sequence[str]
    name: str = "scripted"
    runs_on: str = "a test"
    asked: list[tuple[str, int, str, bool, int]] = field(default_factory=list)

    def answer(
        self, prompt: str, images: Sequence[Image.Image], *, encoder: str, vrc: bool, max_new_tokens: int
    ) -> Answered:
        text = self.script[len(self.asked)]
        self.asked.append((prompt, len(images), encoder, vrc, max_new_tokens))
        return Answered(
            text=text,
            tokens=tuple(text.encode()),
            encoder="base" if encoder == "auto" else encoder,
            scales=(0.5 if vrc else 1.0,),
            tiles=1,
            visual_tokens=16,
            prompt_tokens=20,
            time_to_first_token=0.01 * len(self.asked),
            decode_seconds=0.002,
        )


@dataclass(frozen=True)
class Arithmetic:
    """Asks for the index; one red and one blue example in turn."""

    count: int
    shade: int = 0
    name: str = "arithmetic"
    shows_images: bool = True

    def __len__(self) -> int:
        return self.count

    def example(self, index: int) -> Example:
        image = Image.new("RGB", (4, 3), (self.shade, 0, 0))
        return Example(f"e{index}", ("red", "blue")[index % 2], f"{index}?", (f"No {index}",), (image,))


@pytest.fixture
def scripted() -> Callable[..., Scripted]:
    return Scripted


@pytest.fixture
def arithmetic() -> Callable[..., Arithmetic]:
    return Arithmetic
