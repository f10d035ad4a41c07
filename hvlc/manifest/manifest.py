"""The package's manifest: every component, what a host must know to drive them, digests and versions."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from hvlc.chat.tokenizing import Form
from hvlc.errors import UserError
from hvlc.files.digests import digest_file
from hvlc.files.links import leads_outside
from hvlc.files.reading import is_file, shown
from hvlc.graphs.facts import Kind, encoder_component
from hvlc.graphs.placement import Phase, Placement, Provider
from hvlc.inputs.documents import read_json
from hvlc.inputs.records import StrictModel
from hvlc.manifest.policy import EncoderPolicy
from hvlc.manifest.tuning import Tuning

MANIFEST = "hvlc.json"

#: A session option. Without it onnxruntime makes products with int8 activations of those in float that read rows of
#: 8 bits with one scale each (`hvlc.passes.quantize.quantize_weights_qdq`); on other graphs it has no effect.
FLOAT_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "1")
#: Input of the vision graph of a package that answers about images: the visual tokens that the host has computed.
HOST_FEATURES = "host_image_features"
#: Input of a decoder of fixed shapes that is given positions: those of all rows of its cache, int32 `[3, context]`.
POSITION_TABLE = "position_table"
SCHEMA = 2  # of the manifest: 1 had tiles of one family
DECODER = "model"  # component that is a whole decoder
_LONGEST_NAME = 200
_PLAIN = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{_LONGEST_NAME - 1}}}")

#: Name of a file right inside the package, or of a part of it: no separator, and no dot in front.
PlainName = Annotated[str, Field(pattern=rf"^{_PLAIN.pattern}$")]
#: Name of a graph's file. onnxruntime reads files with another suffix in another format.
GraphName = Annotated[str, Field(pattern=rf"^{_PLAIN.pattern}\.onnx$")]
#: A token id, as the runtime keeps it.
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
#: Pixels, tokens, channels: more than any model has, and few enough to be multiplied without overflow.
Size = Annotated[int, Field(ge=1, lt=2**24)]
#: Tokens of a sequence.
Length = Annotated[int, Field(ge=1, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


#: Components that a package of a kind must have.
_COMPONENTS: Mapping[Kind, tuple[str, ...]] = {
    Kind.VISION_LANGUAGE: ("front", "stitch", "embedding", "vision"),
    Kind.LANGUAGE: (),
    Kind.VISION: ("vision",),
}

#: Facts of images in manifests of schema version 1.
_OLD_FACTS = ("tiles", "tokens")

#: Facts that a package of a kind must have; it may not have the others'.
_FACTS: Mapping[Kind, tuple[str, ...]] = {
    Kind.VISION_LANGUAGE: ("encoders", "policy", "images", "context_length", "trained_context_length"),
    Kind.LANGUAGE: ("context_length", "trained_context_length"),
    Kind.VISION: ("preprocessing",),
}


class CompiledEntry(StrictModel):
    """Compilation of a graph for an NPU; the graph's file holds nothing but a reference to the binary.

    Attributes:
        binary: file with the context.
        chip: name of the chip, as the binary has it.
        soc_model: Qualcomm's number of the chip.
        htp_arch: generation of its NPU.
        sdk: version of the compiler's libraries.
        provider: execution provider that runs it, as onnxruntime names it.
        provider_options: that its session needs.
    """

    binary: PlainName
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

    file: GraphName
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

    bytes: int = Field(ge=0)
    sha256: str


class Images(StrictModel):
    """Facts for hosts about how images become visual tokens, which the front graph does.

    Attributes:
        rule: name of the rule (`hvlc.imaging`).
        token: placeholder of one visual token, of which the front graph's `image_ids` have as many as there are.
        start: token that stands right before an image's own, or the first of those.
        placeholder: text that the chat template writes for an image; a host puts `image_ids` in its place.
        before: text that joins the text before an image, and is encoded with it.
        after: text that joins the text after an image, and is encoded with it.
        max_visual_tokens: default bound for one image.
        piece: height and width in pixels of an encoder's input. None: it follows the image.
        tokens_per_piece: most visual tokens of one piece. None: they follow the image.
        resolution_compressor: whether the front graph holds one (a scale of 0 asks it).
        min_scale: smallest scale per side that the compressor chooses. None: there is none.
        question_tokens: most tokens of the question, as it stands in the user's last message and without template, that
            a host gives the front graph as `question_ids`, int64 `[tokens]`. None: it takes no question.
        overview: whether the front graph gives one more piece, of a shape of its own: an encoder runs over it alone,
            and its visual tokens are the last.
        grids: heights and widths in pixels of which a piece has one, where an encoder is a graph for each
            (`encoder_component` says which). Empty: an encoder is one graph.
        side_channels: what a token's embedding, and a visual token, have beside the channels of the residual stream.
        tile_batch: pieces per run that a host does best to give an encoder. None, and absent from the file: not stated.
        grid_positions: whether a token's position follows the grid of its image: a host gives onnxruntime-genai
            `image_grid_thw`, int64 `[images, 3]`, of 1 and the front graph's `grid`; or `position_table`, where a
            decoder of fixed shapes takes it.
    """

    rule: PlainName
    token: TokenId
    start: TokenId
    placeholder: str = Field(min_length=1)
    before: str = ""
    after: str = ""
    max_visual_tokens: Size
    piece: tuple[Size, Size] | None
    tokens_per_piece: Size | None
    resolution_compressor: bool
    min_scale: float | None = Field(default=None, gt=0, le=1)
    question_tokens: Size | None = None
    overview: bool = False
    grids: tuple[tuple[Size, Size], ...] = ()
    side_channels: Annotated[int, Field(ge=0, lt=2**24)] = 0
    grid_positions: bool = False
    tile_batch: Annotated[int, Field(ge=1, le=4096)] | None = None

    @model_serializer(mode="wrap")
    def _without_the_usual(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Packages of before had no batch of their own."""
        found: dict[str, Any] = written(self)
        if self.tile_batch is None:
            found.pop("tile_batch", None)
        return found


