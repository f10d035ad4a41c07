"""The built-in tasks: the held-out split of the rendered documents, of each edition."""

from dataclasses import dataclass

from hvlc.evaluation.task import Example
from hvlc.zoo.editions import EDITIONS

#: Names of the tasks by edition.
TASK_NAMES = {"narrow": "documents", "wide": "documents-wide"}


@dataclass(frozen=True)
class DocumentsTask:
    """One question about each of `count` documents that no training saw.

    Attributes:
        count: number of documents.
        edition: name in `hvlc.zoo.editions.EDITIONS`.
        split: that they belong to.
    """

    count: int = 256
    edition: str = "narrow"
    split: str = "heldout"

    @property
    def name(self) -> str:
        return TASK_NAMES[self.edition]

    @property
    def shows_images(self) -> bool:
        return True

    def __len__(self) -> int:
        return self.count

    def example(self, index: int) -> Example:
        """Draw document `index`.

        Raises:
            IndexError: there is no such document in the task.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"document {index} of {self.count}")
        document, question = next(EDITIONS[self.edition].examples(self.split, 1, index))
        return Example(
            id=f"{self.split}-{index:04d}",
            kind=document.kind,
            question=question.text,
            answers=(question.answer,),
            images=(document.image,),
        )
