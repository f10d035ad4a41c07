"""Block-wise integer weights as numbers, and as onnxruntime's packed bytes."""

from dataclasses import dataclass

import numpy as np

from hvlc.plan import ScaleType, WeightFormat


@dataclass(frozen=True)
class Levels:
    """A quantized matrix.

    Attributes:
        levels: unsigned levels uint8 `[out, blocks, block_size]`, 0 to `2**bits - 1`.
        scales: float32 `[out, blocks]`, already rounded to the stored scale type.
        zero_points: uint8 `[out, blocks]`, or None for `2**(bits - 1)` everywhere.
        format: what they are.
    """

    levels: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    format: WeightFormat

    def dequantize(self, in_features: int) -> np.ndarray:
        """float32 `[out, in_features]`: `(level - zero point) * scale`, padding dropped."""
        zero = (
            2 ** (self.format.bits - 1) if self.zero_points is None else self.zero_points[..., None].astype(np.float32)
        )
        values = (self.levels.astype(np.float32) - zero) * self.scales[..., None]
        return values.reshape(values.shape[0], -1)[:, :in_features]

    def packed(self) -> np.ndarray:
        """uint8 `[out, blocks, block_size * bits / 8]`, low nibble first (com.microsoft.MatMulNBits, input B)."""
        return _pack(self.levels, self.format.bits)

    def stored_scales(self) -> np.ndarray:
        """`[out, blocks]` in the stored scale type."""
        return self.scales.astype(np.float16 if self.format.scale_type is ScaleType.FLOAT16 else np.float32)


def _pack(levels: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return levels
    return levels[..., 0::2] | (levels[..., 1::2] << 4)


def blocked(weight: np.ndarray, block_size: int) -> np.ndarray:
    """float32 `[out, in]` to `[out, blocks, block_size]`, the last block padded with zeros."""
    rows, columns = weight.shape
    missing = -columns % block_size
    padded = np.pad(weight, ((0, 0), (0, missing))) if missing else weight
    return padded.reshape(rows, -1, block_size)


def rounded_scales(scales: np.ndarray, scale_type: ScaleType) -> np.ndarray:
    """float32 scales as they will be read back; none becomes zero or infinite by rounding to float16."""
    if scale_type is ScaleType.FLOAT32:
        return scales.astype(np.float32)
    limits = np.finfo(np.float16)
    magnitude = np.clip(np.abs(scales), float(limits.smallest_subnormal), float(limits.max))
    return np.copysign(magnitude, scales).astype(np.float16).astype(np.float32)
