"""The shipped checkpoints of public architectures are what their cards say, and transformers' own classes load them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hvlc.zoo import qwen3vl_checkpoint, smolvlm_checkpoint
from hvlc.zoo.documents import SPLITS, examples, split_digest


@dataclass(frozen=True)
class Shipped:
    """A checkpoint and what is expected of it.

    Attributes:
        find: gives its directory.
        bar: least share of exact answers.
        expected: answers out of the first sixteen held-out documents that the card's share leads one to expect.
        model: transformers' class.
        images: kind of its image processor.
        ask: function of `hvlc.training.measuring` that asks it.
        parameters: least and most.
    """

    find: Callable[[], Path]
    bar: float
    expected: int
    model: str
    images: str
    ask: str
    parameters: tuple[float, float]


SMOLVLM = Shipped(
    smolvlm_checkpoint,
    0.85,
    13,
    "SmolVLMForConditionalGeneration",
    "SmolVLMImageProcessor",
    "answer_smolvlm",
    (2e6, 4e6),
)
QWEN3VL = Shipped(
    qwen3vl_checkpoint,
    0.80,
    12,
    "Qwen3VLForConditionalGeneration",
    "Qwen2VLImageProcessor",
    "answer_qwen3vl",
    (2e6, 5e6),
)


@pytest.fixture(params=[SMOLVLM, QWEN3VL], ids=["smolvlm-nano", "qwen3vl-nano"])
def shipped(request):
    return request.param


@pytest.fixture
def record(shipped):
    return json.loads((shipped.find() / "scores.json").read_text())


def test_it_is_small_enough_to_ship(shipped):
    assert sum(path.stat().st_size for path in shipped.find().iterdir()) <= 8_000_000


def test_it_reaches_the_bar(shipped, record):
    (score,) = record["scores"]
    assert score["count"] == 256
    assert score["exact"] >= shipped.bar


@pytest.mark.parametrize("split", SPLITS)
def test_the_generator_still_draws_its_documents(record, split):
    assert split_digest(split, 256) == record["digests"][split]["text"]


def test_the_card_shows_the_score(shipped, record):
    (score,) = record["scores"]
    assert f"| {score['exact']:.1%} |" in (shipped.find() / "README.md").read_text()


def test_it_names_transformers_own_classes(shipped):
    config = json.loads((shipped.find() / "config.json").read_text())
    assert config["architectures"] == [shipped.model]
    assert _image_settings(shipped.find())["image_processor_type"] == shipped.images


def _image_settings(directory):
    """Settings of the image processor, which stand in a file of their own or in the processor's."""
    alone = directory / "preprocessor_config.json"
    if alone.exists():
        return json.loads(alone.read_text())
    return json.loads((directory / "processor_config.json").read_text())["image_processor"]


def test_smolvlm_names_its_processors():
    processor = json.loads((smolvlm_checkpoint() / "processor_config.json").read_text())
    assert processor["processor_class"] == "SmolVLMProcessor"
    assert processor["video_processor"]["video_processor_type"] == "SmolVLMVideoProcessor"


def test_qwen3vl_has_a_tap_that_matters():
    """DeepStack was trained: it began without effect, and its weights are not zero any more."""
    from safetensors import safe_open

    config = json.loads((qwen3vl_checkpoint() / "config.json").read_text())
    assert config["vision_config"]["deepstack_visual_indexes"]
    with safe_open(qwen3vl_checkpoint() / "model.safetensors", "np") as file:
        last = [n for n in file.keys() if "deepstack" in n and n.endswith("linear_fc2.weight")]  # noqa: SIM118
        assert len(last) == len(config["vision_config"]["deepstack_visual_indexes"])
        assert all(abs(file.get_tensor(name)).mean() > 1e-3 for name in last)


def test_it_loads_and_answers(shipped):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import AutoModelForImageTextToText

    from hvlc.models.processors import load_processor
    from hvlc.training import measuring

    model = AutoModelForImageTextToText.from_pretrained(shipped.find(), dtype=torch.float32).eval()
    assert type(model).__name__ == shipped.model
    assert shipped.parameters[0] <= model.num_parameters() <= shipped.parameters[1]
    widths = {m.in_features for m in model.modules() if isinstance(m, torch.nn.Linear)}
    assert all(width % 32 == 0 for width in widths)
    processor, ask = load_processor(shipped.find()), getattr(measuring, shipped.ask)
    right = sum(ask(model, processor, d, q)[0] == q.answer for d, q in examples("heldout", 16))
    assert right >= shipped.expected
