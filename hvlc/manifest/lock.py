"""The package's lock: what it was made from, in enough detail to make it again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field

from hvlc.errors import UserError
from hvlc.files.links import leads_outside
from hvlc.files.reading import is_file, shown
from hvlc.inputs.documents import read_json
from hvlc.inputs.records import StrictModel
from hvlc.manifest.manifest import FileEntry, Sources

LOCK = "hvlc.lock.json"


@dataclass(frozen=True)
class Provenance:
    """Inputs that a build was made from.

    Attributes:
        sources: digests of the inputs, for the manifest.
        checkpoint: bytes and hex SHA-256 of every file of the checkpoint that is read.
        recipe: text of the recipe.
        target: text of the target.
        origin: id and commit of the checkpoint on the Hugging Face hub; None: it is not from its cache.
    """

    sources: Sources
    checkpoint: Mapping[str, tuple[int, str]]
    recipe: str
    target: str
    origin: str | None = None


class Lock(StrictModel):
    """Inputs, versions and digests of a build; it names no path, machine or time.

    Attributes:
        schema_version: of the file.
        model_type: transformers' name of the architecture.
        checkpoint: every file of the checkpoint that was read.
        recipe: the recipe's YAML, as it was.
        target: the target's TOML, as it was.
        code: hex SHA-256 of hvlc's own code, recipes and targets.
        versions: of the tools that shape a package.
        outputs: every file of the package but the lock and the manifest.
        origin: id and commit of the checkpoint on the Hugging Face hub, "organization/name@commit"; None: it was not
            in its cache. No digest depends on it: the same files from elsewhere make the same package.
    """

    schema_version: int = Field(ge=1, le=1)
    model_type: str
    checkpoint: dict[str, FileEntry]
    recipe: str
    target: str
    code: str
    versions: dict[str, str]
    outputs: dict[str, FileEntry]
    origin: str | None = Field(None, max_length=500)

    @classmethod
    def of(cls, provenance: Provenance, outputs: Mapping[str, FileEntry]) -> Self:
        """The lock of a package.

        Args:
            provenance: what it was made from.
            outputs: every file so far.
        """
        sources = provenance.sources
        checkpoint = {n: FileEntry(bytes=size, sha256=sha256) for n, (size, sha256) in provenance.checkpoint.items()}
        return cls(
            schema_version=1,
            model_type=sources.model_type,
            checkpoint=checkpoint,
            recipe=provenance.recipe,
            target=provenance.target,
            code=sources.code,
            versions=sources.versions,
            outputs=dict(outputs),
            origin=provenance.origin,
        )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read a package's lock.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = directory / LOCK
        if leads_outside(path, directory):
            raise UserError("package.escape", f"{shown(path)} leads outside the package", "do not trust this package")
        if not is_file(path):
            raise UserError("package.lock", f"{shown(directory)} holds no {LOCK}", "build the package again")
        return cls.parse(read_json(path, "package.lock", unique=True), str(path))
