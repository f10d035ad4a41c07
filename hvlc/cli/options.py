"""Types of options and arguments: every number has bounds, every text and path can be printed.

What is wrong with them is said by click before a command begins, with the range that is allowed.
"""

import math
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import click

#: Bytes. Linux refuses paths of more than 4095 and names of more than 255; files within a directory need room too.
_LONGEST_PATH, _LONGEST_NAME = 3900, 255
_LONGEST_TEXT = 1_000_000  # characters

MOST_TOKENS = 1 << 24  # of a prompt, an answer, a context: more than any model's context
MOST_EXAMPLES = 1_000_000  # of documents or lines
MOST_SAMPLES = 100_000  # of calibration, which needs some hundred


class PathParameter(click.Path):
    """A path, as `pathlib.Path`, of which nothing else is known.

    Manifests and reports are UTF-8: a path that is not cannot be written into them.
    """

    name = "path"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A path of a text."""
        text = os.fspath(value)
        _check_text(self, text, param, ctx)
        size, name = len(os.fsencode(text)), max(len(os.fsencode(part)) for part in text.split("/"))
        if size > _LONGEST_PATH:
            self.fail(f"a path of {size} bytes: {_LONGEST_PATH} are the most", param, ctx)
        if name > _LONGEST_NAME:
            self.fail(f"a path with a name of {name} bytes: {_LONGEST_NAME} are the most", param, ctx)
        if not Path(text).is_absolute():
            try:
                Path.cwd()
            except OSError:
                self.fail(f"{text!r} is relative, and the working directory was deleted: change to another", param, ctx)
        return super().convert(value, param, ctx)


class TextParameter(click.ParamType[str]):
    """A text that UTF-8 can hold: bytes of the command line that cannot be decoded are refused."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is."""
        text = str(value)
        _check_text(self, text, param, ctx)
        if len(text) > _LONGEST_TEXT:
            self.fail(f"{len(text)} characters: {_LONGEST_TEXT} are the most", param, ctx)
        return text


class Real(click.FloatRange):
    """A finite number above a bound and up to another.

    Args:
        least: below the smallest number.
        most: the largest number.
    """

    def __init__(self, least: float, most: float) -> None:
        super().__init__(least, most, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A number of a text; NaN is none, although it is within every range."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number", param, ctx)
        return found


class Size(click.ParamType[int]):
    """Bytes, as "2GB", "512 MiB" or a plain number.

    Args:
        least: the smallest number.
    """

    name = "size"
    MOST: ClassVar[int] = 10**15
    _UNITS: ClassVar[dict[str, int]] = {
        "": 1,
        "b": 1,
        "kb": 10**3,
        "mb": 10**6,
        "gb": 10**9,
        "kib": 2**10,
        "mib": 2**20,
        "gib": 2**30,
    }

    def __init__(self, least: int = 1) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes of a text."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value), re.ASCII)
        if not found or found[2].lower() not in self._UNITS:
            self.fail(f"{_short(value)} is not a size: write 2GB, 512MB or 1GiB", param, ctx)
        size = int(Decimal(found[1]) * self._UNITS[found[2].lower()])
        if not self._least <= size <= self.MOST:
            least = f"{self._least} byte{'' if self._least == 1 else 's'}"
            self.fail(f"{_short(value)} is not within {least} and {self.MOST // 10**9} GB", param, ctx)
        return size


