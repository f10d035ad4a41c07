"""HyperVL behaves as a transformers model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from hvlc.models.hypervl import HyperVLForConditionalGeneration, HyperVLModel, HyperVLProcessor, paper_config
from hvlc.models.hypervl.configuration import BRANCHES
from hvlc.models.hypervl.modeling import pixel_shuffle, stitch
from tests.helpers.tiny import picture, tiny_config, tiny_model, tiny_processor

UNSAID = {"dtype": None}  # stated once a model was saved


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> HyperVLForConditionalGeneration:
    return tiny_model()


@pytest.fixture(scope="module")
def inputs():
    text = "<|user|><|vision_start|><|image_pad|><|vision_end|>What?<|im_end|><|assistant|>"
    return tiny_processor()(images=picture(70, 45), text=text)


def test_auto_classes_find_the_saved_model_and_processor(tiny_checkpoint: Path) -> None:
    assert AutoConfig.from_pretrained(tiny_checkpoint).model_type == "hypervl"
    assert type(AutoModelForImageTextToText.from_pretrained(tiny_checkpoint)) is HyperVLForConditionalGeneration
    assert type(AutoModel.from_config(tiny_config())) is HyperVLModel
    assert type(AutoProcessor.from_pretrained(tiny_checkpoint)) is HyperVLProcessor
    assert AutoImageProcessor.from_pretrained(tiny_checkpoint).tile_size == 32


@pytest.mark.parametrize("tied", [True, False])
def test_saving_and_loading_keeps_every_bit(tmp_path: Path, tied: bool) -> None:
    saved = tiny_model(seed=3, tied=tied)
    saved.save_pretrained(tmp_path)
    loaded = HyperVLForConditionalGeneration.from_pretrained(tmp_path)
    for part in ("base_vision_config", "large_vision_config", "text_config", "resolution_config"):
        assert (
            getattr(loaded.config, part).to_diff_dict() | UNSAID == getattr(saved.config, part).to_diff_dict() | UNSAID
        )
    assert loaded.config.image_token_id == saved.config.image_token_id
    before, after = saved.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    same = loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert same is tied


def test_the_processor_comes_back_the_same(tmp_path: Path) -> None:
    saved = tiny_processor()
    saved.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    images = {"tile_size", "cell_size", "proxy_size", "max_visual_tokens", "image_mean", "image_std"}
    for name in images:
        assert getattr(loaded.image_processor, name) == getattr(saved.image_processor, name), name
    assert (loaded.image_token, loaded.row_token) == (saved.image_token, saved.row_token)
    text = "<|image_pad|> What? <|image_pad|>"
    pictures = [picture(40, 70), picture(10, 10)]
    before, after = (p(images=pictures, text=text, scales=[1.0, 0.5]) for p in (saved, loaded))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_generation_depends_on_the_branch(model, inputs) -> None:
    answers = {}
    for branch in BRANCHES:
        output = model.generate(**inputs, branch=branch, max_new_tokens=6, do_sample=False)
        answers[branch] = output[0, inputs["input_ids"].shape[1] :].tolist()
        assert 1 <= len(answers[branch]) <= 6
    assert answers["base"] != answers["large"]
    default = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert default[0, inputs["input_ids"].shape[1] :].tolist() == answers[model.config.default_branch]


def test_cached_generation_equals_a_full_forward_for_every_token(model, inputs) -> None:
    output = model.generate(**inputs, branch="base", max_new_tokens=5, do_sample=False)
    prompt = inputs["input_ids"].shape[1]
    images = {k: inputs[k] for k in ("pixel_values", "image_grids")}
    for end in range(prompt, output.shape[1]):
        with torch.no_grad():
            logits = model(input_ids=output[:, :end], branch="base", **images).logits[0, -1]
        assert int(logits.argmax()) == int(output[0, end])


def test_an_unknown_branch_is_refused_by_name(model, inputs) -> None:
    with pytest.raises(ValueError, match="unknown vision branch 'huge'; there are base, large"):
        model.generate(**inputs, branch="huge", max_new_tokens=1)


def test_placeholders_and_visual_tokens_must_agree(model) -> None:
    ids = torch.tensor([[model.config.image_token_id] * 3])
    with pytest.raises(ValueError, match="3 image placeholders but 2 visual tokens"):
        model.model.merge(ids, torch.zeros(2, 64))


def test_texts_and_images_must_agree() -> None:
    with pytest.raises(ValueError, match="2 image placeholders in the text but 1 images"):
        tiny_processor()(images=picture(8, 8), text="<|image_pad|><|image_pad|>")


@given(cells=st.integers(1, 4), factor=st.integers(1, 3), width=st.integers(1, 3), tiles=st.integers(1, 3))
@settings(max_examples=25)
def test_pixel_shuffle_equals_a_slow_loop(cells: int, factor: int, width: int, tiles: int) -> None:
    side = cells * factor
    features = torch.arange(tiles * side * side * width).reshape(tiles, side * side, width)
    expected = []
    for tile in features.tolist():
        rows = []
        for y in range(cells):
            for x in range(cells):
                patches = [(y * factor + i) * side + x * factor + j for i in range(factor) for j in range(factor)]
                rows.append([value for p in patches for value in tile[p]])
        expected.append(rows)
    assert pixel_shuffle(features, factor).tolist() == expected


grids = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)


@given(grids=grids, t=st.integers(1, 4))
@settings(max_examples=40)
def test_stitch_equals_a_slow_loop(grids: list[tuple[int, int]], t: int) -> None:
    tiles = sum(-(-rows // t) * -(-columns // t) for rows, columns in grids)
    features = np.arange(tiles * t * t).reshape(tiles, t * t, 1)
    expected, start = [], 0
    for rows, columns in grids:
        across = -(-columns // t)
        for y in range(rows):
            for x in range(columns):
                tile = start + (y // t) * across + x // t
                expected.append([int(features[tile, (y % t) * t + x % t, 0])])
        start += -(-rows // t) * across
    assert stitch(torch.from_numpy(features), torch.tensor(grids)).tolist() == expected


def test_stitch_refuses_left_over_tiles() -> None:
    with pytest.raises(ValueError, match="ask for 1 tiles, pixel_values holds 2"):
        stitch(torch.zeros(2, 4, 1), torch.tensor([[2, 2]]))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image_size": 48}, "share tile and patch size"),
        ({"patch_size": 16}, "share tile and patch size"),
    ],
)
def test_towers_that_disagree_are_refused(change: dict[str, int], complaint: str) -> None:
    config = tiny_config().to_dict()
    config["base_vision_config"] |= change
    with pytest.raises(StrictDataclassError, match=complaint):
        AutoConfig.for_model(**config)


def test_the_paper_size_has_the_documented_parameters() -> None:
    with torch.device("meta"):
        paper = HyperVLForConditionalGeneration(paper_config())

    def millions(module: torch.nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e6

    assert millions(paper.model.branches["base"].tower) == pytest.approx(86, abs=1)
    assert millions(paper.model.branches["large"].tower) == pytest.approx(303, abs=2)
    assert millions(paper.model.language_model) == pytest.approx(1720, abs=5)
    assert paper.config.cell_size == 32
