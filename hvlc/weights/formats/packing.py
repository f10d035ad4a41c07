"""Pack 4- and 8-bit integers into bytes: two nibbles a byte, low nibble first, as onnxruntime and ONNX store them."""

import numpy as np

_NIBBLE = 4


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` integers fill, the last byte perhaps half."""
    return -(-count * bits // 8)


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Packed last axis: uint8 `[..., packed_size(n, bits)]` of uint8 `[..., n]`; an odd nibble is followed by 0."""
    if bits != _NIBBLE:
        return values
    if values.shape[-1] % 2:
        values = np.pad(values, ((0, 0),) * (values.ndim - 1) + ((0, 1),))
    pairs = np.ascontiguousarray(values).view("<u2")
    return (pairs | pairs >> 4).astype(np.uint8)


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` integers of each packed row: uint8 `[..., count]`."""
    if bits != _NIBBLE:
        return packed[..., :count]
    pairs = np.stack([packed & 15, packed >> 4], -1)
    return pairs.reshape(*packed.shape[:-1], -1)[..., :count]


def sign_mask(bits: int) -> np.uint8:
    """Bits of a packed byte to invert between levels that are offset by `2 ** (bits - 1)` and two's complement."""
    return np.uint8(0x88 if bits == _NIBBLE else 0x80)
