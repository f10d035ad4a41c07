"""Where a component runs, and when."""

from enum import StrEnum


class Placement(StrEnum):
    """A processor of a device."""

    CPU = "cpu"
    NPU = "npu"


class Phase(StrEnum):
    """When a component runs, where a decoder has a graph for the prompt and another for each token of the answer."""

    ALWAYS = "always"
    PROMPT = "prompt"
    TOKEN = "token"
