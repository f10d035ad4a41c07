import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvlc.errors import UserError
from hvlc.evaluation.compare import with_agreement
from hvlc.report.gallery import outcomes
from hvlc.report.page import write_page
from hvlc.report.plots import score_by_kind, score_by_time, visual_tokens
from hvlc.report.runs import lettered
from hvlc.report.thumbnails import image_budget, thumbnail

ATTACK = "<script>alert(1)</script>"
VOID = {"meta", "img", "input", "link", "br"}


class Page(HTMLParser):
    """Elements with their attributes; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def image(index: int) -> Image.Image:
    return Image.new("RGB", (40 + index, 30), (index, 90, 90))


def requests(text: str) -> list[str]:
    """Everything in a page that a browser would fetch."""
    page, found = Page(text), []
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            value = attributes.get(name)
            if value and not value.startswith("data:"):
                found.append(f"{tag} {name}={value}")
    return found + re.findall(r"url\((?!data:)[^)]*\)|@import[^;]*", text)


@pytest.fixture
def written(tmp_path: Path, evaluation) -> str:
    reference = evaluation(["0", "1", "2", "x"], name="float32")
    ours = with_agreement(evaluation(["0", ATTACK, "2", "y"], scale=0.5), reference)
    path = tmp_path / "report.html"
    facts = {f"recipe{ATTACK}": f"w4a16{ATTACK}"}
    write_page(path, [ours], image, reference=reference, title=f"nano {ATTACK}", facts=facts)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    return path.read_text()


def test_the_page_asks_for_nothing(written: str) -> None:
    assert requests(written) == []
    assert "http:" not in written
    assert "https:" not in written


def test_the_request_checker_fails_when_it_must() -> None:
    assert requests('<img src="https://a/b.png">')
    assert requests("<style>a{background:url(x.png)}</style>")
    assert not requests('<img src="data:image/webp;base64,AA">')


def test_text_is_escaped_everywhere(written: str) -> None:
    assert ATTACK not in written
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written
    assert len(Page(written).all("script")) == 1


def test_attributes_are_escaped(tmp_path: Path, evaluation) -> None:
    hostile = '"><img src=x onerror=alert(1)>'
    run = evaluation(["0", hostile], name=hostile, kinds=[hostile, "form"], question=hostile)
    write_page(tmp_path / "r.html", [run, run.model_copy(update={"name": "b"})], image, title=hostile, facts={})
    page = Page((tmp_path / "r.html").read_text())
    assert len(page.all("img")) == 2
    assert not [tag for tag, attributes in page.elements if any(name.startswith("on") for name in attributes)]


def test_the_policy_names_the_script_that_is_there(written: str) -> None:
    script = re.search(r"<script>(.*?)</script>", written, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policies = [meta["content"] for meta in Page(written).all("meta") if "http-equiv" in meta]
    assert policies == [f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"]


def test_the_page_suits_a_phone_and_the_dark(written: str) -> None:
    assert any(meta.get("name") == "viewport" for meta in Page(written).all("meta"))
    assert "prefers-color-scheme: dark" in written


def test_every_example_is_there_disagreements_first(written: str) -> None:
    cards = Page(written).all("article")
    assert [(card["data-wrong"], card["data-differing"]) for card in cards] == [
        ("B", "A B"),
        ("A B", "A B"),
        ("", ""),
        ("", ""),
    ]
    assert len(Page(written).all("img")) == 4
    assert "within noise" in written


def test_equal_answers_share_a_line(evaluation) -> None:
    runs = lettered([evaluation(["0", "1"], name=name) for name in "ab"] + [evaluation(["0", "7"], name="c")])
    first, second = outcomes(runs)
    assert first.example.index == 1
    assert [(a.text, a.right, [run.letter for run in a.runs]) for a in first.answers] == [
        ("1", True, ["A", "B"]),
        ("7", False, ["C"]),
    ]
    assert (second.disagree, second.wrong, second.cost) == (False, [], "10 visual tokens")


def test_different_examples_are_not_shown_side_by_side(tmp_path: Path, evaluation) -> None:
    runs = [evaluation(["0", "1"]), evaluation(["0", "1"], digest="1" * 64)]
    with pytest.raises(UserError, match=r"report\.unpaired"):
        write_page(tmp_path / "r.html", runs, image, title="t", facts={})
    with pytest.raises(UserError, match=r"report\.empty"):
        write_page(tmp_path / "r.html", [], image, title="t", facts={})
    assert not list(tmp_path.iterdir())


def test_a_failure_halfway_leaves_the_old_page(tmp_path: Path, evaluation) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")

    def interrupted(index: int) -> Image.Image:
        if index == 1:
            raise KeyboardInterrupt
        return image(index)

    with pytest.raises(KeyboardInterrupt):
        write_page(path, [evaluation(["0", "1"])], interrupted, title="t", facts={})
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("r.html", "old")]


def test_an_unwritable_place_is_a_user_error(tmp_path: Path, evaluation) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "none" / "r.html", tmp_path / "file" / "r.html"):
        with pytest.raises(UserError, match=r"results\.unwritable"):
            write_page(place, [evaluation(["0", "1"])], image, title="t", facts={})


def test_256_noisy_images_stay_under_3_megabytes() -> None:
    noisy = Image.effect_noise((500, 500), 20).convert("RGB")
    uri, width, height = thumbnail(noisy, image_budget(256))
    assert len(uri) * 256 < 2.7e6
    assert width == height >= 140


def test_2000_examples_stay_under_10_megabytes(evaluation, tmp_path: Path) -> None:
    """Three models on pictures of nothing but noise, the worst there is; here one of them stands for all."""
    runs = [evaluation([str(i + (i % 10 == run)) for i in range(2000)], name=f"run {run}") for run in range(3)]
    tiny = Image.new("RGB", (4, 4))
    write_page(tmp_path / "r.html", runs, lambda index: tiny, title="t", facts={})
    text = (tmp_path / "r.html").read_text("utf-8")
    pictures = re.findall(r'src="(data:[^"]*)"', text)
    assert len(pictures) == 2000
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    worst, _, _ = thumbnail(Image.fromarray(noise), image_budget(2000))
    assert len(text.encode()) - sum(map(len, pictures)) + 2000 * len(worst) < 10e6


def test_a_question_without_an_image_has_no_picture(evaluation, tmp_path: Path) -> None:
    write_page(tmp_path / "r.html", [evaluation(["0", "1"])], lambda index: None, title="t", facts={})
    page = Page((tmp_path / "r.html").read_text("utf-8"))
    assert len(page.all("article")) == 2
    assert page.all("img") == []


def test_a_huge_strip_becomes_a_small_one() -> None:
    uri, width, height = thumbnail(Image.new("RGB", (10000, 50)), image_budget(1))
    assert uri.startswith("data:image/webp;base64,")
    assert (width, height) == (480, 2)


@pytest.mark.parametrize("predictions", [["0", "1"], ["x", "x"], ["0"]])
def test_marks_lie_within_their_plots(evaluation, predictions: list[str]) -> None:
    runs = lettered([evaluation(predictions)])
    dots = [dot for _, _, group in score_by_kind(runs).groups for dot in group]
    points, histograms = score_by_time(runs).points, visual_tokens(runs)
    places = [place for dot in dots for place in (dot.low, dot.at, dot.high)]
    places += [place for point in points for place in (point.x, point.y, point.low, point.high)]
    places += [place for row in histograms.rows for bar in row.bars for place in (bar[0], bar[0] + bar[1], bar[2])]
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in places)
    assert histograms.ticks[-1].at == 100
