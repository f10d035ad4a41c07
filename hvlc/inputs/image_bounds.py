"""Bounds of an image file's decoder: how much it reads, how often, and how many passes it takes.

Sizes in pixels bound the result. These bounds are for files whose headers cost more than their pixels: thousands of
tags that name the same bytes, comments that are joined one by one, strips without number, scans that are drawn over
each other.
"""

import os
import re
import struct
from typing import BinaryIO

_MOST_READS = 2_000_000  # of one file; decoders ask for 64 kB at a time, parsers of headers for a few bytes
_MOST_STRIPS = 300_000  # of a TIFF: each is an object; the highest image has 80 million pixels in rows of 300
_MOST_SCANS = 40  # of a JPEG: encoders write 3 to 12, and each is a pass over the image
_MOST_RLE = 10_000_000  # bytes of a BMP in runs, which Pillow decodes in Python
#: Bytes that may be read before the size is known, by the first bytes of the file: Pillow joins the metadata of JPEG
#: (segments of 64 kB) and GIF (blocks of 255 bytes) piece by piece. Others read a byte a few times at most.
_MOST_TIMES = 4
_MOST_HEADER = {b"\xff\xd8": 64_000_000, b"GI": 2_000_000}
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_EOI, _SOS = 0xD9, 0xDA
_STRIPS, _TILES = 273, 324  # TIFF 6.0: StripOffsets, TileOffsets
#: Bytes of a value of each type that has more than one: TIFF 6.0, section 2, and BigTIFF's.
_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


class BoundedReader:
    """A file as Pillow reads it, which ends with an OSError when it is read too much.

    Args:
        file: that is read.

    Attributes:
        in_header: whether the size of the image is still unknown.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = os.fstat(file.fileno()).st_size
        self._left = _MOST_HEADER.get(file.read(2), _MOST_TIMES * size)
        self._reads = _MOST_READS
        self.in_header = True
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """The next bytes.

        Raises:
            OSError: the file was read too often, or its header is too long.
        """
        found = self._file.read(size)
        self._reads -= 1
        if self.in_header:
            self._left -= len(found)
        if self._reads < 0 or self._left < 0:
            raise OSError("its metadata has too many parts" if self._reads < 0 else "its metadata is too long")
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move as files do."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._file.tell()

    def fileno(self) -> int:
        """Descriptor, for libtiff."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_passes(file: BinaryIO) -> None:
    """Refuse a JPEG of too many scans, a TIFF of too many strips, and a long BMP in runs; others pass.

    Args:
        file: at any position; left at its beginning.

    Raises:
        ValueError: what was found.
        struct.error: a TIFF ends within its directory.
    """
    file.seek(0)
    start = file.read(34)
    if start.startswith(b"\xff\xd8"):
        _check_scans(file)
    elif start[:2] in (b"II", b"MM") and start[2:4] in (b"*\0", b"\0*", b"+\0", b"\0+"):
        _check_tags(file, start)
    elif start.startswith(b"BM") and start[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_RLE:
            raise ValueError(f"a run-length encoded BMP of {size} bytes, and {_MOST_RLE} are the most")
    file.seek(0)


def _check_scans(file: BinaryIO) -> None:
    file.seek(0)
    content = file.read()
    at, scans = 2, 0
    while (found := _MARKER.search(content, at)) is not None:
        marker = found[1][0]
        if marker == _EOI:
            return
        scans += marker == _SOS
        if scans > _MOST_SCANS:
            raise ValueError(f"a JPEG of more than {_MOST_SCANS} scans")
        # Every other marker but TEM is followed by its length, which counts itself.
        at = found.end() + (0 if marker == 0x01 else int.from_bytes(content[found.end() : found.end() + 2], "big"))


def _check_tags(file: BinaryIO, start: bytes) -> None:
    """Hold the first directory of a TIFF or BigTIFF against the file: its values are all read, and each strip costs."""
    order = "<" if start.startswith(b"II") else ">"
    big = b"+" in start[2:4]
    where, count, entry = (order + kind for kind in (("Q", "Q", "HHQQ") if big else ("L", "H", "HHLL")))
    file.seek(struct.unpack_from(where, start, 8 if big else 4)[0])
    entries = struct.unpack(count, file.read(struct.calcsize(count)))[0]
    size, total = os.fstat(file.fileno()).st_size, 0
    for _ in range(min(entries, 65_535)):
        tag, kind, values, _ = struct.unpack(entry, file.read(struct.calcsize(entry)))
        if tag in (_STRIPS, _TILES) and values > _MOST_STRIPS:
            raise ValueError(f"a TIFF of {values} strips or tiles, and {_MOST_STRIPS} are the most")
        inline = 8 if big else 4
        needed = _SIZES.get(kind, 1) * values
        total += needed if needed > inline else 0
        if total > size:
            raise ValueError(f"a TIFF of {size} bytes whose tags have more")
