"""Gates and their outcomes, which tables, JUnit and SARIF files show."""

from enum import StrEnum
from typing import Final, Literal

from pydantic import Field

from hvlc.results.base import Interval, Record

Operator = Literal[">=", "<=", ">", "<"]

#: Measures that a wrong weight can spoil: where one of them broke a gate, suspect layers are worth naming.
ACCURACY: Final = frozenset({"exact_match", "anls", "perplexity", "kl", "top1_agreement"})


class SourceLine(Record):
    """A line of a file.

    Attributes:
        file: its path, as it was given.
        line: from 1.
    """

    file: str
    line: int = Field(ge=1)


class Gate(Record):
    """A bound that a measured number must keep.

    Attributes:
        metric: name of a measure (`hvlc.results.measures`).
        encoder: the vision encoder that it speaks of; None is every one.
        operator: how the number stands to the bound.
        bound: in the measure's unit; of a relative gate, times the reference's value.
        relative: whether the bound is relative.
        surely: whether the gate also breaks where it cannot be decided.
        written: the bound as it was written, e.g. "40MB" or "0.98x".
        reason: why there is this gate, for people.
        place: where it was written; None on a command line.
    """

    metric: str
    encoder: str | None = None
    operator: Operator
    bound: float = Field(ge=0)
    relative: bool = False
    surely: bool = False
    written: str
    reason: str = ""
    place: SourceLine | None = None

    @property
    def subject(self) -> str:
        """The metric, and the encoder if the gate speaks of one: "exact_match[base]"."""
        return self.metric if self.encoder is None else f"{self.metric}[{self.encoder}]"

    @property
    def text(self) -> str:
        """The gate as `hvlc.evaluation.gates.parse_gate` reads it."""
        return f"{'surely ' if self.surely else ''}{self.subject} {self.operator} {self.written}"


class Ratio(Record):
    """A number by its reference's, with the 95 % confidence interval over pairs of examples.

    Attributes:
        value: as measured, unrounded.
        low: lower end of the interval.
        high: upper end; None where it has none, because the reference's value may be 0.
        n: number of pairs.
        method: how the interval was made; "exact" where nothing is uncertain.
    """

    value: float
    low: float
    high: float | None
    n: int = Field(ge=1)
    method: Literal["Bonett-Price", "paired bootstrap", "exact"]


class GateVerdict(StrEnum):
    """Outcome of a gate, by its bound and the measured interval."""

    PASSED = "passed"  # all of it keeps the bound
    UNDECIDED = "undecided"  # it lies on both sides
    BROKEN = "broken"  # none of it keeps the bound, or not all of it and the gate says "surely"


class GateOutcome(Record):
    """One gate on one evaluation.

    Attributes:
        gate: what was demanded.
        verdict: what came of it.
        measured: the number.
        ratio: the number by the reference's; None for an absolute gate.
        reference: label of the reference; None for an absolute gate.
        message: a sentence with the numbers.
    """

    gate: Gate
    verdict: GateVerdict
    measured: Interval
    ratio: Ratio | None = None
    reference: str | None = None
    message: str


class JudgedEvaluation(Record):
    """One evaluation and its gates.

    Attributes:
        name: of the model or package.
        label: of the evaluation: the name and the setting.
        task: name of the task.
        runs_on: what it ran on.
        seconds: that the answers took together; None where that was not measured.
        measures: every number that was computed.
        outcomes: one of each gate that speaks of this evaluation, in the order of the gates.
    """

    name: str
    label: str
    task: str
    runs_on: str
    seconds: float | None
    measures: dict[str, Interval]
    outcomes: tuple[GateOutcome, ...]


class Judgement(Record):
    """Every gate on every evaluation.

    Attributes:
        schema_version: of this record as JSON.
        evaluations: in the order in which they were measured.
        references: what relative gates refer to; without outcomes.
    """

    schema_version: Literal[1] = 1
    evaluations: tuple[JudgedEvaluation, ...]
    references: tuple[JudgedEvaluation, ...] = ()

    @property
    def outcomes(self) -> list[GateOutcome]:
        """Outcomes of all evaluations."""
        return [outcome for evaluation in self.evaluations for outcome in evaluation.outcomes]

    def found(self, verdict: GateVerdict) -> list[GateOutcome]:
        """The outcomes with this verdict."""
        return [outcome for outcome in self.outcomes if outcome.verdict is verdict]


class Suspect(Record):
    """A weight that may be why an answer is wrong.

    Attributes:
        layer: its layer, e.g. "decoder.layers.3".
        weight: its dotted name.
        rule_index: the rule of the recipe that decided its format, from 0; None where no rule speaks of it.
        error: relative root-mean-square error that it, or its output, has.
    """

    layer: str
    weight: str
    rule_index: int | None = Field(default=None, ge=0)
    error: float = Field(ge=0)


class RecipeText(Record):
    """A recipe that a package was built from.

    Attributes:
        name: of the recipe.
        text: its YAML.
        path: of the file with this text; None where only the package's copy is at hand.
    """

    name: str
    text: str
    path: str | None = None


class Origin(Record):
    """Origin of a model.

    Attributes:
        path: of a file that stands for it: a package's manifest, or the file of an evaluation.
        recipe: what it was built from, if that is known.
        suspects: its weights with the largest errors, worst first, if they were measured.
    """

    path: str
    recipe: RecipeText | None = None
    suspects: tuple[Suspect, ...] = ()
