"""Errors that a user sees: a code, the cause, the way out, and the exit code they end with.

Exit codes: 0 good, 1 our bug, 2 the user's input, 3 the model cannot be compiled for the target,
4 a gate failed (130 after Ctrl-C, as shells expect).
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

#: Called with what is being done, how far it is, and how far it goes; everybody's, as errors are.
Progress = Callable[[str, int, int], None]

_SHOWN = 12  # of many problems, in the text; all are in the error itself


class HvlcError(Exception):
    """An error with a way out.

    Attributes:
        code: dotted name, stable across versions, e.g. "checkpoint.truncated".
        cause: what is wrong, with the values.
        fix: what the user can do about it.
        problems: the single errors, when this one stands for several.
        exit_code: process exit code.
    """

    exit_code = 1
    problems: tuple["HvlcError", ...] = ()

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


class Collector:
    """Collector of problems, so that a user learns all of them at once; our own bugs pass through.

    Attributes:
        problems: in the order they were found.
    """

    def __init__(self) -> None:
        self.problems: list[HvlcError] = []

    def __enter__(self) -> "Collector":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """Keep an error that was raised inside; what follows the raise in the block is skipped."""
        if isinstance(error, UserError | TargetError):
            self.problems += error.problems or (error,)
            return True
        return False

    def raise_all(self) -> None:
        """Raise what was collected, if anything."""
        raise_all(self.problems)

    def require(self, value: T | None) -> T:
        """The value that a block under this collector made.

        Raises:
            HvlcError: there is none: what was collected says why; where nothing was, that is a bug.
        """
        if value is None:
            self.raise_all()
            cause = "internal error: a value is missing and no problem was found"
            raise HvlcError("bug.missing", cause, "please report it")
        return value


def raise_all(problems: Sequence[HvlcError]) -> None:
    """Raise what was found: nothing, the only problem itself, or one error that lists all of them.

    Raises:
        UserError: at least one of several is the input's fault.
        TargetError: all of several are the target's.
    """
    if len(problems) == 1:
        raise problems[0]
    if not problems:
        return
    kind = TargetError if all(isinstance(p, TargetError) for p in problems) else UserError
    fixes = {p.fix for p in problems}
    lines = [f"[{p.code}] {p.cause}" + (f" ({p.fix})" if len(fixes) > 1 else "") for p in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"and {len(problems) - _SHOWN} more (--json lists all)")
    codes = {p.code for p in problems}
    error = kind(
        problems[0].code if len(codes) == 1 else "several",
        "\n  ".join([f"{len(problems)} problems:", *lines]),
        fixes.pop() if len(fixes) == 1 else "correct each of them",
    )
    error.problems = tuple(problems)
    raise error


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest of `known`, or all of them when none is near."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(choices)}"
