"""Pages of the wide edition: headings, body and small print together, pictures, and margins as scans have them.

What the narrow edition (`hvlc.zoo.documents`) has of one size, text, is here of 8 to 40 pixels on one page, so that
questions about a page differ in how far it may be shrunk, and encoders in what they can read.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hvlc.zoo import words
from hvlc.zoo.documents import (
    FONT_FILES,
    KINDS,
    SPLITS,
    Colour,
    Document,
    Glyph,
    Question,
    ask,
    blend,
    fields,
    font,
    tint,
    value,
    with_noise,
    word,
)

#: Raised whenever a change to the generator changes what it draws.
GENERATOR_VERSION = 1

#: Text sizes in pixels per em, smallest and largest, by what the text is.
SIZES = {"heading": (20, 40), "body": (11, 18), "small": (8, 10)}

#: No side of a page is longer than this, in pixels.
LONGEST_SIDE = 512

_TITLES = ("Invoice", "Ticket", "Booking", "Menu", "Report", "Notice", "Permit", "Voucher", "Label", "Order")
_NAMED = {
    "receipt": ("Store?", words.STORES),
    "screen": ("Screen?", words.SCREENS),
    "form": ("Title?", _TITLES),
    "table": ("Title?", _TITLES),
}


@dataclass(frozen=True)
class _Line:
    """A line of text: one cell, or a label and a value at the right, or the cells of a table."""

    cells: tuple[str, ...]
    size: int
    style: str = "plain"  # plain, bar, boxed, header


@dataclass(frozen=True)
class _Look:
    """Colours and lengths of a page, in pixels."""

    font: str
    paper: Colour
    ink: Colour
    accent: Colour
    margin: int
    gap: int
    loose: float  # pitch of a line by its size
    ruled: bool
    noise: float
    noise_seed: int


def render(split: str, index: int) -> Document:
    """Draw page `index` of `split`; equal arguments give equal pages.

    Args:
        split: One of `SPLITS`. No two splits share a seed, and none shares one with the narrow edition.
        index: Any number from 0.

    Raises:
        ValueError: If the split is unknown or the index negative.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index is {index}, must not be negative")
    rng = _rng(split, index, "page")
    kind = rng.choice(KINDS)
    lines, questions = _content(rng, kind)
    return _draw(rng, kind, lines, questions)


def render_sheet(split: str, index: int) -> Document:
    """Draw a page full of unrelated words of one size, without questions, for learning to read.

    Args:
        split: One of `SPLITS`; sheets share no seed with the pages of any split.
        index: Any number from 0.
    """
    rng = _rng(split, index, "sheet")
    low, high = SIZES["small"][0], SIZES["heading"][1]
    size = round(low * (high / low) ** rng.random())
    look, lines = _look(rng, "sheet"), []
    for _ in range(max(2, int(180 / (size * look.loose)))):
        row = word(rng)
        while len(row) * size * 0.6 < 150:
            row += " " + word(rng)
        lines.append(_Line((row,), size, rng.choice(("plain", "plain", "plain", "boxed", "bar"))))
    return _composed(rng, "sheet", lines, [], look, None)


def examples(split: str, count: int, start: int = 0) -> Iterator[tuple[Document, Question]]:
    """Yield pages `start` to `start + count - 1`, each with one question chosen by its seed."""
    for index in range(start, start + count):
        page = render(split, index)
        yield page, _rng(split, index, "question").choice(page.questions)


def _rng(split: str, index: int, purpose: str) -> random.Random:
    return random.Random(f"hvlc pages {GENERATOR_VERSION}/{split}/{index}/{purpose}")


def _size(rng: random.Random, what: str) -> int:
    low, high = SIZES[what]
    return round(low * (high / low) ** rng.random())


