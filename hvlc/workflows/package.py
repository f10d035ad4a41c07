"""Questions to an open package, with images from files."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from PIL import Image

from hvlc.inputs.images import load_image
from hvlc.manifest.manifest import Manifest
from hvlc.results import Answered
from hvlc.runtime.generation import LanguageModel, open_model


@dataclass(frozen=True)
class Package:
    """A package that answers.

    Attributes:
        model: what runs it.
    """

    model: LanguageModel

    @classmethod
    def open(cls, directory: Path) -> "Package":
        """Verify a package's files and load its graphs.

        Raises:
            UserError: it is not a package that answers, or a file was changed.
        """
        return cls(open_model(directory))

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
        vrc: bool = True,
        max_visual_tokens: int | None = None,
        max_new_tokens: int = 128,
    ) -> Answered:
        """Answer greedily.

        Args:
            prompt: the question.
            images: files, or RGB images, in the order they are shown.
            encoder: a vision encoder's name, or "auto" for the package's policy.
            vrc: whether the resolution compressor chooses each image's scale.
            max_visual_tokens: bound for each image. None: the package's.
            max_new_tokens: bound of the answer.

        Returns:
            The text, its tokens, and what the images came to.

        Raises:
            UserError: an image or the prompt is refused; see `hvlc.runtime.generation.LanguageModel`.
        """
        seen = [image if isinstance(image, Image.Image) else load_image(Path(image)) for image in images]
        generation = self.model.start(
            prompt,
            seen,
            encoder=encoder,
            vrc=vrc,
            max_visual_tokens=max_visual_tokens,
            max_new_tokens=max_new_tokens,
        )
        for _ in generation:
            pass
        return generation.answered
