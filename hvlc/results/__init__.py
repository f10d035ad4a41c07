"""What was measured: the records that evaluation makes, reports show and JSON files keep.

Evaluation and report never import each other; these records are what passes between them. Each is frozen,
refuses unknown keys and any number that is not finite: what was not measured is absent (`None`), never 0 or NaN.
"""

from hvlc.results.answering import Answered, ExampleResult, token_rate
from hvlc.results.base import Interval, Record, Score, exact, wilson
from hvlc.results.evaluation import SCHEMA_VERSION, Agreement, Evaluation, Summary
from hvlc.results.files import read_evaluation, write_evaluation, write_whole
from hvlc.results.reading import Perplexity, ScoredWindow

__all__ = [
    "SCHEMA_VERSION",
    "Agreement",
    "Answered",
    "Evaluation",
    "ExampleResult",
    "Interval",
    "Perplexity",
    "Record",
    "Score",
    "ScoredWindow",
    "Summary",
    "exact",
    "read_evaluation",
    "token_rate",
    "wilson",
    "write_evaluation",
    "write_whole",
]
