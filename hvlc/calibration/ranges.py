"""Estimate ranges of activations from samples, and the magnitudes of a KV cache.

The method is a choice: all values ("minmax"), all but a share of the values ("percentile"), or the range with the
smallest expected squared error ("mse"). Decoders have massive activations: single values in the stream of the first
token, hundreds of times the median, that attention depends on (Sun et al. 2024, "Massive Activations in Large Language
Models"). A percentile cuts them off whatever they are worth; the squared error keeps them as long as the levels are
fine enough, which 16 bits are.

Histograms have fixed bins, the leading bits of a float32 (sign, exponent and 5 bits of mantissa: 3 % wide), so that
the order of the samples does not matter and nothing is binned again.
"""

from dataclasses import dataclass, field

import numpy as np

from hvlc.errors import UserError
from hvlc.graphs.plan import RangeMethod

_SHIFT = 23 - 5  # bits of a float32 that its bin does not depend on
_SIGNED_BINS = 1 << (31 - _SHIFT)
_BINS = 0x7F800000 >> _SHIFT  # of finite magnitudes
_SHARES = 2.0 ** (-np.arange(41) / 4)  # of the extreme value, that an end of an "mse" range may have


@dataclass
class _Seen:
    """Statistics of one value, of its positive side first and of its negative side second.

    Attributes:
        extremes: float64 `[2]`, the largest magnitude of a side; 0 where there is none, as integers must hold 0.
        counts: int64 `[2, bins]`, values by magnitude; no bins when the method needs none.
    """

    extremes: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class RangeObserver:
    """Observer of the range of every activation.

    Attributes:
        method: which range is chosen.
        percentile: of the values, in percent, that "percentile" keeps below the upper end, and above the lower.
        bits: width of the integers, for "mse".
    """

    method: RangeMethod = RangeMethod.MSE
    percentile: float = 99.999
    bits: int = 16
    _seen: dict[str, _Seen] = field(default_factory=dict, init=False)

    def observe(self, name: str, values: np.ndarray) -> None:
        """Take in one sample of a value, float of any shape; an empty one says nothing.

        Raises:
            UserError: it holds NaN or infinity.
        """
        if not values.size:
            return
        flat = _finite(name, values).reshape(-1)
        bins = 0 if self.method is RangeMethod.MINMAX else _BINS
        seen = self._seen.setdefault(name, _Seen(np.zeros(2), np.zeros((2, bins), np.int64)))
        seen.extremes = np.maximum(seen.extremes, [flat.max(), -flat.min()])
        if bins:
            found = np.bincount(flat.view(np.uint32) >> _SHIFT, minlength=2 * _SIGNED_BINS)
            seen.counts += found.reshape(2, _SIGNED_BINS)[:, :_BINS]

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lower end (at most 0) and upper end (at least 0) of every value, within what was seen of it."""
        found = {name: self._ends(seen) for name, seen in self._seen.items()}
        return {name: (0.0 - float(below), float(above)) for name, (above, below) in found.items()}

    def _ends(self, seen: _Seen) -> np.ndarray:
        """float64 `[2]`: magnitudes of the upper and of the lower end."""
        match self.method:
            case RangeMethod.MINMAX:
                return seen.extremes
            case RangeMethod.PERCENTILE:
                return _percentile_ends(seen, self.percentile)
            case RangeMethod.MSE:
                return _least_error_ends(seen, self.bits)


@dataclass(frozen=True)
class CacheObserver:
    """Observer of the largest magnitude of each channel of keys and values, for a static quantized KV cache.

    Rotation keeps the norm of a pair of channels, so each channel of a rotated key is given the norm of its pair:
    that bounds it at positions that no sample reached, where a slowly turning channel holds what its partner held
    (onnxruntime-genai 0.18 does the same: models/quantization/kv_cache_calibration.py, `_pair_envelope`).

    Attributes:
        rotated: names of the values that are rotated keys, channel `i` of a head with channel `i + head_size / 2`.
    """

    rotated: frozenset[str]
    _seen: dict[str, np.ndarray] = field(default_factory=dict, init=False)

    def observe(self, name: str, values: np.ndarray) -> None:
        """Take in keys or values, float `[batch, kv_heads, positions, head_size]`; empty ones say nothing.

        Raises:
            UserError: they hold NaN or infinity.
        """
        if not values.size:
            return
        found = np.abs(_finite(name, values))
        if name in self.rotated:
            first, second = np.split(found, 2, axis=-1)
            found = np.tile(np.hypot(first, second), 2)
        self._seen[name] = np.maximum(self._seen.get(name, np.float32(0)), found.max((0, 2)))

    def magnitudes(self) -> dict[str, np.ndarray]:
        """float32 `[kv_heads, head_size]` of everything that was shown."""
        return dict(self._seen)


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    """The values as contiguous float32.

    Raises:
        UserError: one of them is NaN or infinite, in float32 too.
    """
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(result).all():
        cause = f"the activation {name} holds NaN or infinity"
        raise UserError("calibration.not_finite", cause, "check the checkpoint, or calibrate with other samples")
    return result


def _edges() -> np.ndarray:
    """float64 `[bins + 1]`: the magnitudes between which the bins of one side lie."""
    edges = (np.arange(_BINS + 1, dtype=np.uint32) << np.uint32(_SHIFT)).view(np.float32)
    return np.minimum(edges, np.finfo(np.float32).max).astype(np.float64)


def _percentile_ends(seen: _Seen, percentile: float) -> np.ndarray:
    """On each side at most `100 - percentile` percent of all values lie outside; ends are rounded out to bins."""
    allowed = (1 - percentile / 100) * seen.counts.sum()
    farther = seen.counts[:, ::-1].cumsum(1)[:, ::-1] - seen.counts  # values in bins of larger magnitude
    return np.minimum(seen.extremes, _edges()[1:][(farther <= allowed).argmax(1)])


def _least_error_ends(seen: _Seen, bits: int) -> np.ndarray:
    """The pair of ends with the least expected squared error, among shares of the extreme values.

    A value inside is rounded, with a mean squared error of `step**2 / 12`; a value outside is cut to the end.
    """
    ends = seen.extremes[:, None] * _SHARES
    (above, above_count), (below, below_count) = (_cut(*side) for side in zip(seen.counts, ends, strict=True))
    inside = seen.counts.sum() - above_count[:, None] - below_count
    step = (ends[0][:, None] + ends[1]) / (2**bits - 1)
    error = inside * step**2 / 12 + above[:, None] + below
    return ends[[0, 1], np.unravel_index(error.argmin(), error.shape)]


def _cut(counts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared error of cutting the values of one side at each of `ends`, and how many are cut."""
    used = np.flatnonzero(counts)
    edges = _edges()
    beyond = np.maximum((edges[used] + edges[used + 1]) / 2 - ends[:, None], 0)
    return (counts[used] * beyond**2).sum(1), (counts[used] * (beyond > 0)).sum(1)
