"""Every number of an evaluation by name: what gates, comparisons and tables ask for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hvlc.results.base import Interval, exact
from hvlc.results.evaluation import Evaluation


@dataclass(frozen=True)
class Measure:
    """A number that an evaluation may hold.

    Attributes:
        name: as gates and JSON call it.
        title: as people read it.
        unit: of the value: "" for shares and counts, "s", "tokens/s", "bytes", "nats", "bits".
        higher_is_better: which way is good; None where neither is.
        read: the number; None where it was not computed.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool | None
    read: Callable[[Evaluation], Interval | None]


def _given(value: float | None) -> Interval | None:
    return None if value is None else exact(value)


_ALL = (
    Measure("exact_match", "exact match", "", True, lambda e: e.summary.exact_match),
    Measure("anls", "ANLS", "", True, lambda e: e.summary.anls),
    Measure("visual_tokens", "visual tokens", "", False, lambda e: exact(e.summary.mean_visual_tokens)),
    Measure("peak_memory", "peak memory", "bytes", False, lambda e: _given(e.peak_memory_bytes)),
    Measure("size", "size", "bytes", False, lambda e: _given(e.size_bytes)),
)

#: By name, in the order in which they are shown.
MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in _ALL}
