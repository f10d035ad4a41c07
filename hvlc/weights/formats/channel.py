"""Per-channel format: one scale for all weights of an output channel."""

from dataclasses import dataclass

from hvlc.weights.formats.base import Stream, WeightFormat
from hvlc.weights.formats.block import SymmetricFormat


@dataclass(frozen=True)
class ChannelFormat(SymmetricFormat):
    """Symmetric levels in blocks as long as a row."""

    def shape(self, stream: Stream, matrix: tuple[int, int]) -> tuple[int, ...]:
        """One block a row.

        Raises:
            ValueError: rows have another length, or the format does not store the stream.
        """
        if matrix[1] != self.block_size:
            raise ValueError(f"{self} has one scale for rows of {self.block_size}, got rows of {matrix[1]}")
        return super().shape(stream, matrix)

    def in_blocks(self, size: int) -> WeightFormat:
        """Blocks, which no longer are rows."""
        return SymmetricFormat(self.bits, size, self.scale_type, self.negative_scales)
