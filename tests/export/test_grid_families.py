"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: packages answer as transformers does, from the processor to the last token."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvlc.errors import HvlcError
from hvlc.export import export_bundle, vision_language_family
from hvlc.export.families.qwen2_vl import with_text_config
from hvlc.export.settings import read_config
from hvlc.export.vision_language import Rule
from hvlc.imaging.native_grid import NativeGrid
from hvlc.recipes.loading import parse_recipe
from hvlc.recipes.resolve import resolve
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.vision import Seen
from hvlc.solvers import SOLVERS
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.assemble import assemble
from tests.helpers.answers import Reference, asked_of_transformers, check_answer, packaged, sizes
from tests.helpers.damages import changed, refused, renamed, with_part, without_processor
from tests.helpers.tiny import picture
from tests.helpers.tiny_vision_language import GRID_FAMILIES, GRID_TEMPLATE, edit_json, grid_processor, save_grid
from tests.imaging.fronts import Front

#: A template that puts images behind the text, each between texts of its own.
BEHIND = GRID_TEMPLATE.replace("in message['content'] %}", "in message['content'] | reverse %}").replace(
    "{{ '<|vision_start|>", "{{ 'See ' + '<|vision_start|>"
)

#: Settings of checkpoints, one of each kind somewhere.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"family": "qwen2_vl", "tied": True},
    "qwen2_vl-behind": {"family": "qwen2_vl", "merge": 3, "template": BEHIND, "dtype": "bfloat16", "seed": 1},
    "qwen2_5_vl": {"family": "qwen2_5_vl", "seed": 2},
    "qwen2_5_vl-windows-of-one": {"family": "qwen2_5_vl", "vision": {"window_size": 8}, "template": BEHIND, "seed": 3},
    "qwen3_vl": {"template": BEHIND, "seed": 4},
    "qwen3_vl-a-tap-a-layer": {
        "vision": {"deepstack_visual_indexes": [1, 3]},
        "text": {"num_hidden_layers": 2},
        "seed": 5,
    },
    "qwen3_vl-more-taps-than-layers": {
        "vision": {"deepstack_visual_indexes": [3, 0, 2]},
        "text": {"attention_bias": True},
        "tied": True,
        "seed": 6,
    },
    "qwen3_vl-no-taps": {"vision": {"deepstack_visual_indexes": []}, "text": {"num_hidden_layers": 3}, "seed": 7},
}

FAMILIES = tuple(sorted({settings.get("family", "qwen3_vl") for settings in CHECKPOINTS.values()}))

#: Heights and widths: whole cells, halves of them, too small, too large, portrait, landscape, one side alone.
SIZES = [(32, 32), (20, 44), (90, 40), (40, 90), (1, 1), (300, 20), (5, 200), (120, 130)]

#: One image of every size, two and three images, none.
ASKED = [
    *([picture(*size)] for size in SIZES),
    [picture(50, 90), picture(33, 30)],
    [picture(16, 48), picture(1, 30), picture(60, 16)],
    [],
]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_grid(tmp_path_factory.mktemp(request.param) / "checkpoint", **CHECKPOINTS[request.param])


@pytest.fixture(scope="module")
def package(saved: Path) -> VisionLanguageModel:
    return packaged(saved)


@pytest.fixture(scope="module")
def reference(saved: Path) -> Reference:
    return asked_of_transformers(saved, grid_processor(saved))


@pytest.fixture(scope="module")
def patches(saved: Path) -> Callable[[list[Seen]], np.ndarray]:
    pictures = grid_processor(saved).image_processor

    def cut(seen: list[Seen]) -> np.ndarray:
        """The patches of all images in the processor's order."""
        return np.concatenate([pictures.patchify(one.pieces[0], 4, pictures.merge_size, 2)[0] for one in seen])

    return cut


@pytest.mark.parametrize("images", ASKED, ids=sizes)
def test_package_answers_as_transformers(
    package: VisionLanguageModel,
    reference: Reference,
    patches: Callable[[list[Seen]], np.ndarray],
    images: list[Image.Image],
) -> None:
    check_answer(package, reference, images, patches)


