"""The examples of a page: disagreements first, equal answers of several runs together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from hvlc.report.columns import percent
from hvlc.report.runs import Run
from hvlc.report.thumbnails import image_budget, thumbnail
from hvlc.results import ExampleResult

#: Width and height that a picture may fill, in CSS pixels.
_FRAME = (240, 216)


@dataclass(frozen=True)
class Answer:
    """One answer and the runs that gave it."""

    text: str
    right: bool
    runs: list[Run]


@dataclass(frozen=True)
class Outcome:
    """Outcome of an example in all runs.

    Attributes:
        example: the example, as the first run answered it.
        answers: the distinct answers, right ones first.
        wrong: letters of the runs that are wrong.
        differing: letters of the runs that answer otherwise than their reference, or, without one on the page,
            than any other run.
        lost: letters of the runs that are wrong where their reference is right.
        won: letters of the runs that are right where their reference is wrong.
        cost: visual tokens and scale, over all runs.
    """

    example: ExampleResult
    answers: list[Answer]
    wrong: list[str]
    differing: list[str]
    lost: list[str]
    won: list[str]
    cost: str

    @property
    def disagree(self) -> bool:
        """Whether the runs gave different answers."""
        return len(self.answers) > 1

    @property
    def rank(self) -> tuple[int, int]:
        """Order on the page: right and wrong at once, different answers, all wrong, all right."""
        flips = len({answer.right for answer in self.answers}) > 1
        group = 0 if flips else 1 if self.disagree else 2 if self.wrong else 3
        return group, self.example.index


@dataclass(frozen=True)
class Card:
    """An outcome with its picture: a data URI, width and height in CSS pixels; "" where the question has none."""

    outcome: Outcome
    image: str
    width: int
    height: int


def outcomes(runs: Sequence[Run]) -> list[Outcome]:
    """Outcomes of each example, in the order of the page."""
    rows = zip(*(run.evaluation.examples for run in runs), strict=True)
    return sorted((_outcome(runs, row) for row in rows), key=lambda outcome: outcome.rank)


def cards(shown: Sequence[Outcome], images: Callable[[int], Image.Image | None]) -> Iterator[Card]:
    """The outcomes with their images, loaded and reduced one at a time."""
    budget = image_budget(len(shown))
    for outcome in shown:
        image = images(outcome.example.index)
        yield _card(outcome, *thumbnail(image, budget)) if image else Card(outcome, "", 0, 0)


def _card(outcome: Outcome, image: str, width: int, height: int) -> Card:
    # Small documents are shown larger, as far as the picture's frame in page.css lets them.
    factor = max(1.0, min(1.6, _FRAME[0] / width, _FRAME[1] / height))
    return Card(outcome, image, round(width * factor), round(height * factor))


def _outcome(runs: Sequence[Run], row: Sequence[ExampleResult]) -> Outcome:
    texts = [" ".join(example.prediction.split()) for example in row]
    given: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        given.setdefault(text, []).append(position)
    answers = [Answer(text, row[at[0]].exact, [runs[i] for i in at]) for text, at in given.items()]
    by_letter = {run.letter: text for run, text in zip(runs, texts, strict=True)}
    right = {run.letter: example.exact for run, example in zip(runs, row, strict=True)}
    return Outcome(
        example=row[0],
        answers=sorted(answers, key=lambda answer: not answer.right),
        wrong=[run.letter for run, example in zip(runs, row, strict=True) if not example.exact],
        differing=[run.letter for run in runs if _differs(run, by_letter)],
        lost=[run.letter for run in runs if run.reference and right[run.reference] > right[run.letter]],
        won=[run.letter for run in runs if run.reference and right[run.reference] < right[run.letter]],
        cost=_cost(row),
    )


def _differs(run: Run, by_letter: dict[str, str]) -> bool:
    ours = by_letter[run.letter]
    if run.reference is not None:
        return ours != by_letter[run.reference]
    return any(ours != text for text in by_letter.values())


def _cost(row: Sequence[ExampleResult]) -> str:
    counts = sorted({example.visual_tokens for example in row})
    tokens = "–".join(str(count) for count in sorted({counts[0], counts[-1]}))
    scales = sorted({scale for example in row for scale in example.scales})
    if not scales or scales[-1] == scales[0] == 1:
        return f"{tokens} visual tokens"
    shown = "–".join(dict.fromkeys(percent(scale, 0).removesuffix(" %") for scale in (scales[0], scales[-1])))
    return f"{tokens} visual tokens, scale {shown} %"
