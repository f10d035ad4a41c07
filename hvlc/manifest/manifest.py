"""The package's manifest: every component, what a host must know to drive them, digests and versions."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from hvlc.errors import UserError
from hvlc.files.digests import digest_file
from hvlc.graphs.placement import Phase, Placement, Provider
from hvlc.inputs.documents import read_json
from hvlc.inputs.records import StrictModel

MANIFEST = "hvlc.json"

#: A session option. Without it onnxruntime makes products with int8 activations of those in float that read rows of
#: 8 bits with one scale each (`hvlc.passes.quantize.quantize_weights_qdq`); on other graphs it has no effect.
FLOAT_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "1")
#: Input of the vision graph of a package that answers about images: the visual tokens that the host has computed.
HOST_FEATURES = "host_image_features"
DECODER = "model"  # component that is a whole decoder
_PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


class Kind(StrEnum):
    """What a package is for."""

    VISION_LANGUAGE = "vision-language"
    LANGUAGE = "language"
    VISION = "vision"


#: Components that a package of a kind must have.
_COMPONENTS: Mapping[Kind, tuple[str, ...]] = {
    Kind.VISION_LANGUAGE: ("front", "stitch", "embedding", "vision"),
    Kind.LANGUAGE: (),
    Kind.VISION: ("vision",),
}

#: Facts that a package of a kind must have; it may not have the others'.
_FACTS: Mapping[Kind, tuple[str, ...]] = {
    Kind.VISION_LANGUAGE: ("encoders", "policy", "tiles", "tokens", "context_length", "trained_context_length"),
    Kind.LANGUAGE: ("context_length", "trained_context_length"),
    Kind.VISION: ("preprocessing",),
}


class CompiledEntry(StrictModel):
    """How a graph was compiled for an NPU; its file holds nothing but a reference to the binary.

    Attributes:
        binary: file with the context.
        chip: name of the chip, as the binary has it.
        soc_model: Qualcomm's number of the chip.
        htp_arch: generation of its NPU.
        sdk: version of the compiler's libraries.
        provider: execution provider that runs it, as onnxruntime names it.
        provider_options: that its session needs.
    """

    binary: str = Field(pattern=_PLAIN_NAME)
    chip: str
    soc_model: int
    htp_arch: int
    sdk: str
    provider: str
    provider_options: dict[str, str]


class ComponentEntry(StrictModel):
    """One graph of the package.

    Attributes:
        file: name in the package.
        role: what it is for.
        inputs: names in order.
        outputs: names in order.
        phase: when it runs, where a decoder has a graph for the prompt and another for each token of the answer.
        placement: the processor that it is made for.
        reason: why it is placed there, if it could be asked.
        compiled: for which device; None for a graph that its runtime compiles.
        provider: that the device's session is told to use; where an onnxruntime does not have it, the CPU stands in.
    """

    file: str = Field(pattern=_PLAIN_NAME)
    role: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    phase: Phase = Phase.ALWAYS
    placement: Placement = Placement.CPU
    reason: str = ""
    compiled: CompiledEntry | None = None
    provider: Provider | None = None


class FileEntry(StrictModel):
    """One file: size in bytes and hex SHA-256."""

    bytes: int
    sha256: str


class TileRule(StrictModel):
    """How images become visual tokens (hvlc/passes/vision/tile_images.py holds the arithmetic).

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


class Preprocessing(StrictModel):
    """How an image becomes the `pixel_values` of a vision tower; None where the checkpoint does not say.

    Attributes:
        image_size: side in pixels of the square image.
        patch_size: side in pixels of a patch.
        mean: of each channel, subtracted after rescaling.
        std: of each channel, divided by after that.
        rescale_factor: that the 8-bit values are multiplied with.
        resample: Pillow's name of the filter that resizes.
    """

    image_size: int
    patch_size: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    rescale_factor: float | None
    resample: str | None


class Sources(StrictModel):
    """What the package was made from: hex SHA-256 of each input and of hvlc's own code, and the tools' versions.

    The calibration set is named as its source is, without directory; it is None where no solver needed one.
    """

    model_type: str
    checkpoint: str
    recipe_name: str
    recipe: str
    target_name: str
    target: str
    code: str
    versions: dict[str, str]
    calibration_name: str | None = None
    calibration: str | None = None
    calibration_samples: int | None = None


