"""Facts of a bundle: what passes, package and runtime must know of a model besides its graphs."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from hvlc.errors import HvlcError

if TYPE_CHECKING:
    import onnx_ir as ir

    from hvlc.graphs.builder import GraphBuilder


class Kind(StrEnum):
    """Purpose of a model or a package."""

    VISION_LANGUAGE = "vision-language"
    LANGUAGE = "language"
    VISION = "vision"


def encoder_component(component: str, height: int, width: int) -> str:
    """Name of the component that encodes pieces of one of several shapes.

    Args:
        component: the encoder's, for all shapes.
        height: of the pieces in pixels.
        width: of the pieces in pixels.
    """
    return f"{component}_{height}x{width}"


class ImageRule(Protocol):
    """Rule by which a family turns an image into pieces for its encoder and tokens for its prompt; `hvlc.imaging` has
    the rules.

    Attributes:
        kind: name of the rule.
        ignores: pairs of an input of the front graph that the rule cannot obey, and the reason.
    """

    @property
    def kind(self) -> str:
        """Name of the rule."""

    @property
    def ignores(self) -> Sequence[tuple[str, str]]:
        """Pairs of an input of the front graph that the rule cannot obey, and the reason."""

    @property
    def most_visual_tokens(self) -> int:
        """Visual tokens of the largest image when nobody gives a bound."""

    @property
    def piece_shape(self) -> tuple[int, int] | None:
        """Height and width in pixels of an encoder's input. None: it follows the image."""

    @property
    def tokens_per_piece(self) -> int | None:
        """Visual tokens of a full piece. None: they follow the image."""

    @property
    def has_overview(self) -> bool:
        """Whether an image has one more piece, of a shape of its own."""

    @property
    def pixels_per_token(self) -> int:
        """Pixels behind one visual token."""

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Heights and widths in pixels of which a piece has one. Empty: pieces have one shape, or the image's."""

    def pieces(self, rows: int, columns: int) -> int:
        """Number of pieces of an image with this grid."""

    def front(self) -> "ir.Model":
        """The front graph: image, scale and bound to pieces, token ids, grid and used scale."""

    def merged(self, b: "GraphBuilder", features: "ir.Value", grid: "ir.Value", hidden: int) -> "ir.Value":
        """Features float32 `[pieces, tokens, hidden]` to float32 `[visual tokens, hidden]`."""


@dataclass(frozen=True)
class ConvolutionFacts:
    """Facts of the layers of a language model that have a short convolution in the place of attention.

    Attributes:
        layers: their indices.
        positions: of the past, that their state holds.
    """

    layers: frozenset[int]
    positions: int


