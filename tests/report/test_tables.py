"""Evaluations and comparisons as tables, in the terminal and in Markdown: every number that is there, and no other."""

import io

import pytest
from rich.console import Console, RenderableType

from hvlc.evaluation.compare import with_agreement
from hvlc.report.columns import verdict
from hvlc.report.markdown import comparison_markdown
from hvlc.report.terminal import comparison_table, evaluation_table
from hvlc.results import Evaluation


def shown(renderable: RenderableType, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(renderable)
    return file.getvalue()


@pytest.fixture
def pair(evaluation) -> list[Evaluation]:
    reference = evaluation([str(i) for i in range(10)], name="float32")
    return [reference, with_agreement(evaluation([*(str(i) for i in range(9)), "x"]), reference)]


def test_one_evaluation(pair: list[Evaluation]) -> None:
    text = shown(evaluation_table(pair[1]))
    for words in (
        "90.0 % (59.6–98.2)",
        "form (5)",
        "a test",
        "6.5",
        "float32 · base",
        "lost 1, won 0, p = 1: within noise",
    ):
        assert words in text


def test_several_evaluations_fit_80_columns(pair: list[Evaluation]) -> None:
    text = shown(comparison_table(pair))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    for words in ("float32", "59.6–98.2", "90.0", "14.5", "20.0", "n = 10", "within noise"):
        assert words in text


def test_what_was_not_measured_is_absent(evaluation) -> None:
    text = comparison_markdown([evaluation(["0", "1"]).model_copy(update={"size_bytes": None})])
    assert text.splitlines()[2].endswith("| – | – | – |")


def test_names_are_not_markup(evaluation) -> None:
    text = shown(comparison_table([evaluation(["0"], name="[red]x")]), width=120)
    assert "[red]x" in text
    assert "[red]x" in shown(evaluation_table(evaluation(["0"], name="[red]x")))


def test_markdown_is_a_table_whatever_the_name(evaluation) -> None:
    lines = comparison_markdown([evaluation(["0", "1"], name="a|b\n<c>")]).splitlines()
    bars = [line.replace("\\|", "").count("|") for line in lines[:3]]
    assert bars == [14, 14, 14]
    assert lines[2].startswith("| a\\|b \\<c\\> |")
    assert lines[3] == ""


@pytest.mark.parametrize(
    ("lost", "won", "words"),
    [
        (0, 0, "no answer changed sides"),
        (3, 1, "lost 3, won 1, p = 0.62: within noise"),
        (12, 1, "lost 12, won 1, p = 0.0034: worse, not noise"),
        (0, 20, "lost 0, won 20, p < 0.001: better, not noise"),
    ],
)
def test_verdict(evaluation, lost: int, won: int, words: str) -> None:
    right = [str(i) for i in range(lost + won + 1)]
    reference = evaluation([*right[:lost], *["x"] * won, right[-1]])
    agreement = with_agreement(evaluation([*["x"] * lost, *right[lost:]]), reference).agreement
    assert agreement
    assert verdict(agreement) == words
