"""Formats of quantized weights, one class each. `weight_format` chooses the class; no other code tests for one."""

from enum import StrEnum

from hvlc.weights.formats.base import Levels, ScaleType, Stream, WeightFormat
from hvlc.weights.formats.block import AsymmetricFormat, SymmetricFormat
from hvlc.weights.formats.channel import ChannelFormat
from hvlc.weights.formats.float_zeros import FloatZeroFormat
from hvlc.weights.formats.integer_product import LARGEST as LARGEST_LEVEL
from hvlc.weights.formats.integer_product import LARGEST_PAIR, IntegerProductFormat, largest_pair
from hvlc.weights.formats.lpbq import BITS as _LPBQ_BITS
from hvlc.weights.formats.lpbq import LARGEST as LPBQ_LARGEST
from hvlc.weights.formats.lpbq import LpbqFormat

__all__ = [
    "LARGEST_LEVEL",
    "LARGEST_PAIR",
    "LPBQ_LARGEST",
    "Levels",
    "ScaleType",
    "Stream",
    "WeightFormat",
    "ZeroType",
    "largest_pair",
    "scale_type_at",
    "stored_name",
    "weight_format",
]

_CLASSES: tuple[type[WeightFormat], ...] = (SymmetricFormat, AsymmetricFormat, FloatZeroFormat, LpbqFormat)


class ZeroType(StrEnum):
    """Element type of the zero points: integers as wide as a level, or any float."""

    INTEGER = "integer"
    FLOAT = "float"


def weight_format(
    bits: int,
    block_size: int,
    symmetric: bool = True,
    scale_type: ScaleType = ScaleType.FLOAT16,
    negative_scales: bool = True,
    zero_type: ZeroType = ZeroType.INTEGER,
    *,
    per_channel: bool = False,
    integer_product: bool = False,
) -> WeightFormat:
    """The format that a recipe or a checkpoint describes.

    Args:
        bits: width of a level.
        block_size: input channels that share one scale.
        symmetric: whether there are no zero points.
        scale_type: how the scales are stored.
        negative_scales: whether a scale may be negative; LPBQ's may not.
        zero_type: element type of the zero points, where there are any.
        per_channel: whether a block is a row.
        integer_product: whether its product rounds the inputs to 8 bits as it runs.

    Raises:
        ValueError: products of integers are for 8 bits per channel without zero points, LPBQ for 4 bits in blocks
            without zero points or negative scales.
    """
    if integer_product:
        if not per_channel or not symmetric:
            raise ValueError("products: int8 is for 8 bits per channel without zero points")
        return IntegerProductFormat(bits, block_size, scale_type, negative_scales)
    if scale_type is ScaleType.LPBQ:
        if bits != _LPBQ_BITS or per_channel or not symmetric:
            raise ValueError("scale_type lpbq is for 4 bits in blocks without zero points")
        if negative_scales:
            raise ValueError("scale_type lpbq has no negative scales")
        return LpbqFormat(block_size)
    if not symmetric:
        kind = AsymmetricFormat if zero_type is ZeroType.INTEGER else FloatZeroFormat
        return kind(bits, block_size, scale_type, negative_scales)
    return (ChannelFormat if per_channel else SymmetricFormat)(bits, block_size, scale_type, negative_scales)


def scale_type_at(bits: int, asked: ScaleType) -> ScaleType:
    """The scale type that takes the place of the one asked for at another width: LPBQ has no other than 4 bits."""
    return ScaleType.FLOAT32 if asked is ScaleType.LPBQ and bits != _LPBQ_BITS else asked


def stored_name(bits: int, block: str, extra: tuple[Stream, ...], scale_dtype: str) -> str:
    """The name of a format, read from what a package stores.

    Args:
        bits: width of a level.
        block: what shares a scale, as `WeightFormat.spelled` takes it.
        extra: what is stored beside levels and scales.
        scale_dtype: ONNX's name of the scales' element type, e.g. "float16".
    """
    kind = next(found for found in _CLASSES if found.extra == extra)
    return kind.spelled(bits, block, {"float16": "f16", "float": "f32"}.get(scale_dtype, scale_dtype))