class Manifest(StrictModel):
    """Everything a host must know to drive the package.

    Attributes:
        schema_version: of this file format.
        kind: what the package is for, which says what else is there.
        sources: what it was made from.
        tried: how far packages for its target were tried, in the words of the target's file ("run", "compiled and
            emulated", "rules only"); None in packages from before this was noted.
        components: the graphs by name.
        encoders: file of each vision encoder; only where there is a choice.
        policy: which encoder answers.
        tiles: how images become visual tokens.
        tokens: of the image placeholders.
        preprocessing: how images become the input of a vision tower.
        hidden_size: width of the language model, or of a vision tower's features.
        context_length: longest sequence of the language model in tokens, answer included.
        trained_context_length: the checkpoint's own, which may be longer.
        bits_per_decoder_weight: stored bits on average; None when nothing was quantized.
        files: every file of the package.
    """

    schema_version: int = Field(ge=1, le=1)
    kind: Kind
    sources: Sources
    tried: str | None = None
    components: dict[str, ComponentEntry]
    encoders: dict[str, str] = Field(default_factory=dict)
    policy: EncoderPolicy | None = None
    tiles: TileRule | None = None
    tokens: Tokens | None = None
    preprocessing: Preprocessing | None = None
    hidden_size: int
    context_length: int | None = None
    trained_context_length: int | None = None
    bits_per_decoder_weight: float | None
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        missing = [name for name in _COMPONENTS[self.kind] if name not in self.components]
        if self.kind is not Kind.VISION and not self.is_staged and DECODER not in self.components:
            missing.append(DECODER)
        if missing:
            raise ValueError(f"no component {', '.join(missing)}")
        needed = set(_FACTS[self.kind])
        facts = {name: getattr(self, name) for names in _FACTS.values() for name in names}
        lacking = sorted(name for name in needed if facts[name] in (None, {}))
        if lacking:
            raise ValueError(f"a {self.kind} package needs {', '.join(lacking)}")
        foreign = sorted(name for name in facts.keys() - needed if facts[name] not in (None, {}))
        if foreign:
            raise ValueError(f"a {self.kind} package has no {', '.join(foreign)}")
        return self

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        named = {entry.file for entry in self.components.values()} | set(self.encoders.values())
        named |= {entry.compiled.binary for entry in self.components.values() if entry.compiled}
        if not named <= set(self.files):
            raise ValueError(f"no file {', '.join(sorted(named - set(self.files)))}")
        chosen = {self.policy.default, *(rule.encoder for rule in self.policy.rules)} if self.policy else set()
        if not chosen <= set(self.encoders):
            raise ValueError(f"the policy names unknown encoders {', '.join(sorted(chosen - set(self.encoders)))}")
        return self

    @property
    def is_staged(self) -> bool:
        """Whether the decoder is cut into stages of fixed shapes, one graph for the prompt and one for a token each."""
        return {Phase.PROMPT, Phase.TOKEN} <= {entry.phase for entry in self.components.values()}

    @property
    def whole_decoder(self) -> ComponentEntry:
        """The decoder, where it is one graph.

        Raises:
            UserError: it runs in stages, or there is none.
        """
        if DECODER in self.components:
            return self.components[DECODER]
        cause = f"the decoder of this package runs in stages for {self.sources.target_name}" if self.is_staged else ""
        fix = "build the same recipe for the target cpu and take that package"
        raise UserError("package.decoder", cause or "the package has no decoder", fix)

    @property
    def total_bytes(self) -> int:
        """Size of the package without the manifest itself."""
        return sum(entry.bytes for entry in self.files.values())

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read a package's manifest.

        Raises:
            UserError: no package there, or its manifest is damaged, of another version or from before there were kinds.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise UserError(
                "package.missing", f"{directory} holds no {MANIFEST}", "name a directory that hvlc build wrote"
            )
        content: Any = read_json(path, "package.manifest")
        if isinstance(content, dict) and "kind" not in content:
            cause = f"{path} does not say what kind of package this is: an older hvlc wrote it"
            raise UserError("package.manifest", cause, "build the package again")
        return cls.parse(content, str(path))

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
