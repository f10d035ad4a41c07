"""k-quants: fit scales and zero points to rounded weights by weighted least squares.

After `make_qx_quants` and `make_qkx2_quants` of llama.cpp (ggml/src/ggml-quants.c), which onnxruntime's `k_quant`
follows too: weights are rounded on slightly stretched and squeezed grids, each rounding gets the grid that fits it
best, and the best grid is kept. There a block stores a real minimum; here most formats store an integer zero point, so
the scale is fitted again under the zero point next to the fitted minimum, and grids are compared by what is stored.
"""

import numpy as np

from hvlc.solvers.kernel_calls import least_squares
from hvlc.solvers.lpbq import under_held_scales
from hvlc.weights.formats import Levels, WeightFormat

_SYMMETRIC = np.arange(-9, 10, dtype=np.float32) * np.float32(0.1)  # make_qx_quants
_ASYMMETRIC = np.arange(-10, 11, dtype=np.float32) * np.float32(0.1)  # make_qkx2_quants in quantize_row_q4_K_ref


def k_quant(weight: np.ndarray, format: WeightFormat) -> Levels:
    """Least squared error weighted by `sqrt(mean(x ** 2)) + |x|`, as in llama.cpp's Q4_K.

    Never worse than `minmax` in that error; where scales may not be negative, `minmax` with the extreme value on the
    last level of its own sign.

    Args:
        weight: float32 `[out, in]`, row-major.
        format: bits, block size, symmetry and scale type.

    Returns:
        Levels of `[out, ceil(in / block_size), block_size]`; the same for a row whatever rows come with it.
    """
    return _fit(weight, np.ones(weight.shape[1], np.float32), True, format)


def weighted_least_squares(weight: np.ndarray, format: WeightFormat, importance: np.ndarray) -> Levels:
    """The same search for the least squared error weighted by the importance of each input channel.

    Args:
        weight: float32 `[out, in]`, row-major.
        format: bits, block size, symmetry and scale type.
        importance: float32 `[in]`, none negative: with mean squares of the inputs, the output's error is minimized as
            far as errors of different channels are independent.
    """
    largest = importance.max(initial=0)
    return _fit(weight, importance / (largest if largest > 0 else 1), False, format)


def _fit(weight: np.ndarray, importance: np.ndarray, by_magnitude: bool, format: WeightFormat) -> Levels:
    def fit(free: WeightFormat) -> Levels:
        return least_squares(weight, importance, by_magnitude, free, (_SYMMETRIC, _ASYMMETRIC))

    return under_held_scales(weight, format, fit, importance.astype(np.float32))