@pytest.fixture(scope="module", params=GRID_FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_grid(tmp_path_factory.mktemp(request.param) / "checkpoint", request.param)


def rule_of(directory: Path) -> Rule:
    checkpoint = Checkpoint.open(directory)
    family = vision_language_family(checkpoint.model_type)
    assert family is not None
    return family.rule(checkpoint, read_config(family.config, checkpoint, family.numbers))


@pytest.fixture(scope="module")
def front(checkpoint: Path) -> Front:
    return Front(rule_of(checkpoint).rule)


@pytest.fixture(scope="module")
def seen_by_transformers(checkpoint: Path) -> Callable[[Image.Image], Any]:
    processor = grid_processor(checkpoint)
    template = "<|vision_start|><|image_pad|><|vision_end|>"
    return lambda image: processor(images=[image], text=template, return_tensors="np")


#: Sides in pixels: whole cells, halves that round to even in either direction, one pixel, and long ones.
SIDES = (1, 4, 8, 12, 13, 20, 28, 36, 44, 60, 90, 200)


@pytest.mark.parametrize("height", SIDES)
def test_image_is_that_of_the_processor(
    checkpoint: Path, front: Front, seen_by_transformers: Callable[[Image.Image], Any], height: int
) -> None:
    image_token = json.loads((checkpoint / "config.json").read_text("utf-8"))["image_token_id"]
    processor = grid_processor(checkpoint).image_processor
    for width in SIDES:
        image = picture(height, width)
        seen, expected = front.run(image), seen_by_transformers(image)
        assert [1, *(2 * side for side in seen.grid)] == expected["image_grid_thw"][0].tolist()
        patches, *_ = processor.patchify(seen.pixel_values[0], 4, 2, 2)
        np.testing.assert_array_equal(patches, expected["pixel_values"])
        assert [token for token in expected["input_ids"][0] if token == image_token] == seen.image_ids


def test_an_image_of_the_most_extreme_ratio_is_seen_alike(
    front: Front, seen_by_transformers: Callable[[Image.Image], Any]
) -> None:
    for size in ((1, 200), (200, 1), (2, 400)):
        seen, expected = front.run(picture(*size)), seen_by_transformers(picture(*size))
        assert [1, *(2 * side for side in seen.grid)] == expected["image_grid_thw"][0].tolist()
    with pytest.raises(ValueError, match="aspect ratio"):
        seen_by_transformers(picture(1, 201))


def bounds(directory: Path, **changes: Any) -> tuple[int, int]:
    """Fewest and most pixels by the settings of an image processor."""
    edit_json(directory / "preprocessor_config.json", **changes)
    rule = rule_of(directory).rule
    assert isinstance(rule, NativeGrid)
    processor = grid_processor(directory).image_processor
    assert (rule.min_pixels, rule.max_pixels) == (processor.size["shortest_edge"], processor.size["longest_edge"])
    return rule.min_pixels, rule.max_pixels


def test_bounds_are_read_from_keys_old_and_new(tmp_path: Path) -> None:
    directory = save_grid(tmp_path / "checkpoint")
    assert bounds(directory) == (256, 6400)
    assert bounds(directory, size=None, min_pixels=512, max_pixels=1024) == (512, 1024)
    assert bounds(directory, size={"shortest_edge": 128, "longest_edge": 2048}) == (512, 1024)
    assert bounds(directory, max_pixels=None) == (512, 2048)
    assert bounds(directory, min_pixels=None) == (128, 2048)
    assert bounds(directory, size=None) == (56 * 56, 28 * 28 * 1280)


def test_normalization_and_filter_are_the_processors(tmp_path: Path) -> None:
    directory = save_grid(tmp_path / "checkpoint")
    edit_json(directory / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3, resample=2)
    front, processor = Front(rule_of(directory).rule), grid_processor(directory).image_processor
    seen, expected = front.run(picture(30, 50)), processor([picture(30, 50)], return_tensors="np")
    np.testing.assert_array_equal(processor.patchify(seen.pixel_values[0], 4, 2, 2)[0], expected["pixel_values"])


def flat(directory: Path) -> None:
    """Put the decoder's settings beside the others, as Qwen2-VL was first saved."""
    path = directory / "config.json"
    config = json.loads(path.read_text("utf-8"))
    text = config.pop("text_config")
    text.pop("model_type")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    path.write_text(json.dumps({**text, **config}), "utf-8")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_settings_beside_each_other_are_the_decoders(tmp_path: Path, family: str) -> None:
    nested = Checkpoint.open(save_grid(tmp_path / "nested", family))
    flat(save_grid(tmp_path / "flat", family))
    read = with_text_config(Checkpoint.open(tmp_path / "flat"))
    record = vision_language_family(family)
    assert record is not None
    ours, theirs = (read_config(record.config, one, record.numbers) for one in (read, nested))
    found, expected = ours.text_config.to_dict(), theirs.text_config.to_dict()
    rope = found.pop("rope_parameters")
    assert rope.items() >= expected.pop("rope_parameters").items()
    assert rope["rope_type"] == "default"
    del found["dtype"], expected["dtype"]  # of the weights, and not said of a part
    assert found == expected
    assert ours.vision_config.to_dict() == theirs.vision_config.to_dict()
    assert with_text_config(nested) is nested


#: What contradicts itself: the damage, and what the refusal says.
DAMAGES = [
    (without_processor, "checkpoint.processor"),
    (changed("preprocessor_config.json", patch_size=8), "patch_size is 8, not 4"),
    (changed("preprocessor_config.json", merge_size=4), "merge_size is 4, not 2"),
    (changed("preprocessor_config.json", temporal_patch_size=1), "temporal_patch_size is 1, not 2"),
    (changed("preprocessor_config.json", do_resize=False), "do_resize is false"),
    (changed("preprocessor_config.json", min_pixels=1024, max_pixels=1023), "1024 and 1023 pixels"),
    (changed("preprocessor_config.json", size={"shortest_edge": 64}), "64 and None pixels"),
    (changed("preprocessor_config.json", size={"height": 64, "width": 64}), "None and None pixels"),
    (changed("preprocessor_config.json", resample=4), "checkpoint.processor"),
    (changed("preprocessor_config.json", image_std=[0, 1, 1]), "image_std"),
    (changed("config.json", image_token_id=3), "image_token_id is 3"),
    (changed("config.json", vision_start_token_id=4), "vision_start_token_id is 4"),
    (changed("config.json", vision_end_token_id=5), "vision_end_token_id is 5"),
    (renamed("<|image_pad|>", "<picture>"), "no token <|image_pad|>"),
    (with_part("vision_config", out_hidden_size=80), "80 wide, the decoder 64"),
    (with_part("vision_config", num_heads=5), "5 heads"),
    (with_part("vision_config", num_heads=8), "multiple of 4"),
    (with_part("vision_config", in_channels=1), "in_channels"),
    (with_part("vision_config", patch_size=[4, 8]), "patch_size of the vision tower is [4, 8]"),
    (with_part("vision_config", deepstack_visual_indexes=[0, 4]), "deepstack_visual_indexes is [0, 4]"),
    (with_part("vision_config", deepstack_visual_indexes=[1, 1]), "deepstack_visual_indexes is [1, 1]"),
    (with_part("vision_config", num_position_embeddings=35), "35 num_position_embeddings"),
    (with_part("vision_config", rope_parameters={"rope_type": "linear", "factor": 2.0}), "rotary settings"),
    (with_part("vision_config", depth=0), "depth"),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_what_contradicts_itself_is_refused(tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    directory = save_grid(tmp_path / "checkpoint")
    damage(directory)
    assert expected in refused(directory)


def test_a_second_encoder_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(HvlcError, match=r"assemble\.family"):
        assemble(checkpoint, "second", checkpoint, tmp_path / "both", seed=0)


def test_windows_smaller_than_a_visual_token_are_refused(tmp_path: Path) -> None:
    assert "window_size" in refused(save_grid(tmp_path / "checkpoint", "qwen2_5_vl", vision={"window_size": 7}))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_tables_of_cosines_are_not_weights(tmp_path: Path, family: str) -> None:
    """A rule for embeddings would round them to four bits."""
    bundle = export_bundle(Checkpoint.open(save_grid(tmp_path / "checkpoint", family)))
    gathers = [node for node in bundle.components["model"].graph if node.op_type == "Gather"]
    assert any(str(node.inputs[0].name).startswith("rotary.") for node in gathers if node.inputs[0] is not None)
    recipe = parse_recipe(
        '{"schema_version": 1, "name": "x", "description": "x", "rules": '
        '[{"role": "embedding", "quantize": {"bits": 4, "block_size": 16}}]}',
        "x",
    )
    plan = resolve(recipe, bundle, load_target("cpu"), SOLVERS)
    weights = [assignment.weight for assignment in plan.assignments]
    assert any(name.endswith("embed_tokens.weight") for name in weights)
    assert not [name for name in weights if "rotary" in name]
