"""ggml's block types as levels, scales and zero points: against the gguf package, and against loops over a block."""

from functools import cache

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.errors import UserError
from hvlc.weights.lazy import Constant
from hvlc.weights.prequantized.gguf import GgufMatrix, gguf_matrix
from tests.weights.prequantized.tiny_quantized import KINDS, blocks_with_whole_minima, random_blocks

MAPPED = [kind for kind in KINDS if kind != "IQ4_NL"]
ROWS, COLUMNS = 6, 512


@cache
def matrix(kind: str, seed: int = 0) -> tuple[GgufMatrix, np.ndarray]:
    raw = random_blocks(np.random.default_rng(seed), kind, (ROWS, COLUMNS))
    number = gguf.GGMLQuantizationType[kind]
    return gguf_matrix("weight", Constant(raw), kind, COLUMNS), gguf.dequantize(raw, number)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_box_has_ggmls_values(kind: str, data: st.DataObject) -> None:
    found, expected = matrix(kind)
    box = []
    for size in (ROWS, COLUMNS):
        ends = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
        box.append(slice(*ends))
    values = found.box(tuple(box))
    assert values.dtype == np.float32
    assert np.array_equal(values, expected[tuple(box)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", MAPPED)
def test_the_form_is_the_matrix_to_one_rounding(kind: str, seed: int) -> None:
    found, expected = matrix(kind, seed)
    for format in found.formats():
        form = found.form(format).dequantize()
        if format.zero_dtype != np.float32:
            assert np.array_equal(form, expected)
        else:  # one rounding of the middle's value, one of the sum; neither is larger than the terms
            scales = np.repeat(found.scales(0, ROWS), COLUMNS // found.scales(0, ROWS).shape[1], 1)
            bound = np.abs(expected) + 2 ** (format.bits - 1) * np.abs(scales)
            assert (np.abs(form - expected) <= 4 * np.finfo(np.float32).eps * bound).all()
    assert not np.array_equal(found.form(found.format).dequantize(), expected * np.float32(1.001))


def test_smaller_blocks_repeat_scale_and_zero_point() -> None:
    found, _ = matrix("Q4_1")
    sizes = [format.block_size for format in found.formats()]
    assert sizes == [32, 16]
    whole, halves = (found.form(format) for format in found.formats())
    assert whole.stored[0].read().tobytes() == halves.stored[0].read().tobytes()
    for one, two in zip(whole.stored[1:], halves.stored[1:], strict=True):
        assert np.array_equal(np.repeat(one.read(), 2, 1), two.read())


def six_bit_pair(packed: list[int], j: int) -> tuple[int, int]:
    """get_scale_min_k4 of ggml-quants.c, as it stands there."""
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4), (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4)


def float16(block: list[int], start: int) -> float:
    return float(np.frombuffer(bytes(block[start : start + 2]), np.float16)[0])


def q4_k(block: list[int]) -> list[float]:
    """dequantize_row_q4_K."""
    d, dmin, values, place = float16(block, 0), float16(block, 2), [], 16
    for j in range(0, 8, 2):
        for part in range(2):
            scale, minimum = six_bit_pair(block[4:16], j + part)
            for index in range(32):
                level = block[place + index] >> 4 if part else block[place + index] & 15
                values.append(d * scale * level - dmin * minimum)
        place += 32
    return values


def q5_k(block: list[int]) -> list[float]:
    """dequantize_row_q5_K."""
    d, dmin, values, place, mask = float16(block, 0), float16(block, 2), [], 48, 1
    for j in range(0, 8, 2):
        for part in range(2):
            scale, minimum = six_bit_pair(block[4:16], j + part)
            for index in range(32):
                low = block[place + index] >> 4 if part else block[place + index] & 15
                level = low + (16 if block[16 + index] & (mask << part) else 0)
                values.append(d * scale * level - dmin * minimum)
        place, mask = place + 32, mask << 2
    return values


def q6_k(block: list[int]) -> list[float]:
    """dequantize_row_q6_K."""
    d, values = float16(block, 208), [0.0] * 256
    for half in range(2):
        low, high, scales = 64 * half, 128 + 32 * half, 192 + 8 * half
        for index in range(32):
            first, second = block[low + index], block[low + index + 32]
            pair = block[high + index]
            levels = [
                first & 15 | (pair & 3) << 4,
                second & 15 | (pair >> 2 & 3) << 4,
                first >> 4 | (pair >> 4 & 3) << 4,
                second >> 4 | (pair >> 6 & 3) << 4,
            ]
            for quarter, level in enumerate(levels):
                scale = block[scales + index // 16 + 2 * quarter]
                signed = scale - 256 if scale > 127 else scale
                values[128 * half + 32 * quarter + index] = d * signed * (level - 32)
    return values


@pytest.mark.parametrize("oracle", [q4_k, q5_k, q6_k])
def test_a_k_quant_is_what_ggmls_loops_make_of_it(oracle) -> None:
    kind = oracle.__name__.upper()
    raw = random_blocks(np.random.default_rng(1), kind, (3, 256))
    found = gguf_matrix("weight", Constant(raw), kind, 256)
    form = found.form(found.format).dequantize()
    expected = np.array([oracle(row.tolist()) for row in raw])
    assert np.abs(form - expected).max() < 1e-6 * np.abs(expected).max()


def test_a_block_of_scale_zero_keeps_its_minimum() -> None:
    raw = random_blocks(np.random.default_rng(0), "Q4_1", (2, 32))
    raw[0, :2] = 0
    found = gguf_matrix("weight", Constant(raw), "Q4_1", 32)
    minimum = raw[0, 2:4].copy().view(np.float16).astype(np.float32)
    assert np.array_equal(found.form(found.format).dequantize()[0], np.repeat(minimum, 32))


def test_what_the_gguf_package_cannot_read_is_refused() -> None:
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_K]
    with pytest.raises(UserError, match="Q8_K"):
        gguf_matrix("weight", Constant(np.zeros((2, size), np.uint8)), "Q8_K", 256)


@pytest.mark.parametrize(("kind", "spelled"), [("Q4_1", "int4 b32 asym f16"), ("Q5_1", "int8 b32 asym f16")])
def test_minima_that_are_whole_numbers_of_scales_are_integer_zero_points(kind: str, spelled: str) -> None:
    raw = blocks_with_whole_minima(np.random.default_rng(7), kind, (ROWS, COLUMNS))
    found = gguf_matrix("weight", Constant(raw), kind, COLUMNS)
    assert str(found.format) == spelled
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    for format in found.formats():
        assert np.array_equal(found.form(format).dequantize(), expected)
    with pytest.raises(TypeError, match="no integer zero points"):
        matrix(kind)[0].zero_points(0, ROWS)


@pytest.mark.parametrize("start", [0, 2])
def test_one_minimum_between_two_scales_makes_all_of_them_float(start: int) -> None:
    raw = blocks_with_whole_minima(np.random.default_rng(7), "Q4_1", (ROWS, COLUMNS))
    last = raw.reshape(ROWS * COLUMNS // 32, -1)[-1]
    last[start : start + 2] = np.array([-0.0371], np.float16).view(np.uint8)
    found = gguf_matrix("weight", Constant(raw), "Q4_1", COLUMNS)
    assert str(found.format) == "int4 b32 float zero f16"
