"""Dimensions and parts of a decoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FusedRows:
    """Rows of a projection that is stored inside a fused one.

    Attributes:
        name: of the fused projection.
        start: first row of this one.
        total: rows of all of it.
    """

    name: str
    start: int
    total: int


@dataclass(frozen=True)
class Multipliers:
    """Constant factors in a decoder (Granite, Gemma).

    Attributes:
        embedding: of what enters the first layer.
        tokens: of the rows that tokens look up, visual tokens excepted.
        residual: of what attention and MLP add to the residual stream.
        attention: of the products of queries and keys; None: one by the root of the head's width.
        logits: divisor of the logits.
    """

    embedding: float = 1.0
    tokens: float = 1.0
    residual: float = 1.0
    attention: float | None = None
    logits: float = 1.0


@dataclass(frozen=True)
class LayerNorms:
    """Names of a layer's norms, as checkpoints store them.

    Attributes:
        attention: of what attention reads; passes find the beginning of a layer by this name.
        mlp: of what the MLP reads.
        attended: of what attention adds to the residual stream. None: it is added as it is.
        transformed: of what the MLP adds to it. None: it is added as it is.
    """

    attention: str = "input_layernorm"
    mlp: str = "post_attention_layernorm"
    attended: str | None = None
    transformed: str | None = None


@dataclass(frozen=True)
class GridPositions:
    """Positions in three axes, time, row and column, of which each pair of a head's channels turns by one (M-RoPE).

    Attributes:
        axes: for each of the `head_size / 2` angles, which axis: 0, 1 or 2.
    """

    axes: tuple[int, ...]

    @classmethod
    def sectioned(cls, sections: tuple[int, int, int]) -> "GridPositions":
        """One axis after another (Qwen2-VL, arXiv 2409.12191)."""
        return cls(tuple(axis for axis, size in enumerate(sections) for _ in range(size)))

    @classmethod
    def interleaved(cls, sections: tuple[int, int, int], angles: int) -> "GridPositions":
        """Axes in turns, and time where rows and columns have no more (Qwen3-VL, arXiv 2511.21631).

        Args:
            sections: angles of each axis.
            angles: of a head.
        """
        axes = [0] * angles
        for axis in (1, 2):
            for at in range(axis, min(3 * sections[axis], angles), 3):
                axes[at] = axis
        return cls(tuple(axes))


@dataclass(frozen=True)
class ShortConvolution:
    """Layers that mix positions by a short convolution instead of attention (LFM2).

    Attributes:
        layers: their indices.
        length: positions that the kernel reads, the token's own included.
    """

    layers: frozenset[int]
    length: int


@dataclass(frozen=True)
class DecoderShape:
    """Dimensions and parts of a decoder.

    Attributes:
        layers: number of layers.
        hidden: model width.
        intermediate: width of the gated MLP.
        heads: query heads.
        kv_heads: key/value heads.
        head_size: width of one head.
        vocabulary: rows of the embedding.
        epsilon: of the RMS norms.
        context: longest sequence in tokens.
        rotary: for each layer, whether it rotates queries and keys; a NoPE layer does not.
        windows: for each layer, how many positions a token sees, itself included; None for all before it.
        biases: names of the projections that add a bias.
        head_norms: whether queries and keys are normalized per head (Qwen3).
        fused: for each projection that is stored in a fused one, where (Phi3).
        neighbours: whether channels 2i and 2i + 1 of a stored head rotate together, not i and i + half (ERNIE).
        multipliers: constant factors (Granite, Gemma).
        norms: of a layer, by their names.
        offset_gains: whether the gain of every norm is stored as its offset from 1 (Gemma).
        activation: of the gated MLP, by its usual name in transformers.
        rotary_kinds: for each layer, the kind of layers whose rotary tables it reads (Gemma 3); (): all read the same.
        grid_positions: positions in three axes, that the decoder is given; None: those of the sequence (Qwen-VL).
        taps: how many first layers add features of the image after them (DeepStack, arXiv 2406.04334); they come
            as channels of the embeddings behind those of the residual stream.
        convolution: layers without attention (LFM2). None: every layer has one.
        image_blocks: whether the visual tokens of an image see each other, those that follow too (Gemma 3); they have
            a 1 in one more channel of the embeddings, after those of the taps.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    epsilon: float
    context: int
    rotary: tuple[bool, ...]
    windows: tuple[int | None, ...]
    biases: frozenset[str] = frozenset()
    head_norms: bool = False
    fused: Mapping[str, FusedRows] = field(default_factory=dict)
    neighbours: bool = False
    multipliers: Multipliers = Multipliers()
    norms: LayerNorms = LayerNorms()
    offset_gains: bool = False
    activation: str = "silu"
    rotary_kinds: tuple[str, ...] = ()
    grid_positions: GridPositions | None = None
    taps: int = 0
    convolution: ShortConvolution | None = None
    image_blocks: bool = False

    @property
    def side_channels(self) -> int:
        """Channels of the embeddings that are not of the residual stream."""
        return self.taps * self.hidden + self.image_blocks

    def convolves(self, layer: int) -> bool:
        """Whether a layer has a short convolution in the place of its attention."""
        return self.convolution is not None and layer in self.convolution.layers
