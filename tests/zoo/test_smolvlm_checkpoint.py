"""The shipped `smolvlm-nano` is what its model card says, and transformers' own classes load it."""

from __future__ import annotations

import json

import pytest

from hvlc.zoo import smolvlm_checkpoint
from hvlc.zoo.documents import SPLITS, examples, split_digest

#: Answers out of the first sixteen held-out documents that the card's share leads one to expect.
EXPECTED = 13


@pytest.fixture(scope="module")
def record():
    return json.loads((smolvlm_checkpoint() / "scores.json").read_text())


def test_it_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in smolvlm_checkpoint().iterdir()) <= 8_000_000


def test_it_reaches_the_bar(record):
    (score,) = record["scores"]
    assert score["count"] == 256
    assert score["exact"] >= 0.85


@pytest.mark.parametrize("split", SPLITS)
def test_the_generator_still_draws_its_documents(record, split):
    assert split_digest(split, 256) == record["digests"][split]["text"]


def test_the_card_shows_the_score(record):
    (score,) = record["scores"]
    assert f"| {score['exact']:.1%} |" in (smolvlm_checkpoint() / "README.md").read_text()


def test_it_names_transformers_own_classes():
    config, processor = (
        json.loads((smolvlm_checkpoint() / name).read_text()) for name in ("config.json", "processor_config.json")
    )
    assert config["architectures"] == ["SmolVLMForConditionalGeneration"]
    assert processor["processor_class"] == "SmolVLMProcessor"
    kinds = (processor["image_processor"]["image_processor_type"], processor["video_processor"]["video_processor_type"])
    assert kinds == ("SmolVLMImageProcessor", "SmolVLMVideoProcessor")


def test_it_loads_and_answers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import AutoModelForImageTextToText

    from hvlc.models.smolvlm import load_processor
    from hvlc.training.measuring import answer_smolvlm

    model = AutoModelForImageTextToText.from_pretrained(smolvlm_checkpoint(), dtype=torch.float32).eval()
    assert 2e6 <= model.num_parameters() <= 4e6
    widths = {m.in_features for m in model.modules() if isinstance(m, torch.nn.Linear)}
    assert all(width % 32 == 0 for width in widths)
    processor = load_processor(smolvlm_checkpoint())
    right = sum(answer_smolvlm(model, processor, d, q)[0] == q.answer for d, q in examples("heldout", 16))
    assert right >= EXPECTED
