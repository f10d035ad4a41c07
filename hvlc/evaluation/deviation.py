"""Deviation of a stage's values from expected ones.

Errors are taken position by position (a token, a patch) and then averaged: decoders have positions whose values are a
thousand times as large as all others' ("Massive Activations in Large Language Models", arXiv 2402.17762), which would
hide whatever happens to the rest.
"""

import numpy as np

from hvlc.results.bisection import Deviation

_SMALLEST = 0.1  # of the median norm: a position that is expected to be almost zero counts as this much


def deviation(
    found: np.ndarray, expected: np.ndarray, before: np.ndarray | None = None, *, whole: bool = False
) -> Deviation:
    """Compare values.

    Args:
        found: float `[..., channels]`.
        expected: the same shape, if all is well.
        before: of that shape, or with more channels behind: what both were added to; errors are relative to what was
            added.
        whole: take all values as one position.
    """
    shapes = {"shape": found.shape, "expected_shape": expected.shape}
    if found.shape != expected.shape or not found.size:
        return Deviation(**shapes, relative=None if found.shape != expected.shape else 0.0)
    wanted = expected.astype(np.float64)
    error = found.astype(np.float64) - wanted
    if not np.isfinite(error).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(error))[0])
        return Deviation(**shapes, place=place, expected=_finite(expected[place]))
    place = tuple(int(i) for i in np.unravel_index(np.abs(error).argmax(), error.shape))
    added = wanted if before is None else wanted - before[..., : wanted.shape[-1]]
    return Deviation(
        **shapes,
        relative=_relative(*((v.reshape(1, -1) for v in (error, added)) if whole else (error, added))),
        cosine=_cosine(added + error, added),
        max_abs=float(abs(error[place])),
        place=place,
        found=float(found[place]),
        expected=float(expected[place]),
    )


def mismatches(found: np.ndarray, expected: np.ndarray) -> Deviation:
    """Compare ids or other labels int `[n]`: the share that differs, of those that both have; the first difference."""
    shapes = {"shape": found.shape, "expected_shape": expected.shape}
    both = min(len(found), len(expected))
    differ = np.flatnonzero(found[:both] != expected[:both])
    where = {}
    if differ.size:
        first = int(differ[0])
        where = {"place": (first,), "found": float(found[first]), "expected": float(expected[first])}
    share = differ.size / both if both else 0.0
    return Deviation(**shapes, **where, relative=None if len(found) != len(expected) else share)


def centered_logits(values: np.ndarray) -> np.ndarray:
    """Logits less their mean at each position, which no softmax sees."""
    return values - values.mean(-1, keepdims=True)


def _relative(error: np.ndarray, wanted: np.ndarray) -> float:
    wrong, norms = (np.linalg.norm(v.reshape(-1, v.shape[-1]), axis=-1) for v in (error, wanted))
    floor = _SMALLEST * float(np.median(norms)) or float(norms.max())
    if not floor:
        return float(wrong.any())
    return float(np.sqrt(np.mean((wrong / np.maximum(norms, floor)) ** 2)))


def _cosine(found: np.ndarray, expected: np.ndarray) -> float | None:
    norms = float(np.linalg.norm(found)) * float(np.linalg.norm(expected))
    return float(np.clip((found * expected).sum() / norms, -1, 1)) if norms else None


def _finite(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