@dataclass(frozen=True)
class TextFacts:
    """Facts of a language model.

    Attributes:
        hidden_size: width of the residual stream.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_size: width of a head.
        vocab_size: rows of the embedding table.
        context_length: longest sequence in tokens, answer included; a target of fixed shapes may shorten it.
        trained_context_length: longest sequence that the checkpoint was trained for.
        eos_token_id: ids that end an answer, as the checkpoint writes them.
        bos_token_id: id that begins a sequence. None: the checkpoint names none.
        pad_token_id: id of padding. None: the checkpoint names none.
        convolution: None: every layer has attention.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    context_length: int
    trained_context_length: int
    eos_token_id: int | list[int]
    bos_token_id: int | None
    pad_token_id: int | None
    convolution: ConvolutionFacts | None = None

    @property
    def rewinds(self) -> bool:
        """Whether a sequence can be cut back to an earlier length: the state of a convolution holds its end alone."""
        return self.convolution is None

    @property
    def end_tokens(self) -> list[int]:
        """Ids that end an answer."""
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]


@dataclass(frozen=True)
class CompressorFacts:
    """Facts of a resolution compressor.

    Attributes:
        proxy_size: side in pixels of its view of the image.
        min_scale: smallest scale per side that it chooses.
        scale_step: grid of the scales.
        mean: of each channel, on the 0..1 scale.
        std: of each channel, on the 0..1 scale.
        price: megapixels that a right answer is worth, for a network that says how sure it is. None: it does not.
        question_tokens: most tokens of a question that it reads. None: it sees the image alone.
    """

    proxy_size: int
    min_scale: float
    scale_step: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    price: float | None = None
    question_tokens: int | None = None


#: Initializer of a front graph with a compressor: factor on the scale that it chooses, float32 `[1]`.
SCALE_MARGIN = "scale_margin"


def scale_grid(minimum: float, step: float) -> list[float]:
    """Scales that a compressor chooses from, ascending: 1 and what is a multiple of the step below it."""
    count = int((1 - minimum) / step + 1e-6)
    return [1 - step * below for below in range(count, -1, -1)]


@dataclass(frozen=True)
class ImageFacts:
    """Facts of the vision half of a vision-language model.

    Attributes:
        rule: how an image becomes pieces and tokens.
        image_token_id: placeholder of one visual token.
        placeholder_id: token that the chat template writes for a whole image.
        start_token_id: token that stands right before an image's own.
        special_ids: ids of all tokens that an image may put into a prompt, and of those that stand around it.
        max_visual_tokens: default bound for one image.
        encoders: names of the vision encoders.
        default_encoder: encoder that answers when a caller names none.
        compressor: None: the model has no resolution compressor.
        compresses: whether the compressor is part of the front graph.
        placeholder: text that the chat template writes for an image, where that is not a token. None: it is
            `placeholder_id`.
        before: text that joins the text before an image, and is encoded with it.
        after: the same of the text after an image.
        side_channels: what a token's embedding has beside the channels of the residual stream.
        grid_positions: whether the decoder is given positions that follow the grid of each image.
        image_blocks: whether the visual tokens of an image see each other, those that follow too.
        tile_batch: pieces per run of an encoder. None: the runtime's own number, or a graph of fixed shapes says.
    """

    rule: ImageRule
    image_token_id: int
    placeholder_id: int
    start_token_id: int
    special_ids: frozenset[int]
    max_visual_tokens: int
    encoders: tuple[str, ...]
    default_encoder: str
    compressor: CompressorFacts | None = None
    compresses: bool = False
    placeholder: str | None = None
    before: str = ""
    after: str = ""
    side_channels: int = 0
    grid_positions: bool = False
    image_blocks: bool = False
    tile_batch: int | None = None

    @property
    def asks(self) -> bool:
        """Whether the compressor reads the question."""
        return self.compressor is not None and self.compressor.question_tokens is not None


@dataclass(frozen=True)
class TowerFacts:
    """Facts of a vision tower alone; None where the checkpoint does not say.

    Attributes:
        hidden_size: width of the features.
        image_size: side in pixels of the square image.
        patch_size: side in pixels of a patch.
        mean: of each channel.
        std: of each channel.
        rescale_factor: factor of the 8-bit values.
        resample: Pillow's name of the filter that resizes.
    """

    hidden_size: int
    image_size: int
    patch_size: int
    mean: list[float] | None
    std: list[float] | None
    rescale_factor: float | None
    resample: str | None


@dataclass(frozen=True)
class Facts:
    """Facts of a bundle, by what the model can do.

    Attributes:
        text: None: there is no language model.
        image: None: the language model sees no images.
        tower: None: the bundle is not a vision tower alone.
    """

    text: TextFacts | None = None
    image: ImageFacts | None = None
    tower: TowerFacts | None = None

    @property
    def kind(self) -> Kind:
        """Purpose of the model."""
        if self.image is not None:
            return Kind.VISION_LANGUAGE
        return Kind.LANGUAGE if self.text is not None else Kind.VISION

    @property
    def speaks(self) -> TextFacts:
        """Facts of the language model.

        Raises:
            HvlcError: there is none (a bug of the caller).
        """
        if self.text is None:
            raise HvlcError("bundle.facts", "internal error: the bundle has no language model", "please report it")
        return self.text

    @property
    def sees(self) -> ImageFacts:
        """Facts of the vision half.

        Raises:
            HvlcError: there is none (a bug of the caller).
        """
        if self.image is None:
            raise HvlcError("bundle.facts", "internal error: the bundle sees no images", "please report it")
        return self.image

    @property
    def hidden_size(self) -> int:
        """Width of the language model, or of a vision tower's features."""
        if self.tower is not None:
            return self.tower.hidden_size
        return self.speaks.hidden_size

    @property
    def embedding_width(self) -> int:
        """Channels of a token that enters the decoder, and of a visual token."""
        return self.hidden_size + (self.image.side_channels if self.image else 0)
