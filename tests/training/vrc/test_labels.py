"""Labels are what the model answers at each scale, and how sure it is of the truth."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvlc.errors import UserError
from hvlc.evaluation.task import Example
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.training.vrc.labels import EQUIVALENCES, check_scales, label, with_equivalence
from tests.helpers.tiny import picture

SCALES = (0.2, 0.2001, 0.5, 1.0)


@pytest.fixture(scope="module")
def model(tiny_float32: Path) -> VisionLanguageModel:
    return VisionLanguageModel(tiny_float32, threads=1)


def test_a_label_is_what_the_model_says_at_each_scale(model: VisionLanguageModel) -> None:
    example = Example("a", "kind", "What?", ("7",), (picture(100, 150),))
    asked = {"encoder": "base", "scales": SCALES, "equivalence": EQUIVALENCES["exact"], "max_new_tokens": 5}
    found = label(model, example, **asked)
    assert found.question == tuple(model.text_ids("What?"))
    truth = model.answer_ids("7")
    for at, scale in enumerate(SCALES):
        generation = model.start("What?", example.images, encoder="base", vrc=False, max_new_tokens=5, scale=scale)
        text = "".join(generation)
        assert found.answers[at] == text
        assert found.tokens[at] == generation.answered.visual_tokens
        rows = model.along(model.start("What?", example.images, encoder="base", vrc=False, scale=scale), truth)
        high = rows.astype(np.float64)
        logs = high[np.arange(len(truth)), list(truth)] - np.logaddexp.reduce(high, axis=-1)
        assert found.losses[at] == pytest.approx(-logs.mean(), abs=1e-5)
        assert found.equivalent[at] == (text.split() == found.answers[-1].split())
    assert found.tokens[0] == found.tokens[1]


def test_what_the_model_answers_at_full_size_is_the_truth_where_it_is_right(model: VisionLanguageModel) -> None:
    image = picture(64, 64)
    said = model.answer("What?", [image], encoder="base", vrc=False, max_new_tokens=5)
    example = Example("a", "kind", "What?", (said.text or "x",), (image,))
    asked = {"encoder": "base", "scales": (0.5, 1.0), "equivalence": EQUIVALENCES["exact"], "max_new_tokens": 5}
    found = label(model, example, **asked)
    if said.text.strip():
        assert found.scores[-1] == 1
        assert found.losses[-1] < 2 * np.log(300)


@pytest.mark.parametrize(
    ("name", "text", "full", "same"),
    [
        ("exact", "Total ", " total", True),
        ("exact", "Totai", "Total", False),
        ("anls", "International", "Internationai", True),
        ("anls", "Totl", "Total", False),
        ("numeric", "10.3", "10", True),
        ("numeric", "10.6", "10", False),
        ("numeric", "", "", True),
    ],
)
def test_equivalence(name: str, text: str, full: str, same: bool) -> None:
    assert EQUIVALENCES[name](text, full) == same


@pytest.mark.parametrize("scales", [(), (1.0,), (0.5, 0.5, 1.0), (0.0, 1.0), (0.5, 0.9), (0.5, 1.0, 1.5)])
def test_wrong_scales_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(UserError) as refused:
        check_scales(scales)
    assert refused.value.code == "vrc.scales"


def test_scales_are_put_in_order() -> None:
    assert check_scales((1.0, 0.5)) == (0.5, 1.0)


def test_pixels_that_are_the_same_are_asked_once(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    along = model.along

    def counted(generation: Any, answer: Any) -> Any:
        asked.append(generation.images[0].scale)
        return along(generation, answer)

    monkeypatch.setattr(model, "along", counted)
    example = Example("a", "kind", "What?", ("7",), (picture(100, 150),))
    options = {"encoder": "base", "equivalence": EQUIVALENCES["exact"], "max_new_tokens": 2}
    label(model, example, scales=(0.5, 0.5000001, 0.52, 1.0), **options)
    assert len(asked) == 3


def test_another_equivalence_follows_from_the_answers(model: VisionLanguageModel) -> None:
    example = Example("a", "kind", "What?", ("7",), (picture(60, 60),))
    options = {"encoder": "base", "scales": (0.3, 1.0), "max_new_tokens": 4}
    one = label(model, example, equivalence=lambda text, full: False, **options)
    assert with_equivalence(one, EQUIVALENCES["exact"]) == label(
        model, example, equivalence=EQUIVALENCES["exact"], **options
    )


def test_scales_below_those_that_fail_are_left_out(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    example = Example("a", "kind", "What?", ("7",), (picture(100, 150),))
    asked: list[float] = []
    along = model.along

    def unsure(generation: Any, answer: Any) -> Any:
        """Logits by which the truth is the less probable the smaller the image."""
        asked.append(generation.images[0].scale)
        rows = along(generation, answer) * 0
        rows[np.arange(len(rows)), list(answer)[: len(rows)]] = 10.0 if asked[-1] > 0.6 else -50.0
        return rows

    monkeypatch.setattr(model, "along", unsure)
    monkeypatch.setattr("hvlc.training.vrc.labels._answered", lambda *_: "quite another answer")
    scales = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
    equivalence = EQUIVALENCES["exact"]
    found = label(model, example, encoder="base", scales=scales, equivalence=equivalence, max_new_tokens=4)
    assert asked[-2:] == pytest.approx([0.5, 0.4])
    assert found.unasked == 3
    assert found.equivalent[:3] == (False,) * 3
    assert found.scores[:3] == (0.0,) * 3
    assert found.losses[:3] == (found.losses[3],) * 3
    for at, scale in enumerate(scales):
        generation = model.start("What?", example.images, encoder="base", vrc=False, scale=scale)
        assert found.tokens[at] == generation.answered.visual_tokens
    assert with_equivalence(found, lambda text, full: True).equivalent[:3] == (False,) * 3