def _content(rng: random.Random, kind: str) -> tuple[list[_Line], list[Question]]:
    """Lines from top to bottom and questions about all of them."""
    lines: list[_Line] = []
    questions: list[Question] = []

    def add(cells: tuple[str, ...], size: int, style: str = "plain") -> None:
        lines.append(_Line(cells, size, style))

    body = _size(rng, "body")
    labelled = fields(rng, "form" if kind == "table" else kind, 6)
    if rng.random() < 0.75:
        size, (asked, names) = _size(rng, "heading"), _NAMED[kind]
        title = rng.choice(names)
        add((title,), size, rng.choice(("plain", "plain", "bar")))
        questions.append(Question(asked, title, size))
        if rng.random() < 0.35:
            label, said = labelled.pop()
            add((label, said), round(size * 0.8))
            questions.append(_sized(ask(rng, label, said), round(size * 0.8)))
    if kind == "table":
        _add_table(rng, body, lines, questions)
    for label, said in [labelled.pop() for _ in range(rng.randint(1, 3) - (kind == "table"))]:
        inline = rng.random() < 0.3
        add((f"{label}: {said}",) if inline else (label, said), body, rng.choice(("plain", "plain", "boxed")))
        questions.append(_sized(ask(rng, label, said), body))
    if rng.random() < 0.7 or len(questions) < 2:
        size = _size(rng, "small")
        for label, said in [labelled.pop() for _ in range(rng.randint(1, 2))]:
            add((f"{label}: {said}",), size)
            questions.append(_sized(ask(rng, label, said), size))
    return lines, questions


def _sized(question: Question, size: int) -> Question:
    return Question(question.text, question.answer, size)


def _add_table(rng: random.Random, size: int, lines: list[_Line], questions: list[Question]) -> None:
    head, names, sorts = rng.choice(words.TABLES)
    lines.append(_Line(head, size, "header"))
    for name in rng.sample(words.LISTS[names], rng.randint(2, 3)):
        values = [value(rng, sort) for sort in sorts]
        lines.append(_Line((name, *values), size))
        questions += [Question(f"{label} of {name}?", said, size) for label, said in zip(head[1:], values, strict=True)]


