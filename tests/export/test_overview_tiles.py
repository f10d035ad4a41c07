"""SmolVLM and Idefics3: packages answer as transformers does, from the processor's first byte to the last token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.vision import Seen
from tests.helpers.answers import Reference, asked_of_transformers, check_answer, check_bound, packaged, sizes
from tests.helpers.damages import changed, refused, renamed, without_processor
from tests.helpers.tiny import picture
from tests.helpers.tiny_vision_language import overview_processor, save_overview

#: Settings of checkpoints, one of each kind somewhere.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "smolvlm": {},
    "smolvlm-unsplit": {"splits": False, "tied": True},
    "smolvlm-shuffle-4": {"shuffle": 4, "dtype": "bfloat16", "seed": 1},
    "idefics3": {"family": "idefics3", "tied": True, "seed": 2},
    # pixels that fill no patch, as in SmolVLM2-2.2B: 384 pixels are 27 patches of 14 and 6 pixels
    "idefics3-shuffle-3": {"family": "idefics3", "tile": 38, "patch": 6, "shuffle": 3, "longest": 100, "seed": 3},
}

FAMILIES = tuple(sorted({settings.get("family", "smolvlm") for settings in CHECKPOINTS.values()}))

#: Heights and widths that reach every branch: one tile, whole tiles, one pixel more, wide, tall, tiny, one side alone.
SIZES = [(32, 32), (96, 96), (97, 95), (40, 90), (90, 40), (1, 1), (5, 200), (300, 20), (64, 33)]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_overview(tmp_path_factory.mktemp(request.param) / "checkpoint", **CHECKPOINTS[request.param])


@pytest.fixture(scope="module")
def package(checkpoint: Path) -> VisionLanguageModel:
    return packaged(checkpoint)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return asked_of_transformers(checkpoint, overview_processor(checkpoint))


def pieces(seen: list[Seen]) -> np.ndarray:
    """The tiles of all images, in a batch of one prompt."""
    return np.concatenate([one.pieces for one in seen])[None]


#: One image of every size, two images, none.
ASKED = [*([picture(*size)] for size in SIZES), [picture(50, 90), picture(33, 30)], []]


@pytest.mark.parametrize("images", ASKED, ids=sizes)
def test_package_answers_as_transformers(
    package: VisionLanguageModel, reference: Reference, images: list[Image.Image]
) -> None:
    check_answer(package, reference, images, pieces)


@pytest.mark.parametrize("limit", [4, 16, 17, 48, 80, 100])
def test_bound_of_visual_tokens_is_kept(tmp_path_factory: pytest.TempPathFactory, limit: int) -> None:
    directory = save_overview(tmp_path_factory.mktemp("bound") / "checkpoint")
    package = packaged(directory)
    check_bound(package, limit, fewest=16)


VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3}
VISION |= {"model_type": "smolvlm_vision", "image_size": 32, "patch_size": 4}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (without_processor, "checkpoint.processor"),
        (changed("preprocessor_config.json", max_image_size={"longest_edge": 48}), "longest_edge is 48"),
        (changed("preprocessor_config.json", size={"height": 9, "width": 9}), "checkpoint.processor"),
        (changed("preprocessor_config.json", resample=4), "checkpoint.processor"),
        (changed("preprocessor_config.json", image_std=[0, 1, 1]), "image_std"),
        (changed("preprocessor_config.json", size={"longest_edge": 1000}), "tokenizer"),
        (changed("processor_config.json", image_seq_len=9), "image_seq_len is 9"),
        (changed("config.json", image_token_id=3), "image_token_id is 3"),
        (changed("config.json", scale_factor=3), "scale_factor"),
        (changed("config.json", vision_config=VISION | {"patch_size": 10}), "patch_size 10"),
        (renamed("<image>", "<picture>"), "no token <image>"),
        (renamed("<row_2_col_3>", "<row>"), "<row_2_col_3>"),
        (renamed("<global-img>", "<whole>"), "<global-img>"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    directory = save_overview(tmp_path / "checkpoint")
    damage(directory)
    assert expected in refused(directory)
