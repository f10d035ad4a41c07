"""Perplexity of a text, window by window."""

from collections.abc import Callable, Sequence

import numpy as np

from hvlc.errors import UserError
from hvlc.results import Perplexity, ScoredWindow


def perplexity(
    logits: Callable[[np.ndarray], np.ndarray], windows: Sequence[np.ndarray], done: Callable[[], None] = lambda: None
) -> Perplexity:
    """Score windows of tokens; the first token of each is given, the others are predicted.

    Args:
        logits: int64 `[n]` to float32 `[n, vocabulary]`.
        windows: int64 `[n]` each, two tokens at least.
        done: called after each.

    Raises:
        UserError: what the model says is no number.
    """
    found = []
    for ids in windows:
        nll = _nll(logits(ids)[:-1].astype(np.float32), ids[1:])
        if not np.isfinite(nll):
            raise UserError("eval.numbers", "the logits are not finite", "check the model: it overflows")
        found.append(ScoredWindow(nll=nll, tokens=len(ids) - 1))
        done()
    return Perplexity(windows=tuple(found))


def _nll(said: np.ndarray, right: np.ndarray) -> float:
    """Mean negative log-likelihood of tokens int64 `[n]` under logits float32 `[n, vocabulary]`."""
    top = said.max(-1, keepdims=True)
    norm = np.log(np.exp(said - top).sum(-1, dtype=np.float64)) + top[:, 0]
    return float(np.mean(norm - said[np.arange(len(right)), right], dtype=np.float64))