def _look(rng: random.Random, kind: str) -> _Look:
    dark = rng.random() < (0.4 if kind == "screen" else 0.1)
    bright, dim = (rng.randint(215, 255), rng.randint(0, 70))
    paper, ink = (dim // 2, bright) if dark else (bright, dim)
    return _Look(
        font=rng.choice(FONT_FILES),
        paper=tint(rng, paper),
        ink=tint(rng, ink),
        accent=tint(rng, rng.randint(60, 110), spread=50),
        margin=rng.randint(4, 12),
        gap=rng.randint(10, 28),
        loose=rng.uniform(1.35, 1.7),
        ruled=rng.random() < 0.4,
        noise=rng.choice((0.0, rng.uniform(0.0, 8.0))),
        noise_seed=rng.getrandbits(32),
    )


def _draw(rng: random.Random, kind: str, lines: list[_Line], questions: list[Question]) -> Document:
    picture = (rng.randint(40, 130), rng.randint(40, 110)) if rng.random() < 0.35 else None
    return _composed(rng, kind, lines, questions, _look(rng, kind), picture)


def _composed(
    rng: random.Random,
    kind: str,
    lines: list[_Line],
    questions: list[Question],
    look: _Look,
    picture: tuple[int, int] | None,
) -> Document:
    """Page with its lines at the left, a picture at the right or below, and blank paper around both."""
    edges = {
        count: _columns(lines, count, look) for count in {len(line.cells) for line in lines if len(line.cells) > 2}
    }
    inner = max(_length(line, look, edges) for line in lines)
    tall = round(sum(line.size * look.loose for line in lines))
    width, height = inner + 2 * look.margin, tall + 2 * look.margin
    beside = picture is not None and rng.random() < 0.6 and width + picture[0] + look.gap <= LONGEST_SIDE
    corner = (0, 0)
    if picture is not None:
        corner = (inner + look.margin + look.gap, look.margin) if beside else (look.margin, tall + look.margin)
        width = max(width, corner[0] + picture[0] + look.margin)
        height = max(height, corner[1] + picture[1] + look.margin)
    left, top, width, height = _framed(rng, width, height)
    image = Image.new("RGB", (width, height), look.paper)
    if picture is not None:
        image.paste(_picture(rng, picture), (left + corner[0], top + corner[1]))
    glyphs: list[Glyph] = []
    pen, y = ImageDraw.Draw(image), top + look.margin + 0.0
    for line in lines:
        _draw_line(pen, glyphs, line, look, (left + look.margin, y, inner), edges.get(len(line.cells)))
        y += line.size * look.loose
    return Document(
        image=with_noise(image, look.noise, look.noise_seed),
        kind=kind,
        text_size=min(line.size for line in lines),
        questions=tuple(questions),
        glyphs=tuple(glyphs),
        lines=tuple(" ".join(line.cells) for line in lines),
        line_sizes=tuple(line.size for line in lines),
    )


def _framed(rng: random.Random, width: int, height: int) -> tuple[int, int, int, int]:
    """Left and top of the page within blank paper, and the paper's width and height: up to half of a side is margin."""
    width, height = min(width, LONGEST_SIDE), min(height, LONGEST_SIDE)
    if rng.random() >= 0.35:
        return 0, 0, width, height
    sides = [rng.randint(0, extent // 2) for extent in (width, width, height, height)]
    across, down = min(sides[0] + sides[1], LONGEST_SIDE - width), min(sides[2] + sides[3], LONGEST_SIDE - height)
    return min(sides[0], across), min(sides[2], down), width + across, height + down


def _length(line: _Line, look: _Look, edges: dict[int, list[int]]) -> int:
    """Width of a line in pixels."""
    if len(line.cells) in edges:
        return edges[len(line.cells)][-1]
    drawn = font(look.font, line.size)
    return sum(round(drawn.getlength(cell)) + 1 for cell in line.cells) + look.gap * (len(line.cells) - 1)


def _columns(lines: list[_Line], count: int, look: _Look) -> list[int]:
    """Left edges of a table's columns, then the right edge of the last."""
    edges = [0]
    for column in range(count):
        cells = [(line.cells[column], line.size) for line in lines if len(line.cells) == count]
        widest = max(font(look.font, size).getlength(cell) for cell, size in cells)
        edges.append(edges[-1] + round(widest) + 1 + (look.gap if column < count - 1 else 0))
    return edges


def _draw_line(
    pen: ImageDraw.ImageDraw,
    glyphs: list[Glyph],
    line: _Line,
    look: _Look,
    place: tuple[int, float, int],
    edges: list[int] | None,
) -> None:
    left, top, inner = place
    pitch = line.size * look.loose
    box = (left - 3, round(top) + 1, left + inner + 2, round(top + pitch) - 1)
    ink, rule = look.ink, blend(look.paper, look.ink, 0.35)
    if line.style in ("bar", "header"):
        pen.rectangle(box, fill=look.accent)
        ink = (255, 255, 255) if sum(look.accent) < 330 else (0, 0, 0)
    elif line.style == "boxed":
        pen.rectangle(box, outline=rule)
    elif look.ruled:
        pen.line((box[0], box[3] + 1, box[2], box[3] + 1), fill=rule)
    drawn = font(look.font, line.size)
    cap = -drawn.getbbox("H", anchor="ls")[1]
    baseline = round(top + pitch / 2 + cap / 2)
    for column, text in enumerate(line.cells):
        x = left + (edges[column] if edges else 0)
        if edges is None and column == 1:
            x = left + inner - round(drawn.getlength(text)) - 1
        pen.text((x, baseline), text, fill=ink, font=drawn, anchor="ls")
        ends = [x + drawn.getlength(text[:count]) for count in range(len(text) + 1)]
        for char, x0, x1 in zip(text, ends[:-1], ends[1:], strict=True):
            if char != " ":
                glyphs.append(Glyph(char, x0, baseline - cap, x1, baseline))


def _picture(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """A picture that says nothing: soft colours as of a photo, some shapes as of a drawing."""
    values = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(values, "RGB").resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 5)):
        xs, ys = sorted(rng.randint(0, size[0]) for _ in range(2)), sorted(rng.randint(0, size[1]) for _ in range(2))
        colour = tuple(rng.randint(0, 255) for _ in range(3))
        if rng.random() < 0.5:
            pen.ellipse((xs[0], ys[0], xs[1], ys[1]), fill=colour)
        else:
            pen.line((xs[0], ys[0], xs[1], ys[1]), fill=colour, width=rng.randint(1, 4))
    return image
