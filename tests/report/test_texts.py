"""Evaluations on a text as a terminal table, as Markdown and as a page."""

from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from hvlc.errors import UserError
from hvlc.evaluation.fidelity import fidelity
from hvlc.evaluation.perplexity import with_reading_agreement
from hvlc.report.markdown import text_markdown
from hvlc.report.terminal import text_table
from hvlc.report.text_page import write_text_page
from hvlc.report.texts import TEXT_COLUMNS, require_same_windows
from hvlc.results import Divergence, TextEvaluation
from tests.report.test_page import ATTACK, Page, requests

FLOAT32 = [1.0, 2.0, 1.5, 1.2, 1.8, 1.1, 0.9]
W4A16 = [1.1, 2.1, 1.5, 1.3, 1.8, 1.2, 1.0]


@pytest.fixture
def pair(reading) -> list[TextEvaluation]:
    reference = reading(FLOAT32, name="float32")
    parts = [Divergence(tokens=10, kl=0.01 * (i + 1), agreeing=9 + i % 2) for i in range(len(FLOAT32))]
    ours = with_reading_agreement(reading(W4A16), reference)
    return [reference, ours.model_copy(update={"fidelity": fidelity("float32", "", parts), "size_bytes": 6_480_000})]


def printed(evaluations: list[TextEvaluation]) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(text_table(evaluations))
    return capture.get()


def test_a_table_fits_80_columns_and_has_every_number(pair: list[TextEvaluation]) -> None:
    text = printed(pair)
    assert all(len(line) <= 80 for line in text.splitlines())
    perplexity = pair[1].perplexity
    for shown in (f"{perplexity.value:.3f}", f"{perplexity.low:.3f}–{perplexity.high:.3f}", "0.04", "94.3", "6.5"):
        assert shown in text
    assert "70 tokens in 7 windows of 11" in " ".join(text.split())


def test_ranges_of_few_windows_are_marked(reading) -> None:
    assert "~" not in printed([reading(FLOAT32)]).split("Text:")[0]
    assert "~" in printed([reading(FLOAT32[:3])]).split("Text:")[0]


def test_markdown_renders_as_one_table(pair: list[TextEvaluation], reading) -> None:
    named = reading(FLOAT32, name="a|b\n<c>`*")
    tokens = MarkdownIt("commonmark").enable("table").parse(text_markdown([*pair, named]))
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == 1
    assert kinds.count("th_open") == len(TEXT_COLUMNS)
    assert kinds.count("td_open") == 3 * len(TEXT_COLUMNS)
    cells = ["".join(child.content for child in token.children or ()) for token in tokens if token.type == "inline"]
    assert "a|b <c>`*" in cells


def test_the_page_is_whole_and_asks_for_nothing(pair: list[TextEvaluation], tmp_path: Path) -> None:
    attacked = [pair[0].model_copy(update={"name": ATTACK}), pair[1]]
    write_text_page(tmp_path / "r.html", attacked, title=ATTACK, facts={ATTACK: ATTACK})
    text = (tmp_path / "r.html").read_text("utf-8")
    assert requests(text) == []
    assert "<script" not in text
    page = Page(text)
    assert len(page.all("circle")) == 7 + 7 + 7  # two models' perplexities, one model's divergences
    places = [float(str(circle[axis]).removesuffix("%")) for circle in page.all("circle") for axis in ("cx", "cy")]
    assert all(0 <= place <= 100 for place in places)
    assert f"{pair[1].perplexity.value:.3f}" in text


def test_a_page_without_reference_shows_one_plot(reading, tmp_path: Path) -> None:
    write_text_page(tmp_path / "r.html", [reading([0.0])], title="t", facts={})
    assert len(Page((tmp_path / "r.html").read_text("utf-8")).all("figure")) == 1


def test_other_windows_are_not_shown_side_by_side(reading) -> None:
    with pytest.raises(UserError, match=r"report\.unpaired"):
        require_same_windows([reading(FLOAT32), reading(FLOAT32, digest="1" * 64)])
    with pytest.raises(UserError, match=r"report\.empty"):
        require_same_windows([])
