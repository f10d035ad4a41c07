"""The image processor on torch alone is transformers' own on torchvision, where that is installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Lfm2VlProcessor
from transformers.utils import is_torchvision_available

from hvlc.imaging.naflex_tiles import tried_grids
from hvlc.models.lfm2_vl import Lfm2VlImageProcessorPil, nearest_grid, smart_size
from hvlc.models.processors import load_processor
from tests.helpers.tiny import picture
from tests.helpers.tiny_naflex import PATCH, TILE, save_naflex

SETTINGS: list[dict[str, Any]] = [
    {},
    {"tile_size": 64, "max_image_tokens": 16, "min_image_tokens": 4, "encoder_patch_size": 8, "max_tiles": 6},
    {"do_image_splitting": False},
    {"min_tiles": 3, "max_tiles": 7, "resample": 3, "image_mean": [0.4, 0.5, 0.45], "image_std": [0.2, 0.3, 0.25]},
]


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_everything_is_transformers_own(settings: dict[str, Any]) -> None:
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    theirs, ours = Lfm2VlImageProcessor(**settings), Lfm2VlImageProcessorPil(**settings)
    for size in [(30, 40), (700, 900), (1500, 200), (513, 511)]:
        asked = {"return_tensors": "pt", "return_row_col_info": True}
        expected, found = (processor([picture(*size)], **asked) for processor in (theirs, ours))
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]))


#: Sizes of native pieces and grids, as transformers' class gave them (5.23, torchvision 0.28), with its own settings.
SIZES = {(30, 40): (224, 320), (700, 900): (448, 576), (1500, 200): (1376, 160), (513, 511): (512, 512)}
GRIDS = {(700, 900): (2, 3), (1500, 200): (8, 1), (900, 700): (3, 2), (1000, 1250): (3, 3), (2000, 400): (5, 1)}
#: Rows and columns of two to four tiles in the order in which it tries them.
TRIED = [(2, 1), (1, 2), (1, 3), (3, 1), (1, 4), (4, 1), (2, 2)]


def test_sizes_and_grids_are_those_that_transformers_gave() -> None:
    usual = Lfm2VlImageProcessorPil().to_dict()
    assert {size: smart_size(*size, usual) for size in SIZES} == SIZES
    assert {size: nearest_grid(*size, usual) for size in GRIDS} == GRIDS


def test_grids_are_tried_in_transformers_order() -> None:
    """That of a set: among grids of one area the first is taken, unless a later one is as near and filled."""
    assert [tuple(grid) for grid in tried_grids(2, 4).tolist()] == TRIED


def test_patches_are_padded_and_counted(tmp_path: Path) -> None:
    processor = load_processor(save_naflex(tmp_path / "checkpoint"))
    assert isinstance(processor, Lfm2VlProcessor)
    found = processor(images=[picture(60, 100)], text="<image>", return_tensors="pt")
    most = (TILE // PATCH) ** 2
    assert found["pixel_values"].shape[1:] == (most, 3 * PATCH**2)
    counts = found["pixel_attention_mask"].sum(1)
    assert counts.tolist() == found["spatial_shapes"].prod(1).tolist()
    assert counts[-1] < most == counts[0]
    last = found["pixel_values"][-1]
    assert not last[counts[-1] :].any()
    assert last[: counts[-1]].abs().sum(1).gt(0).all()
    assert torch.equal(found["spatial_shapes"][0], torch.tensor([TILE // PATCH] * 2))
