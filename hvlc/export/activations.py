"""Activations: their names in transformers, which of them are one function, and their operators."""

from typing import Any

import onnx_ir as ir

from hvlc.errors import UserError
from hvlc.graphs.builder import GraphBuilder

#: The function's usual name to all of its names in transformers' ACT2FN; they differ in rounding at most.
SYNONYMS = {
    "silu": ("silu", "swish"),
    "gelu": ("gelu", "gelu_python"),
    "quick_gelu": ("quick_gelu",),
    "gelu_pytorch_tanh": ("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_new", "gelu_fast", "gelu_accurate"),
}
_GELU = {"gelu": {}, "gelu_pytorch_tanh": {"approximate": "tanh"}}
#: Usual names of the GELUs, which are one operator.
GELUS = tuple(_GELU)
_USUAL = {name: usual for usual, names in SYNONYMS.items() for name in names}


def activation_name(name: Any, exported: tuple[str, ...], where: str) -> str:
    """The usual name of an activation.

    Args:
        name: as a configuration gives it.
        exported: usual names of what the graph can compute there.
        where: the configuration's key.

    Raises:
        UserError: it is another function, or not a name.
    """
    usual = _USUAL.get(name) if isinstance(name, str) else None
    if usual is None or usual not in exported:
        names = ", ".join(synonym for one in exported for synonym in SYNONYMS[one])
        cause = f"config.json: {where} is {name!r:.80}, exported is {names}"
        raise UserError("export.activation", cause, "choose a checkpoint with one of those activations")
    return usual


def activated(b: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
    """The activation of a usual name: "silu", or one of `GELUS`."""
    return b.op("Mul", x, b.op("Sigmoid", x)) if name == "silu" else b.op("Gelu", x, **_GELU[name])
