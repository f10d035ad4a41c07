"""The page of a comparison: nothing unescaped, nothing out of place, small with thousands of examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hvlc.evaluation.compare import with_agreement
from hvlc.evaluation.significance import flips, paired_tests
from hvlc.report.comparison import chance, comparison_markdown, error, gap, headline
from hvlc.report.comparison_page import write_comparison_page
from hvlc.report.layer_plot import layer_plot
from hvlc.report.thumbnails import image_budget, thumbnail
from hvlc.results import Evaluation, Interval
from hvlc.results.comparison import (
    Comparison,
    Flip,
    LayerError,
    ModelSummary,
    PairedTest,
    PlanChange,
    RunScores,
    StageError,
)
from hvlc.results.difference import ValueChange
from hvlc.results.measures import MEASURES
from tests.helpers.measurements import measured
from tests.report.test_page import Page, requests

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


def scores(evaluation: Evaluation) -> RunScores:
    found = {name: measure.read(evaluation) for name, measure in MEASURES.items()}
    plain = {n: Interval.model_validate(i.model_dump()) for n, i in found.items() if i is not None}
    n = evaluation.summary.n
    return RunScores(
        label=evaluation.label, contestant=evaluation.name, task="t", n=n, runs_on="a test", measures=plain
    )


def made(right: tuple[list[bool], list[bool]], **more: Any) -> tuple[Comparison, list[Evaluation]]:
    first, second = (measured(r, name=n) for r, n in zip(right, more.pop("names", ("a", "b")), strict=True))
    second = with_agreement(second, first)
    comparison = Comparison(
        reference=first.name,
        contestants=tuple(ModelSummary(name=e.name, source="package", size_bytes=10**6) for e in (first, second)),
        runs=(scores(first), scores(second)),
        tests=tuple(paired_tests([(second, first)])),
        flips=tuple(flips(second, first)),
        **more,
    )
    return comparison, [first, second]


def layer(name: str, layer: str = "model.layers.0", relative: float = 0.1) -> LayerError:
    return LayerError(
        contestant=name, layer=layer, kind="mlp", weights=1, relative_error=relative, worst="w", worst_error=relative
    )


def stage(name: str, stage: str, relative: float | None) -> StageError:
    return StageError(contestant=name, stage=stage, relative_error=relative, questions=1)


def grey(index: int) -> Image.Image:
    return Image.new("L", (60, 40), index % 256).convert("RGB")


def written(tmp_path: Path, comparison: Comparison, evaluations: list[Evaluation], images: Callable[[int], Any]) -> str:
    path = tmp_path / "c.html"
    write_comparison_page(path, comparison, evaluations, images, title=f"t {HOSTILE}")
    return path.read_text()


def test_everything_is_escaped_and_nothing_fetched(tmp_path: Path) -> None:
    names = ("a", HOSTILE)
    comparison, evaluations = made(
        ([True] * 3, [True, False, True]),
        names=names,
        layers=(layer(HOSTILE, layer=HOSTILE),),
        stages=(stage(HOSTILE, HOSTILE, 0.5),),
        plan=(PlanChange(component="c", weight=HOSTILE, formats={"a": "float32", HOSTILE: HOSTILE}),),
        settings={HOSTILE: {HOSTILE: (ValueChange(key=HOSTILE, a=HOSTILE, b=None),)}},
        notes=(HOSTILE,),
    )
    page = Page(written(tmp_path, comparison, evaluations, grey))
    assert len(page.all("img")) == 3
    assert len(page.all("script")) == 1
    assert not [tag for tag, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert requests((tmp_path / "c.html").read_text()) == []
    assert "<img" not in comparison_markdown(comparison, evaluations).replace("\\<img", "")


def test_flips_come_first_with_their_direction(tmp_path: Path) -> None:
    comparison, evaluations = made(([True, True, False, True], [True, False, True, True]))
    page = Page(written(tmp_path, comparison, evaluations, grey))
    cards = page.all("article")
    assert [(card["data-lost"], card["data-won"]) for card in cards] == [("B", ""), ("", "B"), ("", ""), ("", "")]
    values = [attributes.get("value") for attributes in page.all("input")]
    assert {"lost", "won"} <= set(values)


def test_the_page_works_without_images_and_layers(tmp_path: Path) -> None:
    comparison, evaluations = made(([True] * 2, [True] * 2))
    page = Page(written(tmp_path, comparison, evaluations, lambda index: None))
    assert not page.all("img")
    assert "Layer by layer" not in (tmp_path / "c.html").read_text()


def test_equal_weights_are_said_to_be_equal(tmp_path: Path) -> None:
    same: dict[str, Any] = {"layers": (layer("b", relative=0.0),), "stages": (stage("b", "merge", 0.0),)}
    comparison, evaluations = made(([True], [True]), **same)
    text = written(tmp_path, comparison, evaluations, grey)
    assert "All weights are equal" in text
    assert "All values are equal" in text


def test_2000_examples_fit_into_10_megabytes(tmp_path: Path) -> None:
    """The words of a page, and as many pictures that are as bad to compress as any."""
    comparison, evaluations = made(([True] * 2000, [True, False] * 1000))
    text = written(tmp_path, comparison, evaluations, lambda index: None)
    assert text.count("<article") == 2000
    noisy, _, _ = thumbnail(Image.effect_noise((500, 500), 40).convert("RGB"), image_budget(2000))
    assert len(text.encode()) + 2000 * len(noisy) < 10e6


@pytest.mark.parametrize("values", [[0.1, None, 1e-5], [0.0, 0.3, 0.0], [1.0, 10.0, 1.0], [1e-12, 1e-12, 0.0]])
def test_marks_lie_within_the_plot(values: list[float | None]) -> None:
    places = [(f"p{i}", "one" if i < 2 else "two") for i in range(3)]
    plot = layer_plot(places, {"b": {p: v for (p, _), v in zip(places, values, strict=True)}}, {"b": 1})
    assert plot is not None
    (line,) = plot.lines
    assert len(line.marks) == sum(v is not None for v in values)
    inside = [place for m in line.marks for place in (m.x, m.y)] + [p for s in line.segments for p in s]
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in [*inside, *(tick.at for tick in plot.y_ticks)])
    zero = [m.y for m, v in zip(line.marks, [v for v in values if v is not None], strict=True) if v == 0]
    assert all(y == 100 for y in zero)
    assert [name for _, _, name in plot.groups] == ["one", "two"]
    assert plot.groups[-1][0] + plot.groups[-1][1] == pytest.approx(100)


def test_nothing_is_plotted_where_all_is_equal() -> None:
    assert layer_plot([("a", "g")], {"b": {"a": 0.0}}, {"b": 0}) is None


def test_headlines_say_worse_noise_and_same() -> None:
    worse, _ = made(([True] * 30, [False] * 30))
    noise, _ = made(([True] * 9 + [False], [True] * 8 + [False] * 2))
    same, _ = made(([True] * 5, [True] * 5))
    assert "b is worse in exact match" in headline(worse)[0]
    assert "b is within noise of a" in headline(noise)[0]
    assert "on every example" in headline(same)[0]


def test_numbers_read_well() -> None:
    assert [error(v) for v in (None, 0.0, 0.0012, 0.5, 1.4)] == ["–", "0", "0.12 %", "50 %", "140 %"]
    assert (chance(0.0004), chance(0.25), chance(1.0)) == ("< 0.001", "0.25", "1")
    test = made(([True] * 30, [False] * 30))[0].tests[0]
    assert gap(test).startswith("-100.0 points (")


def test_records_that_contradict_themselves_are_refused() -> None:
    comparison, _ = made(([True] * 30, [False] * 30))
    test = comparison.tests[0].model_dump()
    for change in ({"verdict": "noise"}, {"adjusted": 0.0, "p_value": 0.5}, {"p_value": float("nan")}):
        with pytest.raises(ValueError, match="validation error"):
            PairedTest.model_validate({**test, **change})
    content = comparison.model_dump()
    for change in ({"reference": "b"}, {"contestants": [content["contestants"][0]] * 2}, {"contestants": ()}):
        with pytest.raises(ValueError, match="validation error"):
            Comparison.model_validate({**content, **change})
    assert Flip.model_validate(comparison.flips[0].model_dump()) == comparison.flips[0]
