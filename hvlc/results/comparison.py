"""Records of a comparison of models: differences, and which of them are significant."""

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from hvlc.results.base import Interval, Record
from hvlc.results.difference import ValueChange

COMPARISON_VERSION: Final = 1

#: A difference whose corrected p-value is at least this large is called noise.
SIGNIFICANCE: Final = 0.05


class ModelSummary(Record):
    """A model that is compared.

    Attributes:
        name: unique in the comparison.
        source: whether it was evaluated for the comparison or its reports were read.
        size_bytes: of the package.
        bits_per_weight: stored bits of the decoder's matrices; absent where nothing is quantized or known.
        facts: recipe, target, checkpoint and versions, as far as they are known.
    """

    name: str
    source: Literal["package", "report"]
    size_bytes: int | None = None
    bits_per_weight: float | None = None
    facts: dict[str, str] = Field(default_factory=dict)


class RunScores(Record):
    """One contestant in one setting.

    Attributes:
        label: unique in the comparison.
        contestant: its name.
        task: what it was asked.
        encoder: the vision encoder that was asked for; "" where there is none.
        vrc: whether the resolution compressor was on.
        n: number of examples, or windows of a text.
        runs_on: what it ran on.
        measures: the numbers by their name in `hvlc.results.measures`; those that were not computed are missing.
    """

    label: str
    contestant: str
    task: str
    encoder: str = ""
    vrc: bool = False
    n: int = Field(ge=1)
    runs_on: str
    measures: dict[str, Interval]


class PairedTest(Record):
    """A difference of a score between a run and the reference's run on the same examples.

    Attributes:
        measure: its name in `hvlc.results.measures`.
        run: label of the run.
        reference: label of the reference's run.
        difference: the run's mean less the reference's, of the examples' scores, with a bootstrap interval over pairs;
            of negative log-likelihoods per token in nats for perplexity.
        method: "McNemar" is the exact test on examples that changed sides, "sign flips" a randomization test on pairs.
        p_value: the chance of a difference at least this large if the two were equally good.
        adjusted: the same, corrected for the number of tests of the comparison (Holm).
        verdict: "noise" where the corrected p-value is at least `SIGNIFICANCE`.
    """

    measure: str
    run: str
    reference: str
    difference: Interval
    method: Literal["McNemar", "sign flips"]
    p_value: float = Field(ge=0, le=1)
    adjusted: float = Field(ge=0, le=1)
    verdict: Literal["noise", "worse", "better"]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.adjusted < self.p_value:
            raise ValueError(f"the corrected p-value {self.adjusted} is below {self.p_value}")
        if (self.verdict == "noise") != (self.adjusted >= SIGNIFICANCE):
            raise ValueError(f"{self.verdict} does not follow from p = {self.adjusted}")
        return self


class Flip(Record):
    """An example that is right in one of two runs.

    Attributes:
        run: label of the run.
        id: of the example.
        index: its position within the task.
        kind: of the example.
        question: the prompt.
        answers: every accepted answer.
        before: the reference's answer.
        after: the run's answer.
        direction: whether the run lost or won it.
    """

    run: str
    id: str
    index: int = Field(ge=0)
    kind: str
    question: str
    answers: tuple[str, ...]
    before: str
    after: str
    direction: Literal["lost", "won"]


class LayerError(Record):
    """Error of a layer's weights against the reference's.

    Attributes:
        contestant: whose weights.
        layer: "vision_base.layers.0", "model.layers.3", or component and part where there is no layer.
        kind: of weight.
        weights: how many.
        relative_error: root mean square of the difference by that of the reference's weights, over all of them.
        worst: the weight with the largest relative error.
        worst_error: its relative error.
    """

    contestant: str
    layer: str
    kind: Literal["attention", "mlp", "norm", "other"]
    weights: int = Field(ge=1)
    relative_error: float = Field(ge=0)
    worst: str
    worst_error: float = Field(ge=0)


class StageError(Record):
    """Error of a stage's output against the reference's, each computed from its own inputs.

    Attributes:
        contestant: whose stage.
        stage: see `hvlc.results.trace_points`.
        relative_error: position by position (`hvlc.evaluation.deviation`), root mean square over the questions; None
            where shapes differ or a number is not finite.
        questions: how many.
    """

    contestant: str
    stage: str
    relative_error: float | None = Field(ge=0)
    questions: int = Field(ge=1)


class PlanChange(Record):
    """A weight that contestants store in different formats.

    Attributes:
        component: whose.
        weight: its name.
        formats: by contestant; one that does not have the weight is missing.
    """

    component: str
    weight: str
    formats: dict[str, str]


class Comparison(Record):
    """Comparison of models.

    Attributes:
        schema_version: of this format.
        reference: name of the contestant that the others are held against.
        contestants: the reference first.
        runs: every setting of every contestant.
        tests: every score of every run against the reference's run in the same setting.
        flips: examples that changed sides, in the order of runs and examples.
        layers: how far weights are from the reference's.
        stages: how far values are from the reference's.
        plan: weights in different formats.
        settings: by contestant and by what they set, what differs from the reference's.
        notes: what was not compared, and why.
    """

    schema_version: Literal[1] = COMPARISON_VERSION
    reference: str
    contestants: tuple[ModelSummary, ...] = Field(min_length=2)
    runs: tuple[RunScores, ...] = Field(min_length=1)
    tests: tuple[PairedTest, ...] = ()
    flips: tuple[Flip, ...] = ()
    layers: tuple[LayerError, ...] = ()
    stages: tuple[StageError, ...] = ()
    plan: tuple[PlanChange, ...] = ()
    settings: dict[str, dict[str, tuple[ValueChange, ...]]] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [contestant.name for contestant in self.contestants]
        labels = [run.label for run in self.runs]
        if len(set(names)) < len(names) or len(set(labels)) < len(labels):
            raise ValueError("two contestants or runs have the same name")
        if names[0] != self.reference or not {run.contestant for run in self.runs} <= set(names):
            raise ValueError("the reference does not come first, or a run belongs to nobody")
        return self
