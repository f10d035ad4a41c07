"""Small document images with questions, drawn from a seed.

The reference checkpoint is trained and measured on these: receipts, forms, tables and app
screens in the fonts that the matplotlib and Pillow packages ship. Everything about a document
follows from its split and its index, so any document can be drawn again, alone and anywhere.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hvlc.zoo import words

SPLITS = ("train", "calibration", "heldout")
KINDS = ("receipt", "form", "table", "screen")

#: Raised whenever a change to the generator changes what it draws.
GENERATOR_VERSION = 1

#: Text sizes in pixels per em, smallest and largest.
TEXT_SIZES = (11, 17)

#: No side of an image is longer than this, in pixels.
LONGEST_SIDE = 500

FONT_FILES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Question:
    """A question about a document and the one string that answers it.

    Attributes:
        text: as it is asked.
        answer: the string.
        text_size: pixels per em of the text that answers it. 0: the document's.
    """

    text: str
    answer: str
    text_size: int = 0


@dataclass(frozen=True)
class Glyph:
    """One drawn character and the box from cap height to baseline, in pixels."""

    char: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Document:
    """A drawn document.

    Attributes:
        image: RGB image, sides between about 50 and 500 pixels.
        kind: One of `KINDS`.
        text_size: Pixels per em of its smallest text.
        questions: At least two questions, in reading order.
        glyphs: Every visible character with its box in image pixels, (0, 0) top left.
        lines: The text, one string a line, top to bottom; cells joined by one space.
        line_sizes: Pixels per em of each line. Empty: `text_size`.
    """

    image: Image.Image
    kind: str
    text_size: int
    questions: tuple[Question, ...]
    glyphs: tuple[Glyph, ...]
    lines: tuple[str, ...]
    line_sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Row:
    """A line of cells; the columns of rows with equally many cells are aligned."""

    cells: tuple[str, ...]
    style: str = "plain"  # plain, title, header, boxed, button


@dataclass(frozen=True)
class _Content:
    kind: str
    rows: tuple[_Row, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class _Style:
    """Style in which the content is drawn; lengths in pixels."""

    font: str
    text_size: int
    pitch: float  # from line to line
    margin: int
    gap: int  # between columns
    slack: tuple[int, int]  # blank canvas to the right and below
    right_aligned: bool  # the last column
    ruled: bool
    paper: Colour
    ink: Colour
    accent: Colour
    noise: float  # standard deviation, grey levels
    noise_seed: int


def render(split: str, index: int) -> Document:
    """Draw document `index` of `split`; equal arguments give equal documents.

    Args:
        split: One of `SPLITS`. No two splits share a seed.
        index: Any number from 0.

    Raises:
        ValueError: If the split is unknown or the index negative.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index is {index}, must not be negative")
    rng = _rng(split, index, "document")
    content = _content(rng)
    style = _style(rng, content.kind)
    return _draw(content, style)


def render_sheet(split: str, index: int) -> Document:
    """Draw a page full of unrelated words and values, without questions, for learning to read.

    Args:
        split: One of `SPLITS`; sheets share no seed with the documents of any split.
        index: Any number from 0.
    """
    rng = _rng(split, index, "sheet")
    style = _style(rng, "sheet")
    rows = []
    for _ in range(int(190 / style.pitch)):
        row = ""
        while len(row) * style.text_size * 0.6 < 150:
            row += ("  " if rng.random() < 0.3 else " ") + word(rng)
        rows.append(_Row((row.strip(),), rng.choice(("plain", "plain", "plain", "boxed", "button"))))
    return _draw(_Content("sheet", tuple(rows), ()), style)


def examples(split: str, count: int, start: int = 0) -> Iterator[tuple[Document, Question]]:
    """Yield documents `start` to `start + count - 1`, each with one question chosen by its seed."""
    for index in range(start, start + count):
        document = render(split, index)
        yield document, _rng(split, index, "question").choice(document.questions)


def split_digest(split: str, count: int, *, pixels: bool = False) -> str:
    """Hex SHA-256 of the first `count` examples.

    Args:
        split: One of `SPLITS`.
        count: How many examples.
        pixels: Whether image bytes count too. They depend on the versions of Pillow and of the
            fonts; the text does not.
    """
    digest = hashlib.sha256()
    for document, question in examples(split, count):
        asked = [[q.text, q.answer] for q in document.questions]
        record = [document.kind, document.lines, asked, question.text]
        digest.update(json.dumps(record, separators=(",", ":")).encode())
        if pixels:
            digest.update(repr(document.image.size).encode() + document.image.tobytes())
    return digest.hexdigest()


def _rng(split: str, index: int, purpose: str) -> random.Random:
    # A string seed is hashed by SHA-512: the same on every machine and Python version.
    return random.Random(f"hvlc documents {GENERATOR_VERSION}/{split}/{index}/{purpose}")


# What a document says


