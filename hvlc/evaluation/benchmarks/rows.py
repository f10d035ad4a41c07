"""Rows of a benchmark's files: JSON with images beside it, or Parquet with images inside, a row group at a time."""

import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from hvlc.errors import UserError
from hvlc.evaluation.benchmarks.published import Benchmark, Row
from hvlc.files.reading import is_directory, is_file, shown
from hvlc.inputs.documents import read_json

_CODE = "task.benchmark"
_LARGEST = 400_000_000  # bytes of a JSON file; TextVQA's has 25 MB
_DEEPEST = 3  # directories below the one that is named
_MOST_GROUP = 1_000_000_000  # bytes of a row group, uncompressed


class Rows(Protocol):
    """Rows by position."""

    @property
    def file(self) -> Path | None:
        """File beside which images lie. None: they are in the rows."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Row `index`, from 0.

        Raises:
            UserError: it can no longer be read.
        """
        ...


def open_rows(benchmark: Benchmark, place: Path) -> Rows:
    """Rows of the split that is reported, in the files of a directory, or in one file.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if is_file(place):
        return ParquetRows([place]) if place.suffix == ".parquet" else JsonRows(place)
    if not is_directory(place):
        raise UserError(_CODE, f"{shown(place)} is not a file or directory", "name the benchmark's directory")
    parquet = _parquet(benchmark, place)
    if parquet:
        return ParquetRows(parquet)
    found = [file for pattern in benchmark.files for file in sorted(place.glob(pattern))]
    if not found:
        cause = f"{shown(place)} has no Parquet file of {' or '.join(benchmark.splits)}, and no {benchmark.files[0]}"
        raise UserError(_CODE, cause, f"name the directory of {benchmark.title}'s files, or one of them")
    return JsonRows(found[0])


def _parquet(benchmark: Benchmark, place: Path) -> list[Path]:
    """Parquet files of the first split that is there; data sets keep them up to some directories below."""
    patterns = ["/".join([*["*"] * depth, "*.parquet"]) for depth in range(_DEEPEST)]
    files = sorted(file for pattern in patterns for file in place.glob(pattern) if is_file(file))
    for split in benchmark.splits:
        chosen = [file for file in files if file.name.startswith(split)]
        if chosen:
            return chosen
    return []


class JsonRows:
    """Rows of a JSON file: a list, or an object with a list under `data`.

    Args:
        file: it.

    Raises:
        UserError: it is not such a file.
    """

    def __init__(self, file: Path) -> None:
        data = read_json(file, _CODE, limit=_LARGEST)
        rows = data.get("data") if isinstance(data, dict) else data
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            cause = f"{shown(file)} is not a list of questions, and has none under data"
            raise UserError(_CODE, cause, "name the file with the questions")
        self._rows: list[Row] = rows
        self._file = file

    @property
    def file(self) -> Path:
        return self._file

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        return self._rows[index]


class ParquetRows:
    """Rows of Parquet files; one row group is in memory at a time.

    Args:
        files: in the order of their rows.

    Raises:
        UserError: pyarrow is not installed, or a file cannot be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        try:
            from pyarrow import parquet
        except ImportError as error:
            fix = "pip install 'hvlc[benchmarks]'"
            raise UserError("install.benchmarks", "reading Parquet files needs pyarrow", fix) from error
        self._groups: list[tuple[Path, int]] = []
        lengths: list[int] = []
        for file in files:
            with _reading(file):
                facts = parquet.read_metadata(file)
            for number in range(facts.num_row_groups):
                group = facts.row_group(number)
                if group.total_byte_size > _MOST_GROUP:
                    cause = f"{shown(file)} has a row group of {group.total_byte_size} bytes"
                    raise UserError(_CODE, cause, f"write it with row groups of at most {_MOST_GROUP}")
                self._groups.append((file, number))
                lengths.append(group.num_rows)
        self._ends = list(accumulate(lengths))
        if not self._ends or not self._ends[-1]:
            raise UserError(_CODE, f"{shown(files[0])} has no row", "name files with questions")
        self._held: tuple[int, list[Row]] | None = None

    @property
    def file(self) -> None:
        return None

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Row:
        group = bisect.bisect_right(self._ends, index)
        if self._held is None or self._held[0] != group:
            self._held = None  # free the other one first
            self._held = (group, self._read(*self._groups[group]))
        return self._held[1][index - (self._ends[group - 1] if group else 0)]

    def _read(self, file: Path, group: int) -> list[Row]:
        from pyarrow import parquet

        with _reading(file):
            rows: list[Row] = parquet.ParquetFile(file).read_row_group(group).to_pylist()
            return rows


class _reading:  # noqa: N801  reads as a statement, as `contextlib`'s do
    """A block in which pyarrow reads a file: its errors are the user's."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError | ValueError | KeyError):  # pyarrow's own are of these
            cause = f"cannot read {shown(self._file)}: {str(error).splitlines()[0][:200] if str(error) else error!r}"
            raise UserError(_CODE, cause, "fetch the file again") from error
