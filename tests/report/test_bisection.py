"""Bisections for people: the verdict first, every stage after it, the same plot for the same numbers."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from hvlc.files.whole import write_files
from hvlc.report.bisection import bisection_markdown, bisection_tables, headline, number
from hvlc.report.bisection_plot import draw_bisection
from hvlc.results.bisection import Bisection, Deviation, StageResult

RIGHT = Deviation(
    relative=2e-7, cosine=1, max_abs=1e-6, place=(3, 1), found=0.5, expected=0.5, shape=(8, 2), expected_shape=(8, 2)
)
WRONG = RIGHT.model_copy(update={"relative": 0.7, "cosine": 0.6, "max_abs": 4.5, "found": 5.0})
EQUAL = Deviation(relative=0, max_abs=0, place=(0, 0), found=1, expected=1, shape=(8,), expected_shape=(8,))


def stage(name: str, own: Deviation, tolerance: float = 1e-3, **more: str) -> StageResult:
    return StageResult(
        **{"name": name, "own": own, "accumulated": own, "tolerance": tolerance, "precision": "float"} | more
    )  # type: ignore[arg-type]


def bisection(*stages: StageResult, **changes: object) -> Bisection:
    settings = {
        "package": "w4a16",
        "built_from": "0" * 64,
        "package_runs_on": "onnxruntime CPU",
        "reference": "nano",
        "reference_runs_on": "torch CPU",
        "prompt": "What?",
        "images": ("a_b.png",),
        "encoder": "base",
        "vrc": True,
        "positions": 8,
        "stages": stages,
    }
    return Bisection.model_validate(settings | changes)


CLEAN = bisection(stage("tokenization", EQUAL, 0), stage("decoder.layers.0", RIGHT))
BROKEN = bisection(
    stage("tokenization", EQUAL, 0),
    stage("decoder.layers.0", RIGHT),
    stage("decoder.layers.1", WRONG),
    departs="decoder.layers.1",
    hints=("mlp.up_proj.weight is 1.50 times the reference's",),
    notes=("the residual stream is rotated",),
    changed_files=("model.onnx",),
)


def printed(found: Bisection, width: int = 80) -> str:
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(bisection_tables(found))
    return capture.get()


def test_the_verdict_names_the_first_stage_and_its_error() -> None:
    assert headline(BROKEN) == "w4a16 departs from nano at decoder.layers.1: an error of 0.7, and 0.001 is tolerated"
    assert headline(CLEAN) == "w4a16 does not depart from nano: every stage is within its tolerance"


@pytest.mark.parametrize(
    ("own", "tolerance", "words"),
    [
        (EQUAL.model_copy(update={"relative": 0.25}), 0, "25.0% of the values differ"),
        (Deviation(shape=(2, 3), expected_shape=(4, 3)), 1e-3, "shape [2, 3] where [4, 3] is expected"),
        (
            Deviation(place=(1, 2), shape=(4, 3), expected_shape=(4, 3)),
            1e-3,
            "a value at position 1, channel 2 is not finite",
        ),
    ],
)
def test_other_reasons_are_told_in_words(own: Deviation, tolerance: float, words: str) -> None:
    assert headline(bisection(stage("merge", own, tolerance), departs="merge")).endswith(f"merge: {words}")


def test_the_terminal_has_the_verdict_the_evidence_and_every_stage() -> None:
    text = printed(BROKEN)
    lines = text.splitlines()
    assert lines[0].startswith("w4a16 departs from nano at decoder.layers.1")
    assert "mlp.up_proj.weight is 1.50 times the reference's" in text
    assert "5 where 0.5 is expected, at position 3, channel 1" in text
    for name in ("tokenization", "decoder.layers.0", "decoder.layers.1"):
        assert sum(line.strip().startswith(name) for line in lines) == 1
    assert all(len(line) <= 80 for line in lines)
    assert "not as they were built: model.onnx" in text


def test_markdown_is_a_table_whose_cells_are_its_own() -> None:
    text = bisection_markdown(BROKEN)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(BROKEN.stages)
    assert {row.count(" | ") for row in rows} == {6}
    assert "| **decoder.layers.1** |" in text
    assert "a\\_b.png" in text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (3.4e-7, "3.4e-07"), (0.0523, "0.052"), (1.9, "1.9")]
)
def test_errors_have_two_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_same_bisection_is_drawn_as_the_same_bytes(tmp_path: Path) -> None:
    many = [stage(f"decoder.layers.{i}", RIGHT) for i in range(90)]
    lost = StageResult(name="sampling", own=Deviation(shape=(), expected_shape=(3,)), tolerance=0.05, precision="float")
    for found in (CLEAN, BROKEN, bisection(*many, lost, departs="sampling")):
        drawn = []
        for attempt in ("first", "second"):
            files = [tmp_path / f"{attempt}.svg", tmp_path / f"{attempt}.png"]
            write_files(draw_bisection(found, files), "results.unwritable")
            drawn.append([file.read_bytes() for file in files])
        assert drawn[0] == drawn[1]


def test_a_verdict_that_the_stages_do_not_bear_is_refused() -> None:
    for departs, stages in ((None, [stage("merge", WRONG)]), ("merge", [stage("merge", RIGHT)])):
        with pytest.raises(ValidationError, match="the verdict says"):
            bisection(*stages, departs=departs)
    with pytest.raises(ValidationError):
        Deviation(relative=float("nan"), shape=(1,), expected_shape=(1,))
