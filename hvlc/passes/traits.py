"""Traits: named properties of a bundle that one pass establishes and another requires."""

from enum import StrEnum


class Trait(StrEnum):
    """Something that holds for a bundle between two passes; the value is how an error names it."""

    #: The front graph makes tiles of an image.
    FRONT_GRAPH = "a front graph"
    #: The front graph has the image as float pixels and its size, under names, whether its rule reads them or not.
    FRONT_PIXELS = "pixels in the front graph"
    #: Visual tokens reach the embedding through wires; so they do in a model that takes no images.
    WIRED_TOKENS = "wired visual tokens"
    #: No other graph holds a copy of a vision encoder.
    SEPARATE_ENCODERS = "separate encoders"
    #: No weight has been quantized.
    FLOAT_WEIGHTS = "float weights"
    #: No factors of channels have been folded in.
    UNSCALED_CHANNELS = "unscaled channels"
    #: Every weight that the plan quantizes is quantized.
    QUANTIZED_WEIGHTS = "quantized weights"
    #: The decoder is one component, under the name by which the plan knows it.
    WHOLE_DECODER = "a whole decoder"
    #: The look-up of tokens, the transformer and the head are components of their own.
    DECODER_PARTS = "decoder parts"
    #: The decoder computes hidden states and logits of every position.
    ALL_POSITIONS = "all positions"
    #: Sequence lengths are inputs; no attention mask is.
    HOST_LENGTHS = "lengths from the host"
    #: No attention has a window that the KV cache fits into.
    NARROW_WINDOWS = "narrow windows"
    #: The embedding looks tokens up and does nothing else.
    PLAIN_LOOKUP = "a plain look-up"
    #: Each attention of the decoder is one GroupQueryAttention node.
    GROUP_ATTENTION = "grouped-query attention"
    #: Attention is written in standard operators.
    DECOMPOSED_ATTENTION = "decomposed attention"
    #: Inputs have symbolic dimensions.
    SYMBOLIC_SHAPES = "symbolic shapes"
    #: Inputs and outputs have static shapes where the target asks for them.
    STATIC_SHAPES = "static shapes"
    #: The graphs compute from their inputs what depends on the shapes of these; nothing is written as a number.
    COMPUTED_SHAPES = "computed shapes"
    #: Every value has its type and, as far as it is static, its shape.
    INFERRED_SHAPES = "inferred shapes"
    #: Every Reshape names each dimension.
    EXPLICIT_RESHAPES = "explicit reshapes"
    #: The opset has the standard norms and the standard rotary embedding, or no node needs them.
    LATE_OPSET = "a late opset"


#: Traits of a bundle that was just exported, apart from WIRED_TOKENS.
EXPORTED = frozenset(
    {
        Trait.SEPARATE_ENCODERS,
        Trait.FLOAT_WEIGHTS,
        Trait.UNSCALED_CHANNELS,
        Trait.WHOLE_DECODER,
        Trait.GROUP_ATTENTION,
        Trait.SYMBOLIC_SHAPES,
        Trait.COMPUTED_SHAPES,
    }
)
