"""Records of the differences of two packages: files, graphs, weights, settings."""

from typing import Final, Literal

from pydantic import Field

from hvlc.results.base import Record

DIFFERENCE_VERSION: Final = 1

#: Likeness of two components, from nothing to everything: one is missing; other nodes; the same nodes with other
#: weights; other names only; the same bytes, of the graph and of all that it reads. "compiled" are two of which one or
#: both were compiled, into other bytes: whether they compute the same cannot be read from them.
Likeness = Literal["only in A", "only in B", "structure", "compiled", "weights", "names", "identical"]


class FileChange(Record):
    """A file that is not the same in both packages.

    Attributes:
        name: of the file.
        bytes: size in A and B; None where the file is missing.
        sha256: digest in A and B; None where the file is missing.
    """

    name: str
    bytes: tuple[int | None, int | None]
    sha256: tuple[str | None, str | None]


class ValueChange(Record):
    """A setting that is not the same in both packages.

    Attributes:
        key: path of the setting: "search.max_length", "vocab['the']".
        a: its value in A as JSON; None where it is missing.
        b: its value in B.
    """

    key: str
    a: str | None
    b: str | None


class NodeChange(Record):
    """A node that is not the same in both graphs.

    Attributes:
        place: its name in A (in B where it is in B alone), with the path through subgraphs.
        a: its operator in A; None where it is in B alone.
        b: its operator in B.
        attributes: those with another value.
        reads: whether it reads constants of another form.
    """

    place: str
    a: str | None
    b: str | None
    attributes: tuple[ValueChange, ...] = ()
    reads: bool = False


class TensorChange(Record):
    """An initializer that is not the same in both graphs.

    Attributes:
        name: in A (in B where it is in B alone).
        other_name: in B, where that differs.
        a: element type and shape in A, or format of the weight; None where it is in B alone.
        b: the same in B.
        relative_error: root mean square of the difference by that of A's values; None where the shapes differ, A's
            values are all 0, or a number is not finite.
        largest_error: largest difference; None where the shapes differ or a number is not finite.
        dequantized: whether the errors are those of the weight that the graph computes with, not of stored levels.
    """

    name: str
    other_name: str | None = None
    a: str | None
    b: str | None
    relative_error: float | None = Field(None, ge=0)
    largest_error: float | None = Field(None, ge=0)
    dequantized: bool = False


class ComponentDifference(Record):
    """One component of both packages.

    Attributes:
        name: of the component.
        likeness: how alike the two are.
        nodes: number in A and B; 0 where the component is missing.
        renamed: number of nodes with another name.
        facts: inputs, outputs, operator sets and other settings of the graph that differ.
        changed: nodes that are not the same.
        tensors: initializers that are not the same.
    """

    name: str
    likeness: Likeness
    nodes: tuple[int, int]
    renamed: int = 0
    facts: tuple[ValueChange, ...] = ()
    changed: tuple[NodeChange, ...] = ()
    tensors: tuple[TensorChange, ...] = ()


class Difference(Record):
    """Differences of two packages.

    Attributes:
        schema_version: of this format.
        a: name of the first package.
        b: name of the second.
        files: that are not the same; empty for packages that are identical to the last byte.
        components: in A's order, then those of B alone; each with how alike the two are.
        settings: by what they set ("genai_config.json", "manifest", "recipe", "target", "checkpoint", "versions"):
            those that differ.
        tokenizer: entries of vocabulary, merges, special tokens, template and the rest that differ.
    """

    schema_version: Literal[1] = DIFFERENCE_VERSION
    a: str
    b: str
    files: tuple[FileChange, ...]
    components: tuple[ComponentDifference, ...]
    settings: dict[str, tuple[ValueChange, ...]]
    tokenizer: tuple[ValueChange, ...]

    @property
    def identical(self) -> bool:
        """Whether the two are the same to the last byte."""
        return not self.files

    @property
    def equivalent(self) -> bool:
        """Whether the two compute the same: they differ in names alone, and in where they come from."""
        graphs = all(component.likeness in ("identical", "names") for component in self.components)
        behaviour = self.settings.get("genai_config.json", ()) + self.settings.get("manifest", ())
        return graphs and not behaviour and not self.tokenizer
