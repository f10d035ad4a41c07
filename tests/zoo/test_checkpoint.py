"""The shipped checkpoint is what its model card says."""

from __future__ import annotations

import json

import pytest

from hvlc.zoo import nano_checkpoint
from hvlc.zoo.documents import SPLITS, examples, split_digest

#: Answers out of the first twelve held-out documents that the card's 95 % lead one to expect.
EXPECTED = 10


@pytest.fixture(scope="module")
def record():
    return json.loads((nano_checkpoint() / "scores.json").read_text())


def _score(record, branch, compressed, edition="narrow"):
    wanted = (edition, branch, compressed)
    (found,) = [s for s in record["scores"] if (s["edition"], s["branch"], s["compressed"]) == wanted]
    return found


def test_it_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in nano_checkpoint().iterdir()) < 16_000_000


def test_it_reaches_the_bars(record):
    large, base = (_score(record, branch, False) for branch in ("large", "base"))
    assert large["count"] == base["count"] == 256
    assert large["exact"] >= 0.90
    assert base["exact"] >= 0.80
    shrunk = _score(record, "large", True)
    assert shrunk["visual_tokens"] <= 0.80 * large["visual_tokens"]
    assert shrunk["exact"] >= 0.987 * large["exact"]


def test_its_encoders_differ_on_wide_pages(record):
    large, base = (_score(record, branch, False, "wide") for branch in ("large", "base"))
    assert large["exact"] >= 0.85
    assert large["exact"] - base["exact"] >= 0.04


@pytest.mark.parametrize("split", SPLITS)
def test_the_generator_still_draws_its_documents(record, split):
    assert split_digest(split, 256) == record["digests"][split]["text"]


def test_the_card_shows_the_scores(record):
    card = (nano_checkpoint() / "README.md").read_text()
    for score in record["scores"]:
        assert f"| {score['exact']:.1%} |" in card


def test_it_loads_and_answers():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from torch import nn

    from hvlc.models.hypervl import HyperVLForConditionalGeneration, HyperVLProcessor
    from hvlc.training.measuring import answer

    model = HyperVLForConditionalGeneration.from_pretrained(nano_checkpoint()).eval()
    processor = HyperVLProcessor.from_pretrained(nano_checkpoint())
    widths = {m.in_features for m in model.modules() if isinstance(m, nn.Linear)}
    assert all(width % 32 == 0 for width in widths)
    asked = list(examples("heldout", 12))
    for branch in ("large", "base"):
        right = sum(answer(model, processor, d, q, branch)[0] == q.answer for d, q in asked)
        assert right >= EXPECTED
