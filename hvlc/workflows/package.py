"""Questions to an open package, with images from files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from hvlc.inputs.images import load_image
from hvlc.manifest.manifest import Manifest
from hvlc.manifest.policy import Circumstances
from hvlc.results import Answered
from hvlc.runtime.generation import Generation, LanguageModel, open_model
from hvlc.runtime.settings import USUAL, VisionSettings

_ROOM = 1024  # positions of a chat's KV cache for later turns: a question and a short answer take less than 100


@dataclass(frozen=True)
class Package:
    """A package that answers.

    Attributes:
        model: what runs it.
    """

    model: LanguageModel

    @classmethod
    def open(cls, directory: Path, vision: VisionSettings = USUAL) -> "Package":
        """Verify a package's files and load its graphs.

        Args:
            directory: the package.
            vision: how its encoders run.

        Raises:
            UserError: it is not a package that answers, or a file was changed.
        """
        return cls(open_model(directory, vision=vision))

    @property
    def manifest(self) -> Manifest:
        """Manifest of the package."""
        return self.model.manifest

    def ask(
        self,
        prompt: str,
        images: Sequence[str | PathLike[str] | Image.Image] = (),
        *,
        encoder: str = "auto",
        task_tag: str | None = None,
        device_class: str | None = None,
        latency_ms: float | None = None,
        vrc: bool = True,
        max_visual_tokens: int | None = None,
        max_new_tokens: int = 128,
    ) -> Answered:
        """Answer greedily.

        Args:
            prompt: the question.
            images: files, or RGB images, in the order they are shown.
            encoder: a vision encoder's name, or "auto" for the package's policy.
            task_tag: kind of task, for the policy. None: not stated.
            device_class: kind of device, for the policy. None: not stated.
            latency_ms: milliseconds for the encoder, for the policy. None: not stated.
            vrc: whether the resolution compressor chooses each image's scale.
            max_visual_tokens: bound for each image. None: the package's.
            max_new_tokens: bound of the answer.

        Returns:
            The text, its tokens, and what the images came to.

        Raises:
            UserError: an image or the prompt is refused; see `hvlc.runtime.generation.LanguageModel`.
        """
        chat = self.chat(
            images,
            encoder=encoder,
            task_tag=task_tag,
            device_class=device_class,
            latency_ms=latency_ms,
            vrc=vrc,
            max_visual_tokens=max_visual_tokens,
            room=0,
        )
        return chat.ask(prompt, max_new_tokens=max_new_tokens)

    def chat(
        self,
        images: Sequence[str | PathLike[str] | Image.Image] = (),
        *,
        encoder: str = "auto",
        task_tag: str | None = None,
        device_class: str | None = None,
        latency_ms: float | None = None,
        vrc: bool = True,
        max_visual_tokens: int | None = None,
        room: int = _ROOM,
    ) -> "Chat":
        """Begin a chat about images, which are encoded once, or about none.

        Args:
            images: files, or RGB images, in the order they are shown.
            encoder: a vision encoder's name, or "auto" for the package's policy.
            task_tag: kind of task, for the policy. None: not stated.
            device_class: kind of device, for the policy. None: not stated.
            latency_ms: milliseconds for the encoder, for the policy. None: not stated.
            vrc: whether the resolution compressor chooses each image's scale.
            max_visual_tokens: bound for each image. None: the package's.
            room: tokens of all questions and answers after the first, as far as the context has them; the KV cache
                takes memory for them from the first question on.

        Raises:
            UserError: an image is refused.
        """
        seen = [image if isinstance(image, Image.Image) else load_image(Path(image)) for image in images]
        stated = Circumstances(task_tag, device_class, latency_ms)
        settings = {"encoder": encoder, "stated": stated, "vrc": vrc, "max_visual_tokens": max_visual_tokens}
        return Chat(self.model, seen, settings | {"room": room})


@dataclass
class Chat:
    """Questions after each other, each with all before it in the KV cache.

    Attributes:
        model: what answers.
        images: shown with the first question.
        settings: further arguments of the first question's `LanguageModel.start`.
    """

    model: LanguageModel
    images: Sequence[Image.Image]
    settings: Mapping[str, Any]
    _latest: Generation | None = field(default=None, repr=False)

    def ask(self, prompt: str, *, max_new_tokens: int = 128) -> Answered:
        """Answer greedily, after everything that was asked and answered before.

        Args:
            prompt: the question.
            max_new_tokens: bound of the answer.

        Returns:
            The text, its tokens, and what the images came to when they were encoded. `prompt_tokens` are those of the
            whole chat before the answer.

        Raises:
            UserError: the prompt is refused, and the chat stays as it was; see
                `hvlc.runtime.generation.LanguageModel.start` and `follow`.
        """
        if self._latest is None:
            generation = self.model.start(prompt, self.images, max_new_tokens=max_new_tokens, **self.settings)
        else:
            generation = self.model.follow(self._latest, prompt, max_new_tokens=max_new_tokens)
        for _ in generation:
            pass
        self._latest = generation
        return generation.answered