class TextRule(StrictModel):
    """Steps of a host before it encodes a text, and texts of which the runtime still makes other tokens.

    Attributes:
        normalization: Unicode form that a text is put into, rendered template and all; None: as it is.
        differing: kinds of texts whose tokens are others than those that the model was trained on.
    """

    normalization: Form | None = None
    differing: tuple[str, ...] = ()


class Preprocessing(StrictModel):
    """Preprocessing of an image to the `pixel_values` of a vision tower; None where the checkpoint does not say.

    Attributes:
        image_size: side in pixels of the square image.
        patch_size: side in pixels of a patch.
        mean: of each channel, subtracted after rescaling.
        std: of each channel, divided by after that.
        rescale_factor: that the 8-bit values are multiplied with.
        resample: Pillow's name of the filter that resizes.
    """

    image_size: Size
    patch_size: Size
    mean: tuple[Finite, ...] | None
    std: tuple[Finite, ...] | None
    rescale_factor: Finite | None
    resample: str | None


class Sources(StrictModel):
    """Sources of a package: hex SHA-256 of each input and of hvlc's own code, and the tools' versions.

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
        encoders: file of each vision encoder.
        policy: which encoder answers.
        images: how images become visual tokens.
        variants: what a request can choose, and the values of each choice; the first is what "auto" or nothing means
            where no policy decides.
        preprocessing: how images become the input of a vision tower.
        text: what the tokenizer needs of a host; None, and absent from the file, where it is nothing.
        hidden_size: width of the language model, or of a vision tower's features.
        context_length: longest sequence of the language model in tokens, answer included.
        trained_context_length: the checkpoint's own, which may be longer.
        bits_per_decoder_weight: stored bits on average; None when nothing was quantized.
        rewinds: whether a sequence can be cut back to an earlier length; absent from the file where it can.
        tuned: choices of `hvlc tune`; None, and absent from the file, where it chose nothing.
        files: every file of the package.
    """

    schema_version: int = Field(ge=1, le=SCHEMA)
    kind: Kind
    sources: Sources
    tried: str | None = None
    components: dict[PlainName, ComponentEntry]
    encoders: dict[PlainName, GraphName] = Field(default_factory=dict)
    policy: EncoderPolicy | None = None
    images: Images | None = None
    variants: dict[PlainName, tuple[PlainName, ...]] = Field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    text: TextRule | None = None
    hidden_size: Size
    context_length: Length | None = None
    trained_context_length: Length | None = None
    bits_per_decoder_weight: Finite | None
    rewinds: bool = True
    tuned: Tuning | None = None
    files: dict[PlainName, FileEntry]

    @model_serializer(mode="wrap")
    def _without_the_usual(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Most packages have no rule of texts, can rewind and are as built, as those from before there were others."""
        found: dict[str, Any] = written(self)
        if self.text is None:
            found.pop("text", None)
        if self.rewinds:
            found.pop("rewinds", None)
        if self.tuned is None:
            found.pop("tuned", None)
        return found

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
        chosen = self.policy.encoders if self.policy else set()
        if not chosen <= set(self.encoders):
            raise ValueError(f"the policy names unknown encoders {', '.join(sorted(chosen - set(self.encoders)))}")
        if self.variants != variants_of(self.encoders, self.images):
            raise ValueError("variants are not those of its encoders and its compressor")
        return self

    @property
    def embedding_width(self) -> int:
        """Channels of a token that enters the language model, and of a visual token."""
        return self.hidden_size + (self.images.side_channels if self.images else 0)

    def encoder_file(self, encoder: str, height: int, width: int) -> str:
        """File of the graph by which an encoder takes pieces of a shape; that may still be another's, if one has all.

        Args:
            encoder: its name.
            height: of the pieces in pixels.
            width: of the pieces in pixels.

        Raises:
            UserError: pieces have one of several shapes, and not this.
        """
        if self.images is None or not self.images.grids:
            return self.encoders[encoder]
        name = encoder_component(f"vision_{encoder}", height, width)
        if name not in self.components:
            cause = f"the package has no {name}, and a piece of {height} x {width} pixels"
            raise UserError("package.manifest", cause, "build the package again")
        return self.components[name].file

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

        Every reader of a package's files goes through here (`hvlc.opening.package`), so that a name of a file is plain.

        Raises:
            UserError: no package there, or its manifest is damaged, of another version or from before there were
                kinds, or it names a file outside the package.
        """
        path = directory / MANIFEST
        if not is_file(path):
            cause = f"{shown(directory)} holds no {MANIFEST}"
            raise UserError("package.missing", cause, "name a directory that hvlc build wrote")
        _check_place(path, directory)
        content: Any = read_json(path, "package.manifest", unique=True)
        for name in _foreign_names(content):
            raise _escape(name)
        if isinstance(content, dict):
            if "kind" not in content or (_is_first(content) and content["kind"] == Kind.VISION_LANGUAGE):
                cause = f"{shown(path)} is of a form that an older hvlc wrote"
                raise UserError("package.manifest", cause, "build the package again")
            content = _without_old_facts(content) if _is_first(content) else content
        return cls.parse(content, str(path))

    def component_in(self, file: str) -> ComponentEntry:
        """The component whose graph a file holds.

        Raises:
            UserError: none does.
        """
        for entry in self.components.values():
            if entry.file == file:
                return entry
        raise UserError("package.manifest", f"{file} is not the graph of a component", "build the package again")

    def check_places(self, directory: Path) -> None:
        """Hold where files are against the package; whether they are there is not asked.

        Raises:
            UserError: one lies outside the package.
        """
        for name in self.files:
            _check_place(directory / name, directory)

    def locate(self, directory: Path) -> None:
        """Find every file that is listed, without reading it.

        Raises:
            UserError: a file is missing, is not a regular file, or lies outside the package.
        """
        self.check_places(directory)
        for name in self.files:
            if not is_file(directory / name):
                cause = f"{name} is missing from {shown(directory)}"
                raise UserError("package.incomplete", cause, "build or copy the package again")

    def verify(self, directory: Path) -> None:
        """Hold every file against its digest.

        Raises:
            UserError: a file is missing, changed, or lies outside the package.
        """
        self.locate(directory)
        for name, entry in self.files.items():
            path = directory / name
            if path.stat().st_size != entry.bytes or digest_file(path) != entry.sha256:
                raise UserError(
                    "package.digest", f"{name} is not the file that was built", "build or copy the package again"
                )


def variants_of(encoders: Mapping[str, str], images: Images | None) -> dict[str, tuple[str, ...]]:
    """Variants that a request can choose: an encoder where there are several, the compressor where there is one."""
    found: dict[str, tuple[str, ...]] = {"encoder": tuple(encoders)} if len(encoders) > 1 else {}
    return found | ({"vrc": ("on", "off")} if images is not None and images.resolution_compressor else {})


def _is_first(content: Mapping[str, Any]) -> bool:
    """Whether a manifest, not yet validated, is of schema version 1."""
    return content.get("schema_version") == 1


def _without_old_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of schema version 1 of a package that sees no images: null stands in it for what is no more."""
    return {name: value for name, value in content.items() if name not in _OLD_FACTS or value is not None}


def _foreign_names(content: Any) -> Iterator[str]:
    """Names of files in a manifest, not yet validated, that lead elsewhere or could."""
    files = content.get("files") if isinstance(content, dict) else None
    if isinstance(files, dict):
        yield from (name for name in files if not _PLAIN.fullmatch(name))


def _check_place(path: Path, directory: Path) -> None:
    if leads_outside(path, directory):
        raise _escape(path.name)


def _escape(name: str) -> UserError:
    cause = f"the manifest names {shown(name)!r}, which is not a file inside the package"
    return UserError("package.escape", cause, "do not trust this package")
