"""Figures as the bytes of image files; the same numbers give the same bytes."""

import io
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure


def rendered(figure: Figure, files: Iterable[Path]) -> dict[Path, list[bytes]]:
    """The content of an image file for each path, in the format of its suffix."""
    found = {}
    for file in files:
        buffer, kind = io.BytesIO(), file.suffix.removeprefix(".")
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        found[file] = [buffer.getvalue()]
    return found
