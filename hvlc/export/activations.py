"""Names of activations in transformers, and which of them are one function."""

from typing import Any

from hvlc.errors import UserError

#: The function's usual name to all of its names in transformers' ACT2FN; they differ in rounding at most.
SYNONYMS = {
    "silu": ("silu", "swish"),
    "gelu": ("gelu", "gelu_python"),
    "gelu_pytorch_tanh": ("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_new", "gelu_fast", "gelu_accurate"),
}
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
