"""Perplexity of a text, window by window."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hvlc.errors import UserError
from hvlc.evaluation.fidelity import divergence
from hvlc.evaluation.journal import Journal
from hvlc.evaluation.memory import peak_memory_bytes, reset_peak_memory
from hvlc.evaluation.metrics import ratio
from hvlc.results import Divergence, Interval, Perplexity, ReadingAgreement, ScoredWindow, TextEvaluation
from hvlc.results.compilation import Compilation


def perplexity(
    logits: Callable[[np.ndarray], np.ndarray],
    windows: Sequence[np.ndarray],
    done: Callable[[], None] = lambda: None,
    journal: Journal[ScoredWindow] | None = None,
) -> Perplexity:
    """Score windows of tokens; the first token of each is given, the others are predicted.

    Args:
        logits: int64 `[n]` to float32 `[n, vocabulary]`.
        windows: int64 `[n]` each, two tokens at least.
        done: called after each.
        journal: what an earlier run scored is taken from here, and every window is kept here.

    Raises:
        UserError: what the model computes is not a number.
    """
    journal = journal or Journal(None, {}, ScoredWindow)
    resettable = reset_peak_memory()
    found = []
    for index, ids in enumerate(windows):
        key = _digest([ids])
        window = journal.find(index, key)
        if window is None:
            window = _score(logits(ids), ids)
            journal.add(index, key, window, peak_memory_bytes() if resettable else None)
        found.append(window)
        done()
    return Perplexity(windows=tuple(found))


def evaluate_text(
    logits: Callable[[np.ndarray], np.ndarray],
    windows: Sequence[np.ndarray],
    *,
    name: str,
    runs_on: str,
    task: str,
    done: Callable[[], None] = lambda: None,
    journal: Journal[ScoredWindow] | None = None,
    size_bytes: int | None = None,
    bits_per_weight: float | None = None,
    compilation: Compilation | None = None,
    provenance: Mapping[str, str] | None = None,
) -> TextEvaluation:
    """The record of how a model reads windows of a text; see `perplexity`.

    Args:
        logits: as in `perplexity`.
        windows: as in `perplexity`.
        name: of the model, for the record.
        runs_on: what it runs on, for the record.
        task: name of the text, for the record.
        done: as in `perplexity`.
        journal: as in `perplexity`.
        size_bytes: size of the package, for the record.
        bits_per_weight: of the package's decoder, for the record.
        compilation: of the package, for the record.
        provenance: digests and versions, for the record.

    Raises:
        UserError: what the model computes is not a number.
    """
    journal = journal or Journal(None, {}, ScoredWindow)
    found = perplexity(logits, windows, done, journal)
    nll = ratio([window.nll * window.tokens for window in found.windows], [window.tokens for window in found.windows])
    return TextEvaluation(
        name=name,
        runs_on=runs_on,
        task=task,
        text_digest=_digest(windows),
        window=max(len(ids) for ids in windows),
        tokens=found.tokens,
        perplexity=exponential(nll),
        windows=found.windows,
        peak_memory_bytes=journal.peak_memory_bytes,
        size_bytes=size_bytes,
        bits_per_weight=bits_per_weight,
        compilation=compilation,
        provenance=dict(provenance or {}),
    )


def with_reading_agreement(evaluation: TextEvaluation, reference: TextEvaluation) -> TextEvaluation:
    """The evaluation with its perplexity's ratio to a reference's, from the windows' differences.

    Raises:
        UserError: the two did not read the same windows.
    """
    if evaluation.text_digest != reference.text_digest:
        cause = (
            f"{evaluation.label} ({evaluation.task}) and {reference.label} ({reference.task}) read different windows"
        )
        raise UserError("compare.unpaired", cause, "evaluate both on the same text, --tokens and --window")
    pairs = list(zip(evaluation.windows, reference.windows, strict=True))
    gap = ratio([(a.nll - b.nll) * a.tokens for a, b in pairs], [a.tokens for a, _ in pairs])
    agreement = ReadingAgreement(reference=reference.label, ratio=exponential(gap))
    return evaluation.model_copy(update={"agreement": agreement})


def text_divergences(
    ours: Callable[[np.ndarray], np.ndarray],
    reference: Callable[[np.ndarray], np.ndarray],
    windows: Sequence[np.ndarray],
    done: Callable[[], None] = lambda: None,
    journal: Journal[Divergence] | None = None,
) -> list[Divergence]:
    """A model's distributions against a reference's, window by window.

    Args:
        ours: int64 `[n]` to float32 `[n, vocabulary]`.
        reference: the same of the reference.
        windows: int64 `[n]` each, two tokens at least.
        done: called after each.
        journal: what an earlier run measured is taken from here, and every result is kept here.

    Raises:
        UserError: the vocabularies differ, or what a model computes is not a number.
    """
    journal = journal or Journal(None, {}, Divergence)
    found = []
    for index, ids in enumerate(windows):
        key = _digest([ids])
        result = journal.find(index, key)
        if result is None:
            result = divergence(reference(ids)[:-1], ours(ids)[:-1])
            journal.add(index, key, result)
        found.append(result)
        done()
    return found


def exponential(found: Interval) -> Interval:
    """`exp` of a number and of the ends of its interval."""
    ends = {end: math.exp(value) for end, value in (("value", found.value), ("low", found.low), ("high", found.high))}
    return found.model_copy(update=ends)


def _digest(windows: Sequence[np.ndarray]) -> str:
    """Hex SHA-256 of token ids."""
    digest = hashlib.sha256()
    for ids in windows:
        digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes())
    return digest.hexdigest()


def _score(said: np.ndarray, ids: np.ndarray) -> ScoredWindow:
    """Score of a model on a window: `said` float32 `[n, vocabulary]`, `ids` int64 `[n]`."""
    nll = _nll(said[:-1].astype(np.float32), ids[1:])
    if not np.isfinite(nll):
        raise UserError("eval.numbers", "the logits are not finite", "check the model: it overflows")
    return ScoredWindow(nll=nll, tokens=len(ids) - 1)


def _nll(said: np.ndarray, right: np.ndarray) -> float:
    """Mean negative log-likelihood of tokens int64 `[n]` under logits float32 `[n, vocabulary]`."""
    top = said.max(-1, keepdims=True)
    norm = np.log(np.exp(said - top).sum(-1, dtype=np.float64)) + top[:, 0]
    return float(np.mean(norm - said[np.arange(len(right)), right], dtype=np.float64))
