"""Questions that a user's model is trained and measured on, in three splits that share no image."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvlc.errors import UserError
from hvlc.evaluation.documents import TASK_NAMES, DocumentsTask
from hvlc.evaluation.task import Example, Task
from hvlc.evaluation.tasks import open_task
from hvlc.files.reading import is_directory, shown

SPLITS = ("train", "calibration", "heldout")
_CODE = "train.data"
#: Shares of a user's questions, in hundredths: what is left is held out.
_TRAIN, _CALIBRATION = 60, 20
_FEWEST = 8  # questions of a split


@dataclass(frozen=True)
class Part:
    """Some of a task's questions.

    Attributes:
        task: all of them.
        indices: of those that belong to the part.
    """

    task: Task
    indices: Sequence[int]

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.name

    @property
    def shows_images(self) -> bool:
        """Whether any question is about an image."""
        return self.task.shows_images

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int) -> Example:
        """Question `index` of the part, from 0."""
        return self.task.example(self.indices[index])


def open_splits(data: str, counts: Mapping[str, int]) -> dict[str, Task]:
    """Train, calibration and held-out questions.

    Args:
        data: a task of `hvlc eval`, or a directory with one JSON Lines file; the shipped documents are drawn anew.
        counts: of the shipped documents, by split.

    Raises:
        UserError: there is no such task; a question has not one image, or an id that another has; or a split has too
            few.
    """
    editions = {name: edition for edition, name in TASK_NAMES.items()}
    if data in editions:
        return {split: DocumentsTask(counts[split], editions[data], split) for split in SPLITS}
    task = open_task(_file_in(data))
    found: dict[str, list[int]] = {split: [] for split in SPLITS}
    ids: set[str] = set()
    for index in range(len(task)):
        example = task.example(index)
        _check(example, ids)
        found[_split_of(example)].append(index)
    few = [f"{split} {len(found[split])}" for split in SPLITS if len(found[split]) < _FEWEST]
    if few:
        cause = f"{data} has {len(task)} questions: {', '.join(few)}, and {_FEWEST} of each are needed"
        raise UserError(_CODE, cause, "give questions about more images")
    return {split: Part(task, indices) for split, indices in found.items()}


def _file_in(data: str) -> str:
    """The JSON Lines file of a directory; any other name as it is.

    Raises:
        UserError: the directory has none, or several.
    """
    place = Path(data)
    if not is_directory(place):
        return data
    files = sorted(place.glob("*.jsonl"))
    if len(files) != 1:
        cause = f"{shown(place)} has {len(files)} JSON Lines files"
        raise UserError(_CODE, cause, "name one file")
    return str(files[0])


def _check(example: Example, ids: set[str]) -> None:
    if len(example.images) != 1:
        cause = f"question {example.id} shows {len(example.images)} images"
        raise UserError(_CODE, cause, "give questions about one image each")
    if example.id in ids:
        raise UserError(_CODE, f"two questions are called {example.id}", "name each once")
    ids.add(example.id)


def _split_of(example: Example) -> str:
    """Split by the image, so that questions about one image stay together."""
    digest = hashlib.sha256(example.images[0].tobytes()).digest()
    number = int.from_bytes(digest[:4], "big") % 100
    return "train" if number < _TRAIN else "calibration" if number < _TRAIN + _CALIBRATION else "heldout"
