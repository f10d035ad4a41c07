"""Evaluations made up for tests: numbers as asked for, records as the evaluation loop makes them."""

from collections.abc import Sequence
from typing import Any

from hvlc.evaluation.evaluate import summarize
from hvlc.evaluation.metrics import ratio, share
from hvlc.evaluation.perplexity import exponential
from hvlc.results import Divergence, Evaluation, ExampleResult, Fidelity, ScoredWindow, TextEvaluation


def measured(
    right: Sequence[bool],
    *,
    anls: Sequence[float] | None = None,
    seconds: Sequence[float] | float = 0.02,
    tokens: int = 3,
    visual_tokens: int = 10,
    encoder: str = "base",
    **fields: Any,
) -> Evaluation:
    """An evaluation whose examples are right or not.

    Args:
        right: one of each example.
        anls: of each example; 1 or 0 when None.
        seconds: to the first token, of each example.
        tokens: of each answer.
        visual_tokens: of each image.
        encoder: that was asked for.
        **fields: of the record.
    """
    times = [seconds] * len(right) if isinstance(seconds, float) else seconds
    examples = tuple(
        ExampleResult(
            id=f"e{index}",
            index=index,
            kind="receipt",
            question="Total?",
            answers=("7",),
            prediction="7" if exact else "1",
            tokens=tuple(range(tokens)),
            exact=exact,
            anls=(similarity := float(exact) if anls is None else anls[index]),
            metric="anls",
            score=similarity,
            encoder=encoder,
            scales=(1.0,),
            tiles=1,
            visual_tokens=visual_tokens,
            prompt_tokens=30,
            time_to_first_token=times[index],
            decode_seconds=0.01,
        )
        for index, exact in enumerate(right)
    )
    record: dict[str, Any] = {
        "name": "w4a16",
        "runs_on": "onnxruntime CPU",
        "task": "documents",
        "examples_digest": "0" * 64,
        "vrc": False,
        "max_new_tokens": 32,
        "size_bytes": 38_400_000,
        "bits_per_weight": 4.5,
    }
    return Evaluation(encoder=encoder, summary=summarize(examples), examples=examples, **(record | fields))


def fidelity(kl: float, agreeing: int, *, sequences: int = 8, tokens: int = 10) -> Fidelity:
    """A fidelity whose sequences are alike but for a hundredth of the divergence."""
    each = tuple(
        Divergence(tokens=tokens, kl=kl * (1 + 0.01 * (-1) ** index), agreeing=agreeing) for index in range(sequences)
    )
    return Fidelity(
        reference="float32 · base",
        reference_digest="0" * 64,
        tokens=tokens * sequences,
        kl=ratio([one.kl * one.tokens for one in each], [one.tokens for one in each]),
        top1=share([one.agreeing for one in each], [one.tokens for one in each]),
        sequences=each,
    )


def read_text(nll: Sequence[float], **fields: Any) -> TextEvaluation:
    """A text evaluation whose windows of 100 tokens have these log-likelihoods."""
    windows = tuple(ScoredWindow(nll=one, tokens=100) for one in nll)
    found = exponential(ratio([one.nll * one.tokens for one in windows], [one.tokens for one in windows]))
    record: dict[str, Any] = {
        "name": "w4a16",
        "runs_on": "onnxruntime CPU",
        "task": "novel",
        "text_digest": "0" * 64,
        "window": 128,
    }
    return TextEvaluation(tokens=100 * len(windows), perplexity=found, windows=windows, **(record | fields))
