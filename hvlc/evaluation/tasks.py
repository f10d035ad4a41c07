"""Registry of tasks."""

from pathlib import Path

from hvlc.errors import UserError, nearest
from hvlc.evaluation.documents import DocumentsTask
from hvlc.evaluation.jsonl import JsonlTask
from hvlc.evaluation.task import Task

#: Tasks with a name; any other is the path of a JSON Lines file.
NAMED_TASKS = ("documents",)


def open_task(name: str, count: int | None = None) -> Task:
    """The task of a name or of a `.jsonl` file.

    Args:
        name: one of `NAMED_TASKS`, or a path that ends in ".jsonl".
        count: number of documents of the task "documents", 256 when absent; files have their own length.

    Raises:
        UserError: there is no such task, or the file is wrong.
    """
    if name == "documents":
        return DocumentsTask() if count is None else DocumentsTask(count)
    if name.endswith(".jsonl"):
        return JsonlTask(Path(name))
    fix = f"{nearest(name, NAMED_TASKS)}, or give the path of a .jsonl file, or of a .txt file for a language model"
    raise UserError("task.unknown", f"there is no task {name!r}", fix)
