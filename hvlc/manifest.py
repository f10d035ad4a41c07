"""The package's manifest: every component, the tile rule, the encoder policy, digests and versions."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from hvlc.checkpoint import digest_file, read_json
from hvlc.errors import UserError
from hvlc.spec import StrictModel

MANIFEST = "hvlc.json"
_PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
_REQUIRED = ("front", "stitch", "embedding", "model", "vision")


class ComponentEntry(StrictModel):
    """One graph of the package.

    Attributes:
        file: name in the package.
        role: what it is for.
        inputs: names in order.
        outputs: names in order.
    """

    file: str = Field(pattern=_PLAIN_NAME)
    role: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class FileEntry(StrictModel):
    """One file: size in bytes and hex SHA-256."""

    bytes: int
    sha256: str


class TileRule(StrictModel):
    """How images become visual tokens (hvlc/passes/tile_images.py holds the arithmetic).

    Attributes:
        tile_size: side of a tile in pixels.
        cell_size: side in pixels of the square behind one visual token.
        max_visual_tokens: default bound for one image.
        min_scale: smallest scale the compressor chooses.
        resolution_compressor: whether the front graph holds one (a scale of 0 asks it).
    """

    tile_size: int
    cell_size: int
    max_visual_tokens: int
    min_scale: float
    resolution_compressor: bool


class Tokens(StrictModel):
    """Token ids and texts of the image placeholders."""

    image: int
    row: int
    vision_start: int
    vision_end: int
    image_text: str
    row_text: str


class PolicyRule(StrictModel):
    """Use `encoder` for requests with more than `above_visual_tokens` visual tokens."""

    above_visual_tokens: int
    encoder: str


class EncoderPolicy(StrictModel):
    """Which vision encoder answers when the caller says "auto".

    Attributes:
        default: when no rule holds.
        rules: the first that holds decides.
    """

    default: str
    rules: tuple[PolicyRule, ...] = ()

    def choose(self, visual_tokens: int) -> str:
        """The encoder for a request of this size."""
        return next((r.encoder for r in self.rules if visual_tokens > r.above_visual_tokens), self.default)


class Sources(StrictModel):
    """What the package was made from: hex SHA-256 of each input and of hvlc's own code, and the tools' versions."""

    model_type: str
    checkpoint: str
    recipe_name: str
    recipe: str
    target_name: str
    target: str
    code: str
    versions: dict[str, str]


class Manifest(StrictModel):
    """Everything a host must know to drive the package."""

    schema_version: int = Field(ge=1, le=1)
    sources: Sources
    components: dict[str, ComponentEntry]
    encoders: dict[str, str]
    policy: EncoderPolicy
    tiles: TileRule
    tokens: Tokens
    hidden_size: int
    context_length: int
    bits_per_decoder_weight: float | None
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        missing = [name for name in _REQUIRED if name not in self.components]
        if missing:
            raise ValueError(f"no component {', '.join(missing)}")
        named = {entry.file for entry in self.components.values()} | set(self.encoders.values())
        if not named <= set(self.files):
            raise ValueError(f"no file {', '.join(sorted(named - set(self.files)))}")
        chosen = {self.policy.default, *(rule.encoder for rule in self.policy.rules)}
        if not chosen <= set(self.encoders):
            raise ValueError(f"the policy names unknown encoders {', '.join(sorted(chosen - set(self.encoders)))}")
        return self

    @property
    def total_bytes(self) -> int:
        """Size of the package without the manifest itself."""
        return sum(entry.bytes for entry in self.files.values())

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read a package's manifest.

        Raises:
            UserError: no package there, or its manifest is damaged or of another version.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise UserError(
                "package.missing", f"{directory} holds no {MANIFEST}", "name a directory that hvlc build wrote"
            )
        return cls.parse(read_json(path, "package.manifest"), str(path))

    def verify(self, directory: Path) -> None:
        """Hold every file against its digest.

        Raises:
            UserError: a file is missing, changed, or lies outside the package.
        """
        for name, entry in self.files.items():
            path = directory / name
            if path.resolve().parent != directory.resolve():
                raise UserError(
                    "package.escape", f"the manifest names {name} outside the package", "do not trust this package"
                )
            if not path.is_file():
                raise UserError(
                    "package.incomplete", f"{name} is missing from {directory}", "build or copy the package again"
                )
            if path.stat().st_size != entry.bytes or digest_file(path) != entry.sha256:
                raise UserError(
                    "package.digest", f"{name} is not the file that was built", "build or copy the package again"
                )
