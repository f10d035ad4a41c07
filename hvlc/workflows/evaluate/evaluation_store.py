"""The directory of a command that evaluates: finished evaluations, and journals of those that are not."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from hvlc.errors import UserError
from hvlc.evaluation.journal import Journal
from hvlc.files.reading import is_file
from hvlc.files.writing import make_directory
from hvlc.results import SCHEMA_VERSION, Measured, Record, read_evaluation, write_evaluation
from hvlc.results.files import UNWRITABLE

R = TypeVar("R", bound=Record)


class Store:
    """Use it as a context: journals go when it ends well, and stay for a later run when it does not.

    Args:
        directory: made when it is not there; None keeps nothing.
        announce: told when a journal of an earlier run goes on.

    Raises:
        UserError: the directory cannot be made.
    """

    def __init__(self, directory: Path | None, announce: Callable[[str], None] = lambda _: None) -> None:
        self._directory = directory
        self._announce = announce
        self._journals: list[Journal[Record]] = []
        if directory is not None:
            make_directory(directory, UNWRITABLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for journal in self._journals:
            if kind is None:
                journal.discard()
            else:
                journal.close()

    def journal(self, label: str, total: int, what: Mapping[str, object], record: type[R]) -> Journal[R]:
        """The journal of a piece of work; see `Journal`.

        Args:
            label: of the work; its file is named after it.
            total: how many results there will be.
            what: everything that results depend on, besides what each answers.
            record: what a result is.

        Raises:
            UserError: its file cannot be read or written.
        """
        path = self._directory / f"{_plain(label)}.journal.jsonl" if self._directory else None
        header = {"schema_version": SCHEMA_VERSION, "record": record.__name__, "label": label, "total": total, **what}
        journal = Journal(path, header, record)
        self._journals.append(journal)  # type: ignore[arg-type]
        if journal.found:
            self._announce(f"{label}: goes on after {journal.found} of {total}")
        return journal

    def read(self, label: str) -> Measured | None:
        """Evaluation that an earlier run finished, if it can be read."""
        path = self._path(label)
        if path is None or not is_file(path):
            return None
        try:
            return read_evaluation(path)
        except UserError:
            return None

    def write(self, evaluation: Measured, label: str) -> None:
        """Keep a finished evaluation.

        Raises:
            UserError: its file cannot be written.
        """
        path = self._path(label)
        if path is not None:
            write_evaluation(path, evaluation)

    def _path(self, label: str) -> Path | None:
        return self._directory / f"{_plain(label)}.json" if self._directory else None


def shared_facts(evaluations: Sequence[Measured]) -> dict[str, str]:
    """Facts that all numbers have in common: versions, and the machine."""
    first, *others = (evaluation.provenance for evaluation in evaluations)
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _plain(label: str) -> str:
    """A plain file name, e.g. "w4a16-base-vrc"."""
    return re.sub(r"[^\w.-]+", "-", label).strip("-.") or "evaluation"
