"""What tests of solvers share: formats, matrices, and errors from the definition."""

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hvlc.solvers import SOLVERS
from hvlc.weights.formats import Levels, ScaleType, WeightFormat, ZeroType, weight_format
from tests.helpers.tolerances import SOLVER_ERROR

#: Data-free solvers that take any format: `pairs` is for one.
GENERAL = {name: solver for name, solver in SOLVERS.items() if name != "pairs"}
#: Types of scales that any form may have.
FLOAT_SCALES = (ScaleType.FLOAT32, ScaleType.FLOAT16)
FORMATS = [
    weight_format(bits, 16, symmetric, scale_type, negative)
    for bits in (4, 8)
    for symmetric in (True, False)
    for scale_type in FLOAT_SCALES
    for negative in (True, False)
    if symmetric or negative
]
SYMMETRIC = [f for f in FORMATS if f.symmetric]
ASYMMETRIC = [f for f in FORMATS if not f.symmetric]
LPBQ = [weight_format(4, block, True, ScaleType.LPBQ, negative_scales=False) for block in (16, 32)]
FLOAT_ZEROS = [
    weight_format(f.bits, f.block_size, False, f.scale_type, f.negative_scales, ZeroType.FLOAT) for f in ASYMMETRIC
]

matrices = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-100, 100, width=32).map(lambda v: np.float32(0 if abs(v) < 2**-10 else v)),
)


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def stored(scale: float, format: WeightFormat) -> float:
    """A scale as it is read back."""
    if format.scale_type is ScaleType.FLOAT32:
        return float(np.float32(scale))
    return float(np.float16(np.copysign(np.clip(abs(scale), 2**-24, 65504), scale)))


def squared(weight: np.ndarray, levels: Levels) -> float:
    return float(np.square(levels.dequantize(weight.shape[1]).astype(np.float64) - weight).sum())


def plain_grid(values: list[float], format: WeightFormat) -> tuple[float, float]:
    """The scale before it is stored, and the real zero point, that put a block's extreme on the last level."""
    low, high = min(0.0, *values), max(0.0, *values)
    half, top = 2 ** (format.bits - 1), 2**format.bits - 1
    if not format.symmetric:
        return (high - low) / top, -low / ((high - low) / top or 1.0)
    if -low >= high:
        return -low / half, half
    return (-high / half if format.negative_scales else high / (half - 1)), half


def stored_zero(zero: float, format: WeightFormat) -> float:
    """A zero point as it is read back."""
    return zero if format.zero_dtype == np.float32 else max(0, min(2**format.bits - 1, int(np.floor(zero + 0.5))))


def rounded(values: list[float], scale: float, zero: float, format: WeightFormat) -> list[float]:
    """The nearest levels, counted from the zero point."""
    top = 2**format.bits - 1
    return [max(0, min(top, int(np.floor(v / scale + zero + 0.5)))) - zero if scale else 0 for v in values]


def blocks_of(weight: np.ndarray, block_size: int) -> list[list[float]]:
    """Blocks in order, the last of a row shorter where it is not full."""
    return [
        [float(v) for v in row[start : start + block_size]]
        for row in weight
        for start in range(0, len(row), block_size)
    ]


def on_symmetric_levels(format: WeightFormat, extreme: str) -> np.ndarray:
    """float32 `[4, 32]` that a symmetric format in blocks of 16 represents.

    Args:
        format: symmetric.
        extreme: "lowest level" or "highest level": which of them every block has.
    """
    half, random = 2 ** (format.bits - 1), np.random.default_rng(1)
    integers = random.integers(1 - half, half, (4, 32))
    integers[:, ::16] = -half if extreme == "lowest level" else half - 1
    scales = np.repeat(2.0 ** random.integers(-6, 3, (4, 2)), 16, axis=1)
    weight: np.ndarray = (integers * scales).astype(np.float32)
    return weight


def on_asymmetric_levels(format: WeightFormat) -> np.ndarray:
    """float32 `[4, 32]` that an asymmetric format in blocks of 16 represents; every block has both extremes."""
    top, random = 2**format.bits - 1, np.random.default_rng(1)
    integers = random.integers(0, top + 1, (4, 32))
    integers[:, ::16], integers[:, 1::16] = 0, top
    zeros = np.repeat(random.integers(0, top + 1, (4, 2)), 16, axis=1)
    weight: np.ndarray = ((integers - zeros) * 0.25).astype(np.float32)
    return weight


def check_slow(
    weight: np.ndarray, found: Callable[[np.ndarray], float], slow: Callable[[list[float]], float], most: int
) -> None:
    """Compare a solver's error with that of slow loops, block of 16 by block of 16.

    float32 and float64 round some halfway cases differently, and a search ends elsewhere from there.

    Args:
        weight: float32 `[rows, in]`.
        found: error of the solver on one block, float32 `[1, 16]`.
        slow: error of the loops on it.
        most: blocks that may be apart.
    """
    blocks = blocks_of(weight, 16)
    errors = np.array([found(np.array([block], np.float32)) for block in blocks])
    apart = np.abs(errors / np.array([slow(block) for block in blocks]) - 1)
    assert (apart > SOLVER_ERROR).sum() <= most
    assert apart.max() < 0.1
