"""Editions of the documents: the narrow one, of one size of text, and the wide one, of many."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from hvlc.zoo import documents, pages
from hvlc.zoo.documents import Document, Question


@dataclass(frozen=True)
class Edition:
    """A generator of documents; see `hvlc.zoo.documents` for the arguments of its functions.

    Attributes:
        render: draws a document.
        render_sheet: draws a page full of words, without questions.
        examples: yields documents, each with one question.
    """

    render: Callable[[str, int], Document]
    render_sheet: Callable[[str, int], Document]
    examples: Callable[..., Iterator[tuple[Document, Question]]]


NARROW = Edition(documents.render, documents.render_sheet, documents.examples)
WIDE = Edition(pages.render, pages.render_sheet, pages.examples)
#: By name.
EDITIONS: Mapping[str, Edition] = {"narrow": NARROW, "wide": WIDE}
