"""Fields that evaluations of all kinds have in common."""

from typing import Final, Literal

from pydantic import Field

from hvlc.results.base import Record
from hvlc.results.compilation import Compilation
from hvlc.results.fidelity import Fidelity

#: Raised whenever a change makes older files unreadable.
SCHEMA_VERSION: Final = 2


class Measurement(Record):
    """One model on one task.

    Attributes:
        schema_version: version of this file format.
        name: name of the model or package.
        runs_on: what it ran on, e.g. "onnxruntime CPU".
        task: name of the task.
        peak_memory_bytes: peak resident memory of the process meanwhile; absent where the system cannot tell.
        size_bytes: size of the package on disk; absent for checkpoints.
        bits_per_weight: stored bits per weight of the decoder's matrices, scales included; absent for checkpoints.
        compilation: what a compiler made of the package for an NPU, and how far that was checked; absent for others.
        fidelity: comparison of the distributions with a reference's, if there was one.
        provenance: digests, versions and facts of the machine, as given by the caller.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    name: str
    runs_on: str
    task: str
    peak_memory_bytes: int | None = None
    size_bytes: int | None = None
    bits_per_weight: float | None = None
    compilation: Compilation | None = None
    fidelity: Fidelity | None = None
    provenance: dict[str, str] = Field(default_factory=dict)
