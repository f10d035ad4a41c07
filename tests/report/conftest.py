from collections.abc import Callable

import pytest

from hvlc.evaluation.evaluate import summarize
from hvlc.evaluation.metrics import anls, exact_match, ratio
from hvlc.evaluation.perplexity import exponential
from hvlc.results import Evaluation, ExampleResult, ScoredWindow, TextEvaluation


def _evaluation(predictions: list[str], **options) -> Evaluation:
    examples = tuple(
        ExampleResult(
            id=f"e{index}",
            index=index,
            kind=options.get("kinds", ["receipt", "form"])[index % 2],
            question=options.get("question", f"Total {index}?"),
            answers=(str(index),),
            prediction=prediction,
            tokens=tuple(prediction.encode()),
            exact=exact_match(prediction, [str(index)]),
            anls=anls(prediction, [str(index)]),
            encoder="base",
            scales=(options.get("scale", 1.0),),
            tiles=1,
            visual_tokens=10 + index,
            prompt_tokens=30,
            time_to_first_token=0.02,
            decode_seconds=0.01,
        )
        for index, prediction in enumerate(predictions)
    )
    return Evaluation(
        name=options.get("name", "w4a16"),
        runs_on="a test",
        task="made up",
        examples_digest=options.get("digest", "0" * 64),
        encoder="base",
        vrc=False,
        max_new_tokens=32,
        summary=summarize(examples),
        examples=examples,
        size_bytes=6_480_000,
    )


@pytest.fixture
def evaluation() -> Callable[..., Evaluation]:
    return _evaluation


def _reading(nll: list[float], **options) -> TextEvaluation:
    """Windows of ten tokens each."""
    windows = tuple(ScoredWindow(nll=value, tokens=10) for value in nll)
    return TextEvaluation(
        name=options.get("name", "w4a16"),
        runs_on="a test",
        task="made up",
        text_digest=options.get("digest", "0" * 64),
        window=11,
        tokens=10 * len(windows),
        perplexity=exponential(ratio(nll)),
        windows=windows,
    )


@pytest.fixture
def reading() -> Callable[..., TextEvaluation]:
    return _reading
