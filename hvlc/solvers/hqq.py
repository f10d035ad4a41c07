"""HQQ: fit zero points and scales by half-quadratic splitting, which tolerates large errors of a block's outliers.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (Mobius Labs, 2023). An l_p norm of
the error with `p < 1` is minimized by alternation: errors are shrunk by the norm's proximal operator (generalized
soft thresholding), then the grid is fitted to the weights minus those errors. Three things differ from the paper:

- Errors are counted in steps of the scale, so that the answer does not depend on the weights' magnitude.
- `p` is 3/4, not 0.7: square roots alone, which every processor rounds alike.
- The scale moves too, for formats without zero points and with integers for them, and the best iterate by what is
  stored is kept.

One start, the plain rule, as in the paper. More starts find smaller l_p errors, and should not: they cut off so many
large weights that the squared error of SmolLM2-135M's matrices rises by a quarter (4 bits, blocks of 32).
"""

import numpy as np

from hvlc.solvers import kernel_calls
from hvlc.solvers.lpbq import under_held_scales
from hvlc.weights.formats import Levels, WeightFormat

_BETA, _KAPPA, _ITERATIONS = 10.0, 1.01, 20  # the authors' settings


def half_quadratic(weight: np.ndarray, format: WeightFormat) -> Levels:
    """The scale (and zero point) of each block with the least `sum |error| ** (3/4)` among twenty iterates.

    The first iterate is the rule of `minmax`, so the result is never worse than that in this norm; where scales may
    not be negative, the extreme value lies on the last level of its own sign.

    Args:
        weight: float32 `[out, in]`, row-major.
        format: bits, block size, symmetry and scale type.

    Returns:
        Levels of `[out, ceil(in / block_size), block_size]`; the same for a row whatever rows come with it.
    """
    settings = _BETA, _KAPPA, _ITERATIONS
    return under_held_scales(weight, format, lambda free: kernel_calls.half_quadratic(weight, free, *settings))
