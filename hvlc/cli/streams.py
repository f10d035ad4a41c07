"""Standard output and standard error as commands can rely on them.

A reader that has gone (`| head`) ends the work. Standard output that refuses what is written, as a full disk does, is
an error of the user's; standard error that does is nobody's. Characters that an encoding lacks are escaped.
"""

import contextlib
import io
import json
import os
import select
import sys
from collections.abc import Iterator
from typing import Any

from hvlc.errors import UserError
from hvlc.files.reading import reason

#: Code of the error of a standard output that is closed, full or otherwise refuses.
STDOUT = "output.stdout"

_FIX = "send it to a place that can take it"


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Standard output and error that behave as this module says while the block runs.

    Raises:
        UserError: standard output is closed.
    """
    # What a library writes to a closed descriptor would go into the next file that is opened.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        raise UserError(STDOUT, "standard output is closed", _FIX)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _guarded(sys.stdout, strict=True), _guarded(sys.stderr, strict=False)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


#: Characters that a terminal would obey; of a file's text they are shown, not sent.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}


def printable(text: str) -> str:
    """A text with its control characters escaped, but for tabs and ends of lines."""
    return text.translate(_CONTROLS)


def say(text: str = "", *, end: str = "\n", error: bool = False) -> None:
    """Write a text at once; control characters in it are escaped, in errors the carriage return too.

    Raises:
        UserError: standard output does not take it.
        ReaderGoneError: nobody reads it any more.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is not None:
        shown = printable(text)
        print(shown.replace("\r", "\\x0d") if error else shown, end=end, file=stream, flush=True)


def say_json(data: Any, *, error: bool = False) -> None:
    """Write JSON, whose characters are escaped where the stream has no other way to show them."""
    stream = sys.stderr if error else sys.stdout
    text = json.dumps(data, indent=1, ensure_ascii=False, default=str)
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(data, indent=1, default=str)
    say(text, error=error)


def _guarded(stream: Any, *, strict: bool) -> Any:
    """A stream of the process in its guarded form; what a test or a caller has put there instead stays as it is."""
    if stream is None or stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    stream.flush()
    raw = _Guarded(getattr(stream.buffer, "raw", stream.buffer), strict=strict)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),  # also where Python runs unbuffered: it writes again what a pipe took in part
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


class ReaderGoneError(Exception):
    """Nobody reads standard output any more.

    Not an OSError: click would end the process with 1.
    """


class _Guarded(io.RawIOBase):
    """A raw stream that refuses once, and drops what is written to it after that."""

    def __init__(self, raw: io.RawIOBase, *, strict: bool) -> None:
        self._raw = raw
        self._strict = strict
        self._lost = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, data: Any) -> int:
        while not self._lost:
            try:
                written = self._raw.write(data)
            except OSError as error:
                self._lost = True
                if not self._strict:
                    break
                if isinstance(error, BrokenPipeError):
                    raise ReaderGoneError from error
                raise UserError(STDOUT, f"cannot write standard output: {reason(error)}", _FIX) from error
            if written is not None:
                return written
            select.select((), (self.fileno(),), ())  # it does not block, and has no room at the moment
        return len(data)
