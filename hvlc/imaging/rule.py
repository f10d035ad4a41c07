"""The contract of every image rule, and the frame of its front graph."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import onnx_ir as ir

from hvlc.errors import HvlcError
from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import FLOAT

#: Names of the nodes that the resolution compressor looks for in a front graph: the scale that the rule obeys (its
#: input is the caller's scale), the image as float32 `[1, 3, height, width]` in 0..255, and its height and width as
#: float32 `[2]`.
CHOSEN_SCALE, PIXELS, SIZE = "chosen_scale", "pixels", "size"
#: Output of a front graph: one more piece of an image, of a shape of its own.
OVERVIEW = "overview"


@dataclass(frozen=True)
class Normalization:
    """Normalization of grey levels for the vision encoder: `(level * rescale - mean) / std`.

    Attributes:
        mean: per channel, after rescaling.
        std: per channel, after rescaling.
        rescale: factor of the grey levels.
        fused: whether mean and deviation are made those of the levels, in float32, as torchvision's processors do, and
            levels are not rescaled; what differs is the last bit.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float = 1 / 255
    fused: bool = False


class Request(NamedTuple):
    """The inputs of a front graph, inside the graph.

    Attributes:
        image: uint8 `[height, width, 3]`.
        pixels: float32 `[1, 3, height, width]` in 0..255.
        size: float32 `[2]`, height and width.
        scale: float32 `[1]`, per side.
        limit: int64 `[1]`, bound of the visual tokens.
    """

    image: ir.Value
    pixels: ir.Value
    size: ir.Value
    scale: ir.Value
    limit: ir.Value


class Answer(NamedTuple):
    """The outputs of a front graph, inside the graph; shapes as in `ImageRule.front`."""

    pixel_values: ir.Value
    image_ids: ir.Value
    grid: ir.Value
    used_scale: ir.Value
    overview: ir.Value | None = None


@dataclass(frozen=True)
class ImageRule(ABC):
    """Rule by which an image becomes pieces and token ids. Subclasses are plain data: numbers, strings and tuples."""

    kind: ClassVar[str]

    @property
    def ignores(self) -> tuple[tuple[str, str], ...]:
        """Inputs among "scale" and "max_visual_tokens" that change nothing, each with the reason."""
        return ()

    @property
    @abstractmethod
    def most_visual_tokens(self) -> int:
        """The bound of visual tokens that restricts no image: a package's default."""

    @property
    @abstractmethod
    def piece_shape(self) -> tuple[int, int] | None:
        """Height and width of every piece in pixels; None: they follow the image."""

    @property
    @abstractmethod
    def tokens_per_piece(self) -> int | None:
        """Visual tokens of a full piece; None: they follow the image."""

    @property
    def has_overview(self) -> bool:
        """Whether the front graph gives one more piece, of a shape of its own, whose visual tokens come last."""
        return False

    @property
    def pixels_per_token(self) -> int:
        """Pixels behind one visual token."""
        if self.piece_shape is None or self.tokens_per_piece is None:
            raise HvlcError("imaging.pieces", f"internal error: {self.kind} has pieces of any size", "please report it")
        height, width = self.piece_shape
        return height * width // self.tokens_per_piece

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Heights and widths in pixels of which a piece has one. Empty: pieces have one shape, or the image's."""
        return ()

    @abstractmethod
    def pieces(self, rows: int, columns: int) -> int:
        """Number of pieces of an image with this grid, without an overview."""

    def merged(self, b: GraphBuilder, features: ir.Value, grid: ir.Value, hidden: int) -> ir.Value:
        """Put the visual tokens of an image's pieces into the order of their placeholders: one piece after another.

        Args:
            b: the graph under construction.
            features: float32 `[pieces, tokens, hidden]`.
            grid: int64 `[2]`, as the front graph gives it.
            hidden: width of a visual token.

        Returns:
            float32 `[visual tokens, hidden]`.
        """
        return b.op("Reshape", features, b.ints(-1, hidden))

    @abstractmethod
    def answer(self, b: GraphBuilder, request: Request) -> Answer:
        """Build the rule's own part of the front graph."""

    def front(self) -> ir.Model:
        """Build the front graph.

        Inputs `image` uint8 `[height, width, 3]`, `scale` float32 `[1]` per side with 0 < scale <= 1,
        `max_visual_tokens` int64 `[1]`. Outputs `pixel_values` float32 `[pieces, 3, H, W]`; `image_ids` int64 `[n]`,
        every token that stands for the image in the prompt; `grid` int64 `[2]`, rows and columns (of visual tokens
        where the pieces join into one grid, else of tiles); `used_scale` float32 `[1]`; and, where the rule has one,
        `overview` float32 `[1, 3, h, w]`.

        A bound below the smallest form of an image cannot be obeyed: the front answers with that form, and whoever
        runs it counts the visual tokens.
        """
        b = GraphBuilder("front")
        image = b.input("image", ir.DataType.UINT8, ["height", "width", 3])
        scale = b.input("scale", ir.DataType.FLOAT, [1])
        limit = b.input("max_visual_tokens", ir.DataType.INT64, [1])
        planes = b.op("Unsqueeze", b.op("Transpose", image, perm=[2, 0, 1]), b.ints(0))  # of bytes: a quarter
        pixels = b.op("Cast", planes, to=FLOAT, name=PIXELS)
        size = b.op("Cast", b.op("Shape", image, start=0, end=2), to=FLOAT, name=SIZE)
        chosen = b.op("Identity", scale, name=CHOSEN_SCALE)
        found = self.answer(b, Request(image, pixels, size, chosen, limit))
        pieces = ["pieces", 3, *(self.piece_shape or ("piece_height", "piece_width"))]
        b.output(found.pixel_values, "pixel_values", ir.DataType.FLOAT, pieces)
        b.output(found.image_ids, "image_ids", ir.DataType.INT64, ["image_tokens"])
        b.output(found.grid, "grid", ir.DataType.INT64, [2])
        b.output(found.used_scale, "used_scale", ir.DataType.FLOAT, [1])
        if found.overview is not None:
            sides = ["overview_height", "overview_width"]
            b.output(found.overview, OVERVIEW, ir.DataType.FLOAT, [1, 3, *sides])
        return b.model()