def _content(rng: random.Random) -> _Content:
    kind = rng.choice(KINDS)
    make = {"receipt": _receipt, "form": _form, "table": _table, "screen": _screen}[kind]
    rows, questions = make(rng)
    return _Content(kind, tuple(rows), tuple(questions))


def value(rng: random.Random, sort: str) -> str:
    """Draw a value of a sort: an amount, a date, a time, a code, a number, a percentage, or a word of a list."""
    if sort == "amount":
        return f"{rng.randint(1, rng.choice((9, 99, 199)))}.{rng.randint(0, 99):02d}"
    if sort == "date":
        mark = rng.choice(".-/")
        return mark.join(f"{rng.randint(*span):02d}" for span in ((1, 28), (1, 12), (20, 29)))
    if sort == "time":
        return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    if sort == "code":
        alphabets = (words.CODE_LETTERS, words.CODE_DIGITS) * 2
        return "".join(rng.choice(alphabet) for alphabet in alphabets)
    if sort == "count":
        return str(rng.randint(1, 99))
    if sort == "percent":
        return f"{rng.randint(1, 99)}%"
    return rng.choice(words.LISTS[sort])


def word(rng: random.Random) -> str:
    """Draw a value or a word."""
    if rng.random() < 0.6:
        return value(rng, rng.choice(words.SORTS))
    return rng.choice(words.ALL)


def ask(rng: random.Random, label: str, answer: str) -> Question:
    """Ask for what a label names, in one of three wordings."""
    wording = rng.choice(("{0}?", "{1}?", "What is the {1}?"))
    return Question(wording.format(label, label.lower()), answer)


def fields(rng: random.Random, kind: str, count: int) -> list[tuple[str, str]]:
    """Draw so many labels of a kind of document, each with a value."""
    labels = rng.sample(sorted(words.LABELS[kind]), count)
    return [(label, value(rng, words.LABELS[kind][label])) for label in labels]


def _receipt(rng: random.Random) -> tuple[list[_Row], list[Question]]:
    store = rng.choice(words.STORES)
    rows, questions = [_Row((store,), "title")], [Question("Store?", store)]
    for item in rng.sample(words.ITEMS, rng.randint(1, 2)):
        price = value(rng, "amount")
        rows.append(_Row((item, price)))
        questions.append(Question(rng.choice(("Price of {}?", "{}?")).format(item), price))
    for label, said in fields(rng, "receipt", rng.randint(1, 3)):
        rows.append(_Row((label, said)))
        questions.append(ask(rng, label, said))
    return rows, questions


def _form(rng: random.Random) -> tuple[list[_Row], list[Question]]:
    rows, questions = [], []
    layout = rng.choice(("inline", "columns", "boxed"))
    for label, said in fields(rng, "form", rng.randint(2, 3 if layout == "boxed" else 5)):
        if layout == "inline":
            rows.append(_Row((f"{label}: {said}",)))
        elif layout == "columns":
            rows.append(_Row((label, said)))
        else:
            rows += [_Row((label,)), _Row((said,), "boxed")]
        questions.append(ask(rng, label, said))
    return rows, questions


def _table(rng: random.Random) -> tuple[list[_Row], list[Question]]:
    head, names, sorts = rng.choice(words.TABLES)
    rows, questions = [_Row(head, "header")], []
    for name in rng.sample(words.LISTS[names], rng.randint(2, 4)):
        values = [value(rng, sort) for sort in sorts]
        rows.append(_Row((name, *values)))
        for label, said in zip(head[1:], values, strict=True):
            questions.append(Question(f"{label} of {name}?", said))
    return rows, questions


def _screen(rng: random.Random) -> tuple[list[_Row], list[Question]]:
    title = rng.choice(words.SCREENS)
    rows, questions = [_Row((title,), "title")], [Question("Screen?", title)]
    for label, said in fields(rng, "screen", rng.randint(2, 4)):
        rows.append(_Row((label, said)))
        questions.append(ask(rng, label, said))
    if rng.random() < 0.5:
        button = rng.choice(words.BUTTONS)
        rows.append(_Row((button,), "button"))
        questions.append(Question("Button?", button))
    return rows, questions


# How it looks


def _style(rng: random.Random, kind: str) -> _Style:
    low, high = TEXT_SIZES
    size = round(low * (high / low) ** rng.random())
    dark = rng.random() < (0.5 if kind == "screen" else 0.15)
    bright, dim = (rng.randint(215, 255), rng.randint(0, 70))
    paper, ink = (dim // 2, bright) if dark else (bright, dim)
    roomy = rng.random() < 0.15
    return _Style(
        font=rng.choice(FONT_FILES),
        text_size=size,
        pitch=size * rng.uniform(1.45, 1.8),
        margin=max(4, round(size * rng.uniform(0.4, 0.9))),
        gap=round(size * rng.uniform(0.8, 2.0)),
        slack=(rng.randint(0, 60), rng.randint(0, 60)) if roomy else (0, 0),
        right_aligned=rng.random() < 0.5,
        ruled=rng.random() < 0.5,
        paper=tint(rng, paper),
        ink=tint(rng, ink),
        accent=tint(rng, rng.randint(60, 110), spread=50),
        noise=rng.choice((0.0, rng.uniform(0.0, 8.0))),
        noise_seed=rng.getrandbits(32),
    )


def tint(rng: random.Random, level: int, spread: int = 12) -> Colour:
    """Draw a colour near a grey level."""
    red, green, blue = (min(255, max(0, level + rng.randint(-spread, spread))) for _ in range(3))
    return red, green, blue


@lru_cache(maxsize=256)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Font of a file that matplotlib ships, so many pixels per em."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the document fonts come with matplotlib: pip install matplotlib")
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
    # The basic layout engine is always there; the other one depends on a system library.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


