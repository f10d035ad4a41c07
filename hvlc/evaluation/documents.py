"""The built-in task: the held-out split of the rendered documents."""

from dataclasses import dataclass

from hvlc.evaluation.task import Example
from hvlc.zoo import documents

_SPLIT = "heldout"


@dataclass(frozen=True)
class DocumentsTask:
    """One question about each of `count` documents that no training saw.

    Attributes:
        count: number of documents.
    """

    count: int = 256

    @property
    def name(self) -> str:
        return "documents"

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
        document, question = next(documents.examples(_SPLIT, 1, index))
        return Example(
            id=f"{_SPLIT}-{index:04d}",
            kind=document.kind,
            question=question.text,
            answers=(question.answer,),
            images=(document.image,),
        )
