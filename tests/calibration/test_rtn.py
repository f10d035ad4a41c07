"""Rounding to nearest: held against slow textbook loops and closed forms."""

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hvlc.calibration.solvers import kernels
from hvlc.calibration.solvers.rtn import extreme_on_last_level, round_to_nearest
from hvlc.plan import ScaleType, WeightFormat
from hvlc.quantized import Levels
from tests.tolerances import SOLVER_ERROR

FORMATS = [
    WeightFormat(bits, 16, symmetric, scale_type, negative)
    for bits in (4, 8)
    for symmetric in (True, False)
    for scale_type in ScaleType
    for negative in (True, False)
    if symmetric or negative
]
SYMMETRIC = [f for f in FORMATS if f.symmetric]

matrices = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-100, 100, width=32).map(lambda v: np.float32(0 if abs(v) < 2**-10 else v)),
)


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def zero_of(levels: Levels) -> np.ndarray:
    middle = 2 ** (levels.format.bits - 1)
    return np.full(levels.scales.shape, middle) if levels.zero_points is None else levels.zero_points.astype(int)


@given(matrices, st.sampled_from(FORMATS))
@settings(max_examples=150)
def test_inside_the_range_no_weight_moves_by_more_than_half_a_step(weight: np.ndarray, format: WeightFormat) -> None:
    levels = round_to_nearest(weight, format)
    dequantized, top = levels.dequantize(weight.shape[1]), 2**format.bits - 1
    zero, block = zero_of(levels), format.block_size
    for (row, column), value in np.ndenumerate(weight):
        scale = float(levels.scales[row, column // block])
        low, high = sorted([-zero[row, column // block] * scale, (top - zero[row, column // block]) * scale])
        moved = abs(float(value) - float(dequantized[row, column]))
        clipped = max(low - value, value - high, 0)  # outside, the nearest end is as near as it gets
        assert moved <= max(abs(scale) / 2, clipped) * (1 + 1e-5) + 1e-5


@given(matrices, st.sampled_from(FORMATS))
@settings(max_examples=60)
def test_levels_are_in_range_and_padding_is_zero(weight: np.ndarray, format: WeightFormat) -> None:
    levels = round_to_nearest(weight, format)
    assert levels.levels.dtype == np.uint8
    assert int(levels.levels.max()) < 2**format.bits
    columns = levels.levels.shape[1] * format.block_size
    padded = levels.dequantize(columns)
    assert padded.shape[1] == columns
    assert (padded[:, weight.shape[1] :] == 0).all()


@pytest.mark.parametrize("format", SYMMETRIC, ids=str)
@pytest.mark.parametrize("extreme", ["lowest level", "highest level"])
def test_representable_weights_are_exact(format: WeightFormat, extreme: str) -> None:
    half, random = 2 ** (format.bits - 1), np.random.default_rng(1)
    integers = random.integers(1 - half, half, (4, 32))
    integers[:, ::16] = -half if extreme == "lowest level" else half - 1
    scales = np.repeat(2.0 ** random.integers(-6, 3, (4, 2)), 16, axis=1)
    weight = (integers * scales).astype(np.float32)
    np.testing.assert_array_equal(round_to_nearest(weight, format).dequantize(32), weight)


@pytest.mark.parametrize("format", [f for f in FORMATS if not f.symmetric], ids=str)
def test_representable_asymmetric_weights_are_exact(format: WeightFormat) -> None:
    top, random = 2**format.bits - 1, np.random.default_rng(1)
    integers = random.integers(0, top + 1, (4, 32))
    integers[:, ::16], integers[:, 1::16] = 0, top
    zeros = np.repeat(random.integers(0, top + 1, (4, 2)), 16, axis=1)
    weight = ((integers - zeros) * 0.25).astype(np.float32)
    np.testing.assert_array_equal(round_to_nearest(weight, format).dequantize(32), weight)


def stored(scale: float, format: WeightFormat) -> float:
    """A scale as it is read back."""
    if format.scale_type is ScaleType.FLOAT32:
        return float(np.float32(scale))
    return float(np.float16(np.copysign(np.clip(abs(scale), 2**-24, 65504), scale)))


def squared(weight: np.ndarray, levels: Levels) -> float:
    return float(np.square(levels.dequantize(weight.shape[1]).astype(np.float64) - weight).sum())


@given(matrices, st.sampled_from(SYMMETRIC))
@settings(max_examples=100)
def test_never_worse_than_the_largest_weight_on_the_last_level(weight: np.ndarray, format: WeightFormat) -> None:
    half, block = 2 ** (format.bits - 1), format.block_size
    plain = 0.0
    for row in weight:
        for start in range(0, len(row), block):
            values = row[start : start + block].astype(np.float64)
            largest = np.array([np.abs(values).max() / (half - 1)], np.float32)
            scale = stored(float(largest[0]), format) or 1.0
            plain += float(np.square(np.clip(np.rint(values / scale), -half, half - 1) * scale - values).sum())
    found = squared(weight, round_to_nearest(weight, format))
    assert found <= plain * (1 + SOLVER_ERROR) + 1e-9


def slow_best(values: list[float], format: WeightFormat) -> float:
    """Least squared error of a block over all candidate scales, in python loops."""
    half, type_ = 2 ** (format.bits - 1), np.float16 if format.scale_type is ScaleType.FLOAT16 else np.float32
    extreme = max(values, key=abs)
    shrinks = [1 - 0.025 * step for step in range(11)]
    candidates = [abs(extreme) / (half - 1) * s for s in shrinks]
    if format.negative_scales:
        candidates += [-extreme / half * s for s in shrinks]
    elif extreme < 0:
        candidates.append(-extreme / half)
    best = float("inf")
    for candidate in candidates:
        scale = float(type_(candidate))
        error = 0.0
        for value in values:
            level = max(-half, min(half - 1, round(value / scale)))
            error += (level * scale - value) ** 2
        best = min(best, error)
    return best


@pytest.mark.parametrize("format", SYMMETRIC, ids=str)
def test_a_slow_search_over_the_same_scales_finds_nothing_better(format: WeightFormat) -> None:
    weight = normal(6, 48) * np.linspace(0.01, 10, 6, dtype=np.float32)[:, None]
    slow = sum(slow_best([float(v) for v in block], format) for block in weight.reshape(-1, 16))
    assert squared(weight, round_to_nearest(weight, format)) == pytest.approx(slow, rel=SOLVER_ERROR)


def test_negative_scales_and_choice_of_scale_are_worth_it() -> None:
    weight = normal(64, 256)
    errors = [
        squared(weight, round_to_nearest(weight, WeightFormat(4, 32, True, ScaleType.FLOAT32, negative)))
        for negative in (True, False)
    ]
    assert errors[0] < 0.95 * errors[1]


def test_more_bits_and_smaller_blocks_never_hurt() -> None:
    weight = normal(16, 256)
    for formats in (
        [WeightFormat(8, 32), WeightFormat(4, 32)],
        [WeightFormat(4, b) for b in (16, 32, 64, 128)],
    ):
        errors = [squared(weight, round_to_nearest(weight, f)) for f in formats]
        assert all(one < other for one, other in pairwise(errors))


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.filterwarnings("error")
def test_blocks_of_zeros_stay_zero(format: WeightFormat) -> None:
    weight = np.zeros((2, 40), np.float32)
    weight[1, :16] = normal(1, 16)
    levels = round_to_nearest(weight, format)
    assert (levels.dequantize(40)[weight == 0] == 0).all()
    assert np.isfinite(levels.stored_scales()).all()


@pytest.mark.parametrize("format", [f for f in FORMATS if f.scale_type is ScaleType.FLOAT16], ids=str)
@pytest.mark.parametrize("magnitude", [1e-9, 1e-7, 1e-4, 1e5, 1e8])
@pytest.mark.filterwarnings("error")
def test_float16_scales_neither_vanish_nor_overflow(format: WeightFormat, magnitude: float) -> None:
    weight = normal(2, 32) * np.float32(magnitude)
    levels = round_to_nearest(weight, format)
    stored = levels.stored_scales()
    assert stored.dtype == np.float16
    assert np.isfinite(stored).all()
    assert (stored != 0).all()
    np.testing.assert_array_equal(stored.astype(np.float32), levels.scales)
    assert squared(weight, levels) <= float(np.square(weight.astype(np.float64)).sum()) * (1 + SOLVER_ERROR)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_rows_do_not_know_each_other(format: WeightFormat) -> None:
    weight = normal(5, 50)
    together = round_to_nearest(weight, format).dequantize(50)
    alone = np.concatenate([round_to_nearest(weight[i : i + 1], format).dequantize(50) for i in range(5)])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("columns", [32, 64, 2048])
@pytest.mark.parametrize("symmetric", [True, False])
def test_many_blocks_are_solved_as_few_are(columns: int, symmetric: bool) -> None:
    """The kernel lays blocks out in groups; a block that ends one, or is alone in one, is like any other."""
    weight, format = normal(2 * 4096 // columns + 3, columns), WeightFormat(4, 32, symmetric)
    whole = round_to_nearest(weight, format)
    alone = [round_to_nearest(np.ascontiguousarray(row[None]), format) for row in weight]
    np.testing.assert_array_equal(whole.levels, np.concatenate([a.levels for a in alone]))
    np.testing.assert_array_equal(whole.scales, np.concatenate([a.scales for a in alone]))


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_minmax_gives_the_bytes_of_onnxruntimes_quantizer(block: int, rows: int) -> None:
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    weight = normal(rows, 512) * np.float32(0.02)
    weight[0, :block] = 0
    weight[-1, :3], weight[-1, -3:] = [0.5, -0.5, 0.25], [-0.5, 0.25, 0.5]  # of two equals the negative one decides
    blocks = 512 // block
    packed, scales = np.zeros((rows, blocks, block // 2), np.uint8), np.zeros(rows * blocks, np.float32)
    zeros = np.zeros((rows, (blocks + 1) // 2), np.uint8)
    quantize_matmul_4bits(packed, np.ascontiguousarray(weight.T), scales, zeros, block, rows, 512, True)
    levels = extreme_on_last_level(weight, WeightFormat(4, block, True, ScaleType.FLOAT32))
    np.testing.assert_array_equal(levels.packed(), packed)
    np.testing.assert_array_equal(levels.stored_scales().reshape(-1), scales)


def test_the_search_beats_the_plain_rule() -> None:
    weight, format = normal(64, 256), WeightFormat(4, 32)
    assert squared(weight, round_to_nearest(weight, format)) < 0.9 * squared(
        weight, extreme_on_last_level(weight, format)
    )


def test_scales_round_to_float16_as_numpy_rounds() -> None:
    """Every exponent, values between, on and just beside two neighbours, both signs."""
    halves = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    between = (halves[1:] + halves[:-1]) / 2
    values = np.concatenate([halves, between, between * (1 + 1e-6), between * (1 - 1e-6)]).astype(np.float32)
    values = np.concatenate([values, -values])
    rounded = values.copy()
    kernels._to_half(rounded)
    np.testing.assert_array_equal(rounded, values.astype(np.float16).astype(np.float32))


def test_every_processor_gives_the_same_bytes() -> None:
    """Compiled for the plainest processor of this architecture, without its vector extensions."""
    script = (
        "import hashlib, numpy as np\n"
        "from hvlc.calibration.solvers.rtn import round_to_nearest\n"
        "from hvlc.plan import WeightFormat\n"
        "w = np.random.default_rng(3).normal(size=(96, 160)).astype(np.float32)\n"
        "found = [round_to_nearest(w, WeightFormat(b, 32, s)) for b in (4, 8) for s in (True, False)]\n"
        "print(hashlib.sha256(b''.join(f.packed().tobytes() + f.scales.tobytes() for f in found)).hexdigest())\n"
    )
    digests = set()
    for processor in ("generic", "host"):
        settings = {} if processor == "host" else {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
        run = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **settings}, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout)
    assert len(digests) == 1


def test_kernels_work_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(kernels, "njit", refuse)
    assert kernels.compiled(len)([1, 2]) == 2
