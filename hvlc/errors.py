"""Errors that a user sees: a code, the cause, the way out, and the exit code they end with.

Exit codes: 0 good, 1 our bug, 2 the user's input, 3 the model cannot be compiled for the target,
4 a gate failed (130 after Ctrl-C, as shells expect).
"""

import difflib
from collections.abc import Iterable


class HvlcError(Exception):
    """An error with a way out.

    Attributes:
        code: dotted name, stable across versions, e.g. "checkpoint.truncated".
        cause: what is wrong, with the values.
        fix: what the user can do about it.
        exit_code: process exit code.
    """

    exit_code = 1

    def __init__(self, code: str, cause: str, fix: str) -> None:
        super().__init__(f"[{code}] {cause}; {fix}")
        self.code = code
        self.cause = cause
        self.fix = fix


class UserError(HvlcError):
    """The input is wrong."""

    exit_code = 2


class TargetError(HvlcError):
    """The model cannot be compiled for the target."""

    exit_code = 3


class GateError(HvlcError):
    """A gate on accuracy, size or speed is broken."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest of `known`, or all of them when none is near."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(choices)}"
