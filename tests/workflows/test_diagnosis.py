"""Hints about stages that depart: each mistake is recognized, and what is right gets no hint."""

import json
from pathlib import Path

import numpy as np
import pytest

from hvlc.results import trace_points
from hvlc.results.trace_points import Question
from hvlc.workflows.bisect.diagnosis import diagnose, reader
from hvlc.workflows.bisect.opening import open_tracer
from tests.helpers.faults import planted

RANDOM = np.random.default_rng(0)
TILES = RANDOM.normal(size=(4, 3, 8, 8)).astype(np.float32)


def normalized(found: np.ndarray) -> tuple[str, ...]:
    """Hints about tiles."""
    return hints(trace_points.PREPROCESSING, found, TILES)


def hints(stage: str, found: np.ndarray, expected: np.ndarray) -> tuple[str, ...]:
    """Hints that need no package."""
    return diagnose(stage, {}, {stage: found}, {stage: expected}, None, Path())  # type: ignore[arg-type]


def test_right_tiles_get_no_hint() -> None:
    assert normalized(TILES.copy()) == ()


def test_channels_in_another_order_are_recognized() -> None:
    assert normalized(TILES[:, ::-1]) == ("the colour channels are in the order 2, 1, 0",)
    rolled = normalized(TILES[:, [1, 2, 0]])
    assert rolled == ("the colour channels are in the order 1, 2, 0",)


@pytest.mark.parametrize(
    ("gain", "shift", "cause"), [(1, 0.1, "image_mean"), (2, 0, "image_std"), (2, -0.3, "image_mean and image_std")]
)
def test_another_normalization_is_recognized(gain: float, shift: float, cause: str) -> None:
    found = TILES.copy()
    found[:, 1] = gain * found[:, 1] + shift
    assert normalized(found) == (
        f"channel 1 is {gain:.3f} times the reference's, shifted by {shift:+.3f}: another {cause}",
    )


def test_tiles_that_are_missing_empty_or_repeated_are_recognized() -> None:
    assert normalized(TILES[:3]) == ("3 tiles, where the reference cuts 4",)
    found = TILES.copy()
    found[1], found[3] = 0, TILES[2]
    assert normalized(found) == ("tile 1 of 4 is empty", "tile 3 of 4 is the reference's tile 2")


def test_anything_else_gets_no_hint() -> None:
    assert normalized(RANDOM.normal(size=TILES.shape).astype(np.float32)) == ()


@pytest.mark.parametrize(("offset", "where"), [(1, "1 before"), (-2, "2 after")])
def test_visual_tokens_in_other_places_are_recognized(offset: int, where: str) -> None:
    expected = RANDOM.normal(size=(9, 4)).astype(np.float32)
    found = expected.copy()
    found[3 + offset : 6 + offset] = expected[3:6]
    assert hints(trace_points.MERGE, found, expected)[0] == f"3 positions have what belongs {where} them"


def test_a_scale_that_differs_is_named(tiny_float32: Path) -> None:
    tracer = open_tracer(tiny_float32)
    found, expected = np.array([0.5, 1], np.float32), np.array([0.5, 0.25], np.float32)
    values = {trace_points.RESOLUTION: found}, {trace_points.RESOLUTION: expected}
    assert diagnose(trace_points.RESOLUTION, {}, *values, tracer, Path()) == (
        "image 1 is scaled by 1, the reference scales it by 0.25",
    )


def test_vocabularies_are_compared(tiny_float32: Path, tmp_path: Path) -> None:
    tracer = open_tracer(tiny_float32)
    tokenizer = json.loads((tiny_float32 / "tokenizer.json").read_text("utf-8"))
    removed = tokenizer["model"]["vocab"].pop("q")
    tokenizer["model"]["vocab"]["another"] = removed
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    values = {trace_points.TOKENIZATION: np.array([1, removed])}, {trace_points.TOKENIZATION: np.array([1, 2, 3])}
    assert diagnose(trace_points.TOKENIZATION, {}, *values, tracer, tmp_path) == (
        f"position 1: token {removed} ('q') where the reference has 2 ({_token(tokenizer, 2)!r})",
        "2 tokens, where the reference has 3",
        "1 tokens of the reference are missing from tokenizer.json",
    )


def _token(tokenizer: dict[str, dict[str, dict[str, int]]], wanted: int) -> str:
    return next(token for token, id_ in tokenizer["model"]["vocab"].items() if id_ == wanted)


def test_weights_of_a_right_stage_are_the_references(
    tiny_w4a16: Path, tiny_checkpoint: Path, tiny_float32: Path
) -> None:
    for reference in (tiny_checkpoint, tiny_float32):
        found = weights(tiny_w4a16, reference, trace_points.decoder_layer(0))
        assert found == ("its weights are the reference's: the graph computes something else with them",)


def test_weights_of_a_reference_package_are_read_as_well(tiny_w4a16: Path, tiny_float32: Path, tmp_path: Path) -> None:
    package = planted("wrong int4 scales", tiny_w4a16, tmp_path / "package")
    (hint,) = weights(package, tiny_float32, trace_points.decoder_layer(1))
    assert hint.startswith("5 of 11 weights are 1.5 times the reference's: 1.self_attn.q_proj+k_proj+v_proj.weight, ")


def test_a_recipe_that_changes_weights_is_named_instead(
    tiny_w4a16: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = open_tracer(tiny_w4a16)
    monkeypatch.setattr(tracer, "prepared", "awq")
    parts = {stage.name: stage for stage in tracer.stages(Question("What?"))}
    (hint,) = diagnose(trace_points.decoder_layer(0), parts, {}, {}, tracer, tiny_checkpoint)
    assert hint == "its weights are not compared: the recipe changes them by awq before they are stored"


def weights(package: Path, reference: Path, stage: str) -> tuple[str, ...]:
    tracer = open_tracer(package)
    parts = {part.name: part for part in tracer.stages(Question("What?"))}
    return diagnose(stage, parts, {}, {}, tracer, reference)


def test_a_parameter_that_is_not_there_is_none(tiny_checkpoint: Path, tiny_float32: Path) -> None:
    for reference in (tiny_checkpoint, tiny_float32):
        assert reader(reference)("model.no.such.weight") is None
