"""What tests of solvers share: formats, matrices, and errors from the definition."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hvlc.weights.formats import Levels, ScaleType, WeightFormat, ZeroType, weight_format

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
