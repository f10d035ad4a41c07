"""`hvlc ARGUMENTS` in the test's own process."""

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from hvlc import cli


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Hvlc = Callable[..., Result]


def commands(capsys: pytest.CaptureFixture[str]) -> Iterator[Hvlc]:
    """Gives a function that runs a command; the command line's handler of SIGTERM goes with it."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        try:
            cli.main([str(a) for a in arguments])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)
