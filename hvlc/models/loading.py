"""Checkpoints loaded by transformers: looked at before, and its many exceptions as one error."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from hvlc.errors import UserError
from hvlc.models.numbers import Numbers, check_numbers

#: Errors of transformers' configuration classes and rotary embeddings over values that they did not expect.
CONFIG_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    StrictDataclassError,
)
_SHOWN = 500  # characters of an exception


def check_config(config: Mapping[str, Any], numbers: type[Numbers]) -> None:
    """Look at a configuration before transformers does.

    Args:
        config: as config.json has it.
        numbers: its bounds.

    Raises:
        UserError: a number is outside its bounds, or a key would hide a method.
    """
    check_numbers(numbers, dict(config), "config.json")
    _check_keys(config, "")


def _check_keys(settings: Mapping[str, Any], path: str) -> None:
    """Refuse keys that transformers would set in the place of a configuration's own method.

    Raises:
        UserError: there is one; the first is named.
    """
    for key, value in settings.items():
        if key.startswith("__") or callable(getattr(PreTrainedConfig, key, None)):
            cause = f"config.json: the key {path}{key[:80]} has the name of a method of transformers' configurations"
            raise UserError("checkpoint.config", cause, "remove it")
        if isinstance(value, dict):
            _check_keys(value, f"{path}{key}.")


@contextmanager
def loading(directory: Path) -> Iterator[None]:
    """Translate what transformers raises while it loads a checkpoint.

    Args:
        directory: of the checkpoint.

    Raises:
        UserError: transformers cannot load it.
    """
    try:
        yield
    except Exception as error:
        # tokenizers raises Exception itself, so the class has to be compared
        if type(error) is not Exception and not isinstance(error, (*CONFIG_ERRORS, OSError, SafetensorError)):
            raise
        cause = f"{directory}: transformers cannot load it: {error.__cause__ or error}"
        fix = "match its configuration, tokenizer and weights"
        raise UserError("checkpoint.config", cause[:_SHOWN], fix) from error
