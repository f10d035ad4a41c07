"""Registry of tasks."""

import re
from pathlib import Path

from hvlc.errors import UserError, nearest
from hvlc.evaluation.benchmarks.published import BENCHMARKS
from hvlc.evaluation.benchmarks.task import BenchmarkTask
from hvlc.evaluation.documents import TASK_NAMES, DocumentsTask
from hvlc.evaluation.evaluate import MAX_NEW_TOKENS
from hvlc.evaluation.jsonl import JsonlTask
from hvlc.evaluation.task import Task

#: Tasks with a name; any other is the path of a JSON Lines file.
NAMED_TASKS = tuple(TASK_NAMES.values())
_BENCHMARK = re.compile(rf"({'|'.join(BENCHMARKS)}):(.+)", re.DOTALL)


def is_place(name: str) -> bool:
    """Whether a task's name says where its files are, so that another run finds the same ones by it."""
    return name.endswith(".jsonl") or _BENCHMARK.fullmatch(name) is not None


def usual_new_tokens(task: Task) -> int:
    """Bound of an answer where nothing else is said: a public benchmark has its own."""
    return task.max_new_tokens if isinstance(task, BenchmarkTask) else MAX_NEW_TOKENS


def open_task(name: str, count: int | None = None, suffix: str | None = None) -> Task:
    """The task of a name, of a `.jsonl` file, or of a public benchmark's directory.

    Args:
        name: one of `NAMED_TASKS`, a path that ends in ".jsonl", or a benchmark and its place, as "docvqa:DIRECTORY".
        suffix: of a benchmark: text that ends every prompt. None: the one that is usually asked.
        count: number of documents of a named task, 256 when absent; files have their own length.

    Raises:
        UserError: there is no such task, or the file is wrong.
    """
    editions = {task: edition for edition, task in TASK_NAMES.items()}
    if name in editions:
        return DocumentsTask(DocumentsTask.count if count is None else count, editions[name])
    if name.endswith(".jsonl"):
        return JsonlTask(Path(name))
    benchmark = _BENCHMARK.fullmatch(name)
    if benchmark:
        return BenchmarkTask(benchmark[1], Path(benchmark[2]), suffix)
    known = [*NAMED_TASKS, *(f"{benchmark}:DIRECTORY" for benchmark in BENCHMARKS)]
    fix = f"{nearest(name, known)}, or give the path of a .jsonl file, or of a .txt file for a language model"
    raise UserError("task.unknown", f"there is no task {name!r}", fix)
