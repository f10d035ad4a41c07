"""Measures: the numbers of an evaluation by name, for gates, comparisons and tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from hvlc.results.base import Interval, exact
from hvlc.results.evaluation import Evaluation, Summary
from hvlc.results.fidelity import Fidelity
from hvlc.results.reading import Measured


@dataclass(frozen=True)
class Measure:
    """A number that an evaluation may hold.

    Attributes:
        name: as gates and JSON call it.
        title: as people read it.
        unit: of the value: "" for shares and counts, "s", "tokens/s", "bytes", "nats", "bits".
        higher_is_better: which way is good; None where neither is.
        read: the number; None where it was not computed.
        share: within 0 and 1, so that percent make sense.
        needs: what an evaluation must have: a task of questions, a text, or a reference; "" is nothing.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool | None
    read: Callable[[Measured], Interval | None]
    share: bool = False
    needs: Literal["questions", "text", "reference", ""] = ""


def _of_questions(
    name: str,
    title: str,
    unit: str,
    higher_is_better: bool | None,
    number: Callable[[Summary], Interval | None],
    *,
    share: bool = False,
) -> Measure:
    """A number of a summary, which evaluations on questions have."""

    def read(evaluation: Measured) -> Interval | None:
        return number(evaluation.summary) if isinstance(evaluation, Evaluation) else None

    return Measure(name, title, unit, higher_is_better, read, share, "questions")


def _perplexity(evaluation: Measured) -> Interval | None:
    return None if isinstance(evaluation, Evaluation) else evaluation.perplexity


def _faithful(number: Callable[[Fidelity], Interval]) -> Callable[[Measured], Interval | None]:
    """A number that takes a reference."""
    return lambda evaluation: number(evaluation.fidelity) if evaluation.fidelity else None


def _stated(number: Callable[[Measured], float | None]) -> Callable[[Measured], Interval | None]:
    """A number without uncertainty."""

    def read(evaluation: Measured) -> Interval | None:
        value = number(evaluation)
        return None if value is None else exact(value)

    return read


_TTFT = "time to first token"

_ALL = (
    _of_questions("exact_match", "exact match", "", True, lambda s: s.exact_match, share=True),
    _of_questions("anls", "ANLS", "", True, lambda s: s.anls, share=True),
    _of_questions("score", "score by the task's metric", "", True, lambda s: s.score, share=True),
    Measure("perplexity", "perplexity", "", False, _perplexity, needs="text"),
    Measure("kl", "KL from the reference", "nats", False, _faithful(lambda f: f.kl), needs="reference"),
    Measure("top1_agreement", "top-1 agreement", "", True, _faithful(lambda f: f.top1), True, "reference"),
    _of_questions("visual_tokens", "visual tokens", "", False, lambda s: s.visual_tokens),
    _of_questions("prompt_tokens", "prompt tokens", "", False, lambda s: s.prompt_tokens),
    _of_questions("generated_tokens", "generated tokens", "", None, lambda s: s.generated_tokens),
    _of_questions("p50_ttft", f"median {_TTFT}", "s", False, lambda s: s.median_time_to_first_token),
    _of_questions("p95_ttft", f"95th percentile of {_TTFT}", "s", False, lambda s: s.p95_time_to_first_token),
    _of_questions("tokens_per_second", "tokens/s", "tokens/s", True, lambda s: s.tokens_per_second),
    Measure("peak_memory", "peak memory", "bytes", False, _stated(lambda e: e.peak_memory_bytes)),
    Measure("size", "size", "bytes", False, _stated(lambda e: e.size_bytes)),
    Measure("bits_per_weight", "bits per decoder weight", "bits", False, _stated(lambda e: e.bits_per_weight)),
)

#: By name, in the order in which they are shown.
MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in _ALL}