class _Canvas:
    """Canvas that draws text and keeps the box of each character."""

    def __init__(self, size: tuple[int, int], style: _Style) -> None:
        self.image = Image.new("RGB", size, style.paper)
        self.draw = ImageDraw.Draw(self.image)
        self.font = font(style.font, style.text_size)
        self.glyphs: list[Glyph] = []
        self._cap = -self.font.getbbox("H", anchor="ls")[1]

    def write(self, x: int, baseline: int, text: str, ink: Colour) -> None:
        """Draw `text` with its left end at `x` on the baseline."""
        self.draw.text((x, baseline), text, fill=ink, font=self.font, anchor="ls")
        ends = [x + self.font.getlength(text[:count]) for count in range(len(text) + 1)]
        for char, x0, x1 in zip(text, ends[:-1], ends[1:], strict=True):
            if char != " ":
                self.glyphs.append(Glyph(char, x0, baseline - self._cap, x1, baseline))


def _draw(content: _Content, style: _Style) -> Document:
    columns = _columns(content, style, font(style.font, style.text_size))
    inner = max(x for xs in columns.values() for x in xs[-1:])
    width = min(LONGEST_SIDE, inner + 2 * style.margin + style.slack[0])
    height = min(LONGEST_SIDE, round(len(content.rows) * style.pitch) + 2 * style.margin + style.slack[1])
    canvas = _Canvas((width, height), style)
    for number, row in enumerate(content.rows):
        top = style.margin + number * style.pitch
        _draw_row(canvas, row, style, content.kind, columns[len(row.cells)], top, width - style.slack[0])
    return Document(
        image=with_noise(canvas.image, style.noise, style.noise_seed),
        kind=content.kind,
        text_size=style.text_size,
        questions=content.questions,
        glyphs=tuple(canvas.glyphs),
        lines=tuple(" ".join(row.cells) for row in content.rows),
    )


def _columns(content: _Content, style: _Style, drawn: ImageFont.FreeTypeFont) -> dict[int, list[int]]:
    """Left edges of the columns, then the right edge of the last, by number of cells; 0 is the margin."""
    edges: dict[int, list[int]] = {}
    for count in {len(row.cells) for row in content.rows}:
        xs = [0]
        for column in range(count):
            widest = max(drawn.getlength(row.cells[column]) for row in content.rows if len(row.cells) == count)
            xs.append(xs[-1] + round(widest) + 1 + (style.gap if column < count - 1 else 0))
        edges[count] = xs
    return edges


def _draw_row(canvas: _Canvas, row: _Row, style: _Style, kind: str, xs: list[int], top: float, width: int) -> None:
    left, right = style.margin, width - style.margin
    box = (2, round(top) + 1, width - 3, round(top + style.pitch) - 1)
    ink, line = style.ink, blend(style.paper, style.ink, 0.35)
    if row.style in ("button", "header") or (row.style == "title" and kind == "screen"):
        canvas.draw.rectangle(box, fill=style.accent)
        ink = (255, 255, 255) if sum(style.accent) < 330 else (0, 0, 0)
    elif row.style == "boxed":
        canvas.draw.rectangle(box, outline=line)
    elif style.ruled:
        canvas.draw.line((2, box[3] + 1, width - 3, box[3] + 1), fill=line)
    baseline = round(top + style.pitch / 2 + canvas._cap / 2)
    centred = row.style == "button" or (row.style == "title" and kind == "receipt")
    for column, text in enumerate(row.cells):
        length = round(canvas.font.getlength(text)) + 1
        x = left + xs[column]
        if centred:
            x = (left + right - length) // 2
        elif style.right_aligned and column > 0 and column == len(row.cells) - 1:
            x = right - length
        canvas.write(x, baseline, text, ink)


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """Colour between two: 0 is the first, 1 the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def with_noise(image: Image.Image, noise: float, seed: int) -> Image.Image:
    """Add grey noise of a standard deviation in grey levels; 0 leaves the image as it is."""
    if not noise:
        return image
    pixels = np.asarray(image, dtype=np.float32)
    drawn = np.random.default_rng(seed).standard_normal(pixels.shape[:2], np.float32)
    noisy = pixels + noise * drawn[..., None]
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), "RGB")
