"""Journal of a long run: a line for each result, so that a run that was killed goes on."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from hvlc.files.locks import lock
from hvlc.files.reading import EVALUATION, open_file, state_of
from hvlc.files.writing import writing
from hvlc.inputs.documents import parse_json
from hvlc.results import Record

_CODE = "results.unwritable"

R = TypeVar("R", bound=Record)

_LONGEST = 4_000_000  # bytes of a line


class Journal(Generic[R]):
    """Results by position, each written as soon as it is there.

    The first line says what is being done. A file with another one, or without, is begun anew. A last line that was cut
    off is dropped, and a damaged one before it passed over: what it answered is asked again. Every result carries the
    digest of what it answers, and is used for exactly that.

    Args:
        path: the file, or None for a journal that is not kept.
        header: what is being done: everything that results depend on, besides the digests.
        record: what a result is.

    Attributes:
        found: how many results an earlier run left.
        peak_memory_bytes: the highest of those that were added, in this run and before.

    Raises:
        UserError: the file cannot be read or written, or another run keeps it.
    """

    def __init__(self, path: Path | None, header: Mapping[str, object], record: type[R]) -> None:
        self._path = path
        self._first = _line(header)
        self._record = record
        self._results: dict[int, tuple[str, R]] = {}
        self._file: BinaryIO | None = None
        self.peak_memory_bytes: int | None = None
        if path is not None:
            self._open(path)
        self.found = len(self._results)

    def find(self, index: int, digest: str) -> R | None:
        """The result at a position, if it answers what has this digest."""
        earlier, result = self._results.get(index, ("", None))
        return result if earlier == digest else None

    def add(self, index: int, digest: str, result: R, peak_memory_bytes: int | None = None) -> None:
        """Keep a result.

        Raises:
            UserError: the file cannot be written.
        """
        self._note(peak_memory_bytes)
        if self._file is None or self._path is None:
            return
        entry = {"index": index, "digest": digest, "peak": peak_memory_bytes, "result": result.model_dump(mode="json")}
        with writing(self._path, _CODE, "the journal"):
            self._file.write(_line(entry))
            self._file.flush()

    def close(self) -> None:
        """Leave the file to a later run."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take was told when it was added
                self._file.close()
            self._file = None

    def discard(self) -> None:
        """Remove the file: what it was for is finished."""
        if self._path is not None:
            with writing(self._path, _CODE, "the journal"):
                self._path.unlink(missing_ok=True)
        self.close()

    def _open(self, path: Path) -> None:
        if state_of(path) is not None:
            open_file(path, "results.unreadable").close()  # a FIFO would be waited for below
        with writing(path, _CODE, "the journal"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._file = os.fdopen(descriptor, "r+b")
            try:
                lock(descriptor)
                kept = self._read(path)
                self._file.truncate(kept)
                self._file.seek(kept)
                if not kept:
                    self._file.write(self._first)
                    self._file.flush()
            except BaseException:
                self.close()
                raise

    def _read(self, path: Path) -> int:
        """Take the results of an earlier run; returns how many bytes of its file are whole lines."""
        if state_of(path) is None:
            return 0
        with open_file(path, "results.unreadable", limit=EVALUATION) as file:
            if file.readline(len(self._first) + 1) != self._first:
                return 0
            good = place = len(self._first)
            begins = True
            while piece := file.readline(_LONGEST):
                ends, place = piece.endswith(b"\n"), place + len(piece)
                if begins and ends:
                    self._take(piece)
                begins, good = ends, place if ends else good
            return good

    def _take(self, line: bytes) -> None:
        """Keep the result of a line; a line without one is passed over."""
        try:
            entry = parse_json(line)
            result = self._record.model_validate_json(json.dumps(entry["result"]))
            index, digest = int(entry["index"]), str(entry["digest"])
            self._note(entry["peak"])
        except (ValueError, KeyError, TypeError, ArithmeticError):  # ValidationError is a ValueError
            return
        self._results[index] = digest, result

    def _note(self, peak: int | None) -> None:
        if peak is not None:
            self.peak_memory_bytes = max(peak, self.peak_memory_bytes or 0)


def _line(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"