class Dimension(click.ParamType[tuple[str, int]]):
    """Name and size, as "sequence=64"."""

    name = "dimension"
    MOST: ClassVar[int] = 2**31 - 1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Name and size of a text."""
        _check_text(self, str(value), param, ctx)
        name, _, size = str(value).rpartition("=")
        if not name or not re.fullmatch("[0-9]{1,12}", size):
            self.fail(f"{_short(value)} is not a dimension: write NAME=SIZE", param, ctx)
        if not 1 <= int(size) <= self.MOST:
            self.fail(f"{_short(value)}: a size is within 1 and {self.MOST}", param, ctx)
        return name, int(size)


class Grids(click.ParamType[tuple[tuple[int, int], ...]]):
    """Heights and widths in pixels, as "448x448,448x896"."""

    name = "grids"
    MOST: ClassVar[int] = 16_384

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, int], ...]:
        """Pairs of sides of a text."""
        if isinstance(value, tuple):
            return value
        found = []
        for part in str(value).split(","):
            sides = re.fullmatch(r"\s*([0-9]{1,6})x([0-9]{1,6})\s*", part)
            if sides is None:
                self.fail(f"{_short(part)} is not a grid: write HEIGHTxWIDTH in pixels, such as 448x896", param, ctx)
            if not all(1 <= int(side) <= self.MOST for side in sides.groups()):
                self.fail(f"{_short(part)}: a side is within 1 and {self.MOST} pixels", param, ctx)
            found.append((int(sides[1]), int(sides[2])))
        return tuple(found)


class Blocks(click.ParamType[tuple[int, int]]):
    """Bits and block size of a format, as "int4b32"."""

    name = "format"
    LEAST: ClassVar[int] = 16
    MOST: ClassVar[int] = 65_536

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Bits and block size of a text."""
        found = re.fullmatch(r"int([48])b([0-9]{1,9})", str(value))
        if found is None:
            self.fail(f"{_short(value)} is not a format: write int4b32 or int8b128", param, ctx)
        if not self.LEAST <= int(found[2]) <= self.MOST:
            self.fail(f"{_short(value)}: a block has {self.LEAST} to {self.MOST} elements", param, ctx)
        return int(found[1]), int(found[2])


def _check_text(
    kind: click.ParamType[Any], text: str, param: click.Parameter | None, ctx: click.Context | None
) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        kind.fail(f"{_short(text)} is not UTF-8 at character {error.start}: rename or correct it", param, ctx)
    if "\0" in text:
        kind.fail(f"{_short(text)} contains NUL", param, ctx)


def _short(value: Any) -> str:
    text = repr(str(value))
    return text if len(text) <= 100 else f"{text[:100]}…"


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers above 0, as "0.25,0.5,1".

    Args:
        most: the largest.
        whole: whether they are integers.
    """

    name = "numbers"
    MOST: ClassVar[int] = 100

    def __init__(self, most: float = 1, *, whole: bool = False) -> None:
        self._most, self._whole = most, whole
        self._form = r"\s*([0-9]{1,9})\s*" if whole else r"\s*([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Numbers of a text."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) > self.MOST:
            self.fail(f"{len(parts)} numbers: {self.MOST} are the most", param, ctx)
        found = [re.fullmatch(self._form, part, re.ASCII) for part in parts]
        numbers = tuple(int(one[1]) if self._whole else float(one[1]) for one in found if one)
        if len(numbers) < len(parts) or not all(0 < number <= self._most for number in numbers):
            kind = "whole numbers" if self._whole else "numbers"
            said = f"{_short(value)} are not {kind} above 0 and up to {self._most:g}"
            self.fail(f"{said}, such as {'1,2' if self._whole else '0.25,0.5,1'}", param, ctx)
        return numbers


PLACE = PathParameter()
NUMBERS = Numbers()
FACTORS = Numbers(100)
COUNTS = Numbers(MOST_TOKENS, whole=True)
WORDS = TextParameter()
SIZE = Size()
GRIDS = Grids()
THREADS = click.IntRange(1, 1024)
EXAMPLES = click.IntRange(1, MOST_EXAMPLES)
SAMPLES = click.IntRange(2, MOST_SAMPLES)
ROWS = click.IntRange(0, MOST_EXAMPLES)  # of a table
SEED = click.IntRange(0, 2**32 - 1)
TILE_BATCH = click.IntRange(1, 4096)  # tiles per run of an encoder
BOUNDED = click.IntRange(max=MOST_TOKENS)  # what is below 1 the request refuses, with its own code


def tokens(least: int) -> click.IntRange:
    """A number of tokens, from `least`."""
    return click.IntRange(least, MOST_TOKENS)
