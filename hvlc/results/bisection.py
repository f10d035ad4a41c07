"""Records of a bisection: errors against a reference, stage by stage (`hvlc.results.trace_points`)."""

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from hvlc.results.base import Record

#: Raised whenever a change makes older files unreadable.
BISECTION_VERSION: Final = 1


class Deviation(Record):
    """Deviation of values from expected ones.

    Attributes:
        relative: root mean square over positions of the error's norm, relative to the norm of what was expected, or
            of what a layer was expected to add; absent where shapes differ or a value is not finite.
        cosine: between the two, as whole vectors; absent where one of them is zero, or as above.
        max_abs: the largest difference of two values; absent as above.
        place: index of that difference, or of the first value that is not finite; absent where shapes differ.
        found: the value there; absent where it is not finite.
        expected: the value that should be there.
        shape: of the values.
        expected_shape: that they should have.
    """

    relative: float | None = Field(default=None, ge=0)
    cosine: float | None = None
    max_abs: float | None = Field(default=None, ge=0)
    place: tuple[int, ...] | None = None
    found: float | None = None
    expected: float | None = None
    shape: tuple[int, ...]
    expected_shape: tuple[int, ...]

    def exceeds(self, tolerance: float) -> bool:
        """Whether the deviation is more than a tolerance, or cannot be compared at all."""
        return self.relative is None or self.relative > tolerance


class StageResult(Record):
    """One stage of the model against the reference's.

    Attributes:
        name: as `hvlc.results.trace_points` has it.
        own: on the reference's inputs: what this stage alone does differently.
        accumulated: on the model's own inputs, which have the errors of the stages before; relative to all of the
            expected values. Absent where it does not get that far.
        tolerance: of `own.relative`.
        precision: what it computes with, e.g. "int4 weights"; "float" where nothing is quantized.
        detail: where in the stage, if there is more to say.
    """

    name: str
    own: Deviation
    accumulated: Deviation | None = None
    tolerance: float = Field(ge=0)
    precision: str
    detail: str = ""

    @property
    def departs(self) -> bool:
        """Whether the stage itself is beyond its tolerance."""
        return self.own.exceeds(self.tolerance)


class Bisection(Record):
    """A model against its reference on one question.

    Attributes:
        schema_version: of this file format.
        package: name of the model.
        built_from: hex SHA-256 of the checkpoint that the package says it was built from.
        package_runs_on: what it ran on.
        changed_files: of the package, that are not as they were built.
        reference: name of the reference.
        reference_runs_on: what it ran on.
        prompt: that was asked.
        images: names of the image files.
        encoder: of vision; "" where no image was asked about.
        vrc: whether the resolution compressor chose the scale.
        positions: of the prompt, visual tokens included.
        answer: the package's answer, as tokens.
        expected_answer: the reference's.
        stages: in the order in which they run.
        departs: name of the first stage beyond its tolerance; absent where none is.
        hints: what is wrong with that stage, as far as its weights and values say.
        notes: what was compared otherwise than usual, and why.
    """

    schema_version: Literal[1] = BISECTION_VERSION
    package: str
    built_from: str
    package_runs_on: str
    changed_files: tuple[str, ...] = ()
    reference: str
    reference_runs_on: str
    prompt: str
    images: tuple[str, ...] = ()
    encoder: str
    vrc: bool
    positions: int = Field(ge=1)
    answer: tuple[int, ...] = ()
    expected_answer: tuple[int, ...] = ()
    stages: tuple[StageResult, ...] = Field(min_length=1)
    departs: str | None = None
    hints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_the_first(self) -> Self:
        first = next((stage.name for stage in self.stages if stage.departs), None)
        if first != self.departs:
            raise ValueError(f"the first stage beyond its tolerance is {first}, the verdict says {self.departs}")
        return self

    @property
    def departing(self) -> StageResult | None:
        """The first stage beyond its tolerance."""
        return next((stage for stage in self.stages if stage.name == self.departs), None)
