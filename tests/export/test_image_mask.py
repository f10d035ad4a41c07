"""The mask of a decoder that sees an image as a block, against a slow one: loops over queries and keys."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.export.decoder.image_mask import image_masks
from hvlc.export.decoder.shape import DecoderShape
from hvlc.graphs.builder import GraphBuilder
from tests.helpers.sessions import run

SHAPE = DecoderShape(
    layers=3,
    hidden=8,
    intermediate=8,
    heads=1,
    kv_heads=1,
    head_size=8,
    vocabulary=8,
    epsilon=1e-6,
    context=64,
    rotary=(True,) * 3,
    windows=(4, None, 4),
    image_blocks=True,
)


def masks(shape: DecoderShape, marks: np.ndarray, past: int) -> dict[int | None, np.ndarray]:
    """What each window's graph says, float `[batch, 1, sequence, total]`."""
    b = GraphBuilder("mask")
    given = b.input("marks", ir.DataType.FLOAT, ["batch", "sequence", 1])
    last = b.input("last", ir.DataType.INT32, ["batch"])
    total = b.input("total", ir.DataType.INT32, [])
    found = image_masks(b, given, (last, total), shape)
    for window, value in found.items():
        b.output(value, f"mask_{window}", ir.DataType.FLOAT, ["batch", 1, "sequence", "total"])
    batch, count = marks.shape
    feeds = {
        "marks": marks[..., None].astype(np.float32),
        "last": np.full(batch, past + count - 1, np.int32),
        "total": np.array(past + count, np.int32),
    }
    return dict(zip(found, run(b.model(), feeds), strict=True))


def slow(marks: np.ndarray, past: int, window: int | None) -> np.ndarray:
    """Whether each token sees each position, bool `[sequence, past + sequence]`."""
    blocks, number = [], 0
    for at, mark in enumerate(marks):
        number += int(mark and not (at and marks[at - 1]))
        blocks.append(number if mark else None)
    seen = np.zeros((len(marks), past + len(marks)), bool)
    for at, block in enumerate(blocks):
        for key in range(past + len(marks)):
            same = key >= past and block is not None and blocks[key - past] == block
            near = window is None or key > past + at - window
            seen[at, key] = near and (key <= past + at or same)
    return seen


RUNS = st.lists(st.tuples(st.booleans(), st.integers(1, 6)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(runs=RUNS, past=st.integers(0, 9), window=st.integers(1, 12))
def test_the_mask_is_that_of_the_loops(runs: list[tuple[bool, int]], past: int, window: int) -> None:
    marks = np.array([mark for mark, count in runs for _ in range(count)])
    found = masks(replace(SHAPE, windows=(window, None, window)), marks[None], past)
    assert list(found) == [window, None]
    for kind, mask in found.items():
        assert mask.shape == (1, 1, len(marks), past + len(marks))
        np.testing.assert_array_equal(mask[0, 0] == 0, slow(marks, past, kind))
        assert (mask[mask != 0] < -60000).all()


def test_every_sequence_of_a_batch_has_blocks_of_its_own() -> None:
    marks = np.array([[0, 1, 1, 1, 0], [1, 1, 0, 1, 1]], bool)
    mask = masks(SHAPE, marks, 0)[None]
    for row, expected in zip(mask, marks, strict=True):
        np.testing.assert_array_equal(row[0] == 0, slow(expected, 0, None))


@pytest.mark.parametrize("past", [0, 7])
def test_a_token_of_text_sees_what_is_not_behind_it(past: int) -> None:
    found = masks(SHAPE, np.zeros((1, 1), bool), past)
    assert (found[None] == 0).all()
    assert (found[4][0, 0, 0] == 0).tolist() == [key > past - 4 for key in range(past + 1)]
