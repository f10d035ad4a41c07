"""Calibration samples: token sequences, and images that are loaded on demand."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from hvlc.files.digests import digest_file
from hvlc.inputs.images import load_image, to_array
from hvlc.zoo import documents


class Picture(Protocol):
    """An image that is loaded each time it is asked for.

    Attributes:
        height: in pixels, upright.
        width: in pixels, upright.
        sha256: hex digest of what it is made from.
    """

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    def pixels(self) -> np.ndarray:
        """RGB, uint8 `[height, width, 3]`."""
        ...


@dataclass(frozen=True)
class StoredPicture:
    """An image file; its digest is that of the file's bytes."""

    path: Path
    height: int
    width: int
    sha256: str

    @classmethod
    def open(cls, path: Path) -> "StoredPicture":
        """Decode the file once, so that a broken one is found before long work.

        Raises:
            UserError: it is missing, damaged or too large.
        """
        image = load_image(path)
        return cls(path, image.height, image.width, digest_file(path))

    def pixels(self) -> np.ndarray:
        """RGB, uint8 `[height, width, 3]`.

        Raises:
            UserError: the file can no longer be read.
        """
        return to_array(load_image(self.path))


@dataclass(frozen=True)
class DrawnPicture:
    """A generated document; its digest is that of its size and pixels."""

    split: str
    index: int
    height: int
    width: int
    sha256: str

    @classmethod
    def of(cls, split: str, index: int, image: Image.Image) -> "DrawnPicture":
        """A document as it was just drawn."""
        pixels = to_array(image)
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        return cls(split, index, image.height, image.width, digest)

    def pixels(self) -> np.ndarray:
        """RGB, uint8 `[height, width, 3]`."""
        return to_array(documents.render(self.split, self.index).image)


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """The tokens around an image.

    Attributes:
        before: int64 `[n]`, up to the image.
        after: int64 `[n]`, from the image on; the answer and the token that ends it included, where there is one.
    """

    before: np.ndarray
    after: np.ndarray

    @property
    def length(self) -> int:
        """Tokens besides the image's."""
        return len(self.before) + len(self.after)

    def ids(self, image: np.ndarray) -> np.ndarray:
        """int64 `[n]`: the sequence as a package is fed, with what the front graph says for the image in its place."""
        return np.concatenate([self.before, image, self.after])


@dataclass(frozen=True, eq=False)
class TextSample:
    """A sequence for a language model.

    Attributes:
        kind: group in the balance.
        ids: int64 `[n]`.
    """

    kind: str
    ids: np.ndarray


@dataclass(frozen=True, eq=False)
class ImageSample:
    """An image, and the sequence that asks about it.

    Attributes:
        kind: group in the balance.
        picture: the image, loaded when asked for.
        question: about it.
        answer: what should follow; None where there is none.
        prompt: its tokens; None where no language model reads them.
    """

    kind: str
    picture: Picture
    question: str
    answer: str | None
    prompt: ImagePrompt | None


Sample = TextSample | ImageSample


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Everything that a model is calibrated on, in order.

    Attributes:
        name: of its source.
        samples: at least two.
        notes: what the user should know of how it was made.
    """

    name: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[ImageSample, ...]:
        """The samples that have an image."""
        return tuple(s for s in self.samples if isinstance(s, ImageSample))

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of what the model is fed: ids, images and their order; not the names of files."""
        digest = hashlib.sha256()
        for sample in self.samples:
            for field in _content(sample):
                digest.update(len(field).to_bytes(8, "little") + field)
        return digest.hexdigest()


def _content(sample: Sample) -> Iterator[bytes]:
    """Contents of a sample, field by field."""
    if isinstance(sample, TextSample):
        yield from (b"text", _bytes(sample.ids))
        return
    yield from (b"image", sample.picture.sha256.encode())
    if sample.prompt is not None:
        yield from (_bytes(sample.prompt.before), _bytes(sample.prompt.after))


def _bytes(ids: np.ndarray) -> bytes:
    return ids.astype("<i8").tobytes()
