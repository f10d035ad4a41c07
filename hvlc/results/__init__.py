"""Records of measurements, which evaluation makes, reports show and JSON files keep.

Evaluation and report never import each other; these records are what passes between them. Each is frozen, refuses
unknown keys and non-finite numbers: what was not measured is absent (`None`), never 0 or NaN.
"""

from hvlc.results.answering import Answered, ExampleResult
from hvlc.results.base import Interval, Record, Score, exact, wilson
from hvlc.results.evaluation import Agreement, Evaluation, Summary, label_of
from hvlc.results.fidelity import Divergence, Fidelity
from hvlc.results.files import read_evaluation, write_evaluation, write_whole
from hvlc.results.measurement import SCHEMA_VERSION
from hvlc.results.reading import Measured, Perplexity, ReadingAgreement, ScoredWindow, TextEvaluation

__all__ = [
    "SCHEMA_VERSION",
    "Agreement",
    "Answered",
    "Divergence",
    "Evaluation",
    "ExampleResult",
    "Fidelity",
    "Interval",
    "Measured",
    "Perplexity",
    "ReadingAgreement",
    "Record",
    "Score",
    "ScoredWindow",
    "Summary",
    "TextEvaluation",
    "exact",
    "label_of",
    "read_evaluation",
    "wilson",
    "write_evaluation",
    "write_whole",
]
