"""GPTQ and AWQ matrices: any box, any block size, against the definition."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.weights.formats import Stream
from hvlc.weights.lazy import Constant
from hvlc.weights.prequantized.grouped import GroupedMatrix, all_middle
from tests.weights.prequantized.tiny_quantized import grouped_layer, packed

SHAPE = (48, 96)
CASES: dict[str, dict[str, Any]] = {
    "gptq": {"bits": 4, "group": 32},
    "gptq, last group shorter": {"bits": 4, "group": 64},
    "gptq of 8 bits": {"bits": 8, "group": 32},
    "gptq of 2 bits": {"bits": 2, "group": 16},
    "gptq v2": {"bits": 4, "group": 32, "less_one": False},
    "gptq of whole rows": {"bits": 4, "group": -1},
    "gptq by activation order": {"bits": 4, "group": 32, "shuffled": True},
    "awq": {"bits": 4, "group": 32, "awq": True},
    "awq of whole rows": {"bits": 4, "group": -1, "awq": True},
}


@cache
def made(case: str, seed: int = 0) -> tuple[GroupedMatrix, np.ndarray, dict[str, np.ndarray]]:
    options = dict(CASES[case])
    stored, weight, parts = grouped_layer(np.random.default_rng(seed), SHAPE, **options)
    bits, group = options["bits"], SHAPE[1] if options["group"] == -1 else options["group"]
    shuffled = options.get("shuffled", False)
    matrix = GroupedMatrix(
        "AWQ" if options.get("awq") else "GPTQ",
        Constant(stored["qweight"]),
        Constant(stored["qzeros"]),
        Constant(stored["scales"]),
        Constant(stored["g_idx"]) if shuffled else None,
        bits,
        group,
        not options.get("awq") and options.get("less_one", True),
        False,
        SHAPE[1],
    )
    return matrix, weight, parts


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
def test_any_box_has_the_float_values(case: str, data: st.DataObject) -> None:
    matrix, expected, _ = made(case)
    box = tuple(slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in SHAPE)
    assert np.array_equal(matrix.box(box), expected[box])


@pytest.mark.parametrize("case", [case for case in CASES if "activation" not in case])
def test_the_form_is_the_matrix_exactly_in_any_block_size(case: str) -> None:
    matrix, expected, parts = made(case)
    formats = list(matrix.formats())
    assert formats[0].block_size == (128 if CASES[case]["group"] == -1 else CASES[case]["group"])
    for format in formats:
        form = matrix.form(format)
        assert np.array_equal(form.dequantize(), expected)
        width = form.stream(Stream.LEVELS).shape[1] * format.block_size
        levels = form.stream(Stream.LEVELS).read()
        if format.bits == 4:
            levels = np.stack([levels & 15, levels >> 4], -1)
        flat = levels.reshape(SHAPE[0], width)
        assert np.array_equal(flat[:, : SHAPE[1]], parts["levels"].T)
        assert not flat[:, SHAPE[1] :].any()


def test_channels_in_activation_order_have_no_form() -> None:
    matrix, _, _ = made("gptq by activation order")
    assert matrix.format is None
    assert list(matrix.formats()) == []
    assert "desc_act" in matrix.obstacle


def test_zero_points_are_decremented_as_whole_words() -> None:
    """GPTQModel subtracts 0x11111111 from a word, so a zero point of 0 borrows from its neighbour."""
    zeros = np.array([[0, 3, 0, 0, 8, 15, 1, 9]])
    word = (packed(zeros, 4).view(np.uint32) - np.uint32(0x11111111)).view(np.int32)
    scales = np.ones((1, 8), np.float16)
    levels = np.zeros((2, 8), np.int32)
    matrix = GroupedMatrix(
        "GPTQ", Constant(levels), Constant(word), Constant(scales), None, 4, 16, True, False, columns=16
    )
    assert matrix.zero_points(0, 8)[:, 0].tolist() == zeros[0].tolist()


def test_only_middles_are_symmetric() -> None:
    matrix, _, _ = made("gptq")
    assert not all_middle(matrix)
    stored, _, _ = grouped_layer(np.random.default_rng(0), SHAPE, 4, 32, symmetric=True)
    values = [Constant(stored[name]) for name in ("qweight", "qzeros", "scales")]
    assert all_middle(GroupedMatrix("GPTQ", *values, None, 4, 32, True, False, SHAPE[1]))
