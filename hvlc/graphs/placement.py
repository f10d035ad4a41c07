"""Placement of a component: its processor and execution provider, and the phase of an answer in which it runs."""

from enum import StrEnum

from pydantic import Field

from hvlc.inputs.records import StrictModel


class Placement(StrEnum):
    """A processor of a device."""

    CPU = "cpu"
    NPU = "npu"
    GPU = "gpu"


class Phase(StrEnum):
    """Phase in which a component runs; a decoder may have a graph for the prompt and another for single tokens."""

    ALWAYS = "always"
    PROMPT = "prompt"
    TOKEN = "token"


class Provider(StrictModel):
    """An execution provider that a session is told to use.

    Attributes:
        name: as session options of onnxruntime and genai_config.json have it; a session lists it with
            "ExecutionProvider" behind.
        options: of the provider.
    """

    name: str = Field(min_length=1)
    options: dict[str, str] = Field(default_factory=dict)
