"""Rules whose pieces are square tiles."""

from hvlc.imaging.rule import ImageRule


class SquareTiles(ImageRule):
    """Tiles of one size, row by row, and the whole image as one more where there are several.

    Both attributes are fields of the rules themselves, each in its own order.

    Attributes:
        tile_size: side of a tile in pixels.
        tile_tokens: visual tokens of a tile.
    """

    tile_size: int
    tile_tokens: int

    @property
    def piece_shape(self) -> tuple[int, int]:
        return self.tile_size, self.tile_size

    @property
    def tokens_per_piece(self) -> int:
        return self.tile_tokens

    def pieces(self, rows: int, columns: int) -> int:
        """Tiles, and the whole image where there are several."""
        return rows * columns + (rows * columns > 1)
