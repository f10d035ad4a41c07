"""Records of a compilation for an NPU, and of the checks of its result."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from hvlc.errors import UserError
from hvlc.files.reading import shown, state_of
from hvlc.inputs.documents import read_json
from hvlc.results.base import Record, Score

#: Name of the record in a package.
COMPILATION = "hvlc.compilation.json"


class FailedAttempt(Record):
    """A compilation that did not end well before another setting did.

    Attributes:
        mode: `htp_graph_finalization_optimization_mode`.
        error: what the compiler said.
    """

    mode: int
    error: str


class CompiledGraph(Record):
    """One graph as a context binary.

    Attributes:
        component: name of the graph: its file's without suffix.
        nodes: that the compiler was given after onnxruntime's own rewrites; all of them are on the NPU.
        operators: how many nodes of each type those are.
        binary: name of the file that holds the context.
        binary_bytes: its size.
        shared_with: other graphs whose weights are in the same binary.
        soc_model: Qualcomm's number of the chip, read from what was made.
        htp_arch: generation of its NPU, read from what was made.
        chip: the chip's name as the binary has it, as "SM8750".
        sdk: version of Qualcomm's libraries that made it.
        mode: `htp_graph_finalization_optimization_mode` that succeeded.
        failed_attempts: modes that were tried before.
    """

    component: str
    nodes: int = Field(ge=1)
    operators: dict[str, int]
    binary: str
    binary_bytes: int = Field(ge=1)
    shared_with: tuple[str, ...] = ()
    soc_model: int
    htp_arch: int
    chip: str
    sdk: str
    mode: int
    failed_attempts: tuple[FailedAttempt, ...] = ()


class OutputCheck(Record):
    """One output of a compiled graph against the same graph on the CPU.

    Attributes:
        name: of the output.
        values: how many were compared.
        cosine: similarity of all values as one vector; None where one of the two is all zeros.
        max_error: largest absolute difference.
        largest: largest magnitude of the CPU's values.
        noise: root of the mean squared difference over that of the CPU's values; 0 where they are equal. Of bytes, that
            of the values before they were rounded, as far as the levels tell.
        top1: share of rows whose largest value is in the same place; None where rows are not scores.
    """

    name: str
    values: int = Field(ge=1)
    cosine: float | None
    max_error: float = Field(ge=0)
    largest: float = Field(ge=0)
    noise: float = Field(ge=0)
    top1: Score | None = None


class GraphCheck(Record):
    """A compiled graph, run, against the graph that it was made of.

    Attributes:
        component: name of the graph.
        ran_on: what executed the binary: never a device.
        reference: what executed the graph that it is held against.
        inputs: what it was fed.
        runs: how many times.
        outputs: what came out.
        tolerance: most noise that is not refused.
    """

    component: str
    ran_on: Literal["emulated NPU on x86-64"] = "emulated NPU on x86-64"
    reference: Literal["onnxruntime CPU"] = "onnxruntime CPU"
    inputs: str
    runs: int = Field(ge=1)
    outputs: tuple[OutputCheck, ...]
    tolerance: float = Field(gt=0)

    @property
    def worst(self) -> OutputCheck:
        """The output with the most noise."""
        return max(self.outputs, key=lambda output: output.noise)

    @property
    def holds(self) -> bool:
        """Whether no output has more noise than is tolerated."""
        return self.worst.noise <= self.tolerance


class NotChecked(Record):
    """Something that nobody ran.

    Attributes:
        what: a graph, or a property.
        reason: why not.
    """

    what: str
    reason: str


class Compilation(Record):
    """A package that was compiled for an NPU; it names no path, machine or time.

    Attributes:
        schema_version: of this format.
        target: name of the target.
        compiler: version of `onnxruntime-qnn`.
        graphs: what was compiled.
        checks: what was run.
        not_checked: what was not, and why.
    """

    schema_version: Literal[1] = 1
    target: str
    compiler: str
    graphs: tuple[CompiledGraph, ...]
    checks: tuple[GraphCheck, ...]
    not_checked: tuple[NotChecked, ...]


def read_compilation(package: Path) -> Compilation | None:
    """The record of a package that was compiled; None of another.

    Raises:
        UserError: it is damaged, or of another version.
    """
    path = package / COMPILATION
    if state_of(path) is None:
        return None
    content = read_json(path, "results.invalid", unique=True)
    try:
        return Compilation.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        cause = f"{shown(path)} is not a record of a compilation that this version reads: {where}: {first['msg']}"
        raise UserError("results.invalid", cause, "compile the package again") from error
