"""Bytes of a package by component, file and weight, as tables and as JSON values."""

from collections import defaultdict
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hvlc.results.build import Contents, Piece

_NAMES = 3  # of the uses of a shared weight that a table shows


def contents_record(contents: Contents, top: int) -> dict[str, Any]:
    """Contents as JSON values: totals, the largest weights, every piece of every file."""
    files: dict[str, list[Piece]] = defaultdict(list)
    for piece in contents.pieces:
        files[piece.file].append(piece)
    return {
        "total_bytes": contents.total_bytes,
        "totals": [
            {"components": list(components), "content": content, "dtype": dtype, "bytes": size}
            for (components, content, dtype), size in _by_size(contents)
        ],
        "largest": [{"file": piece.file} | _piece(piece) for piece in contents.largest(top)],
        "files": [
            {"file": name, "bytes": sum(p.bytes for p in pieces), "pieces": [_piece(p) for p in pieces]}
            for name, pieces in files.items()
        ],
    }


def contents_tables(contents: Contents, top: int) -> Group:
    """Bytes by kind of content, and the largest weights."""
    totals = _table("component", "content", "dtype", "bytes", "share")
    for (components, content, dtype), size in _by_size(contents):
        share = f"{100 * size / contents.total_bytes:.1f} %"
        totals.add_row(Text(_joined(components)), content, dtype or "", f"{size:,}", share)
    totals.add_section()
    totals.add_row("total", "", "", f"{contents.total_bytes:,}", "100.0 %")
    shared = Text("bytes that several components read are counted once, under all of their names", style="dim")
    largest = _table("largest weights", "content", "bytes", "share")
    for piece in contents.largest(top):
        share = f"{100 * piece.bytes / contents.total_bytes:.1f} %"
        name = Text(_names(piece), overflow="fold").append(f"\n  in {_joined(piece.components)}", style="dim")
        largest.add_row(name, f"{piece.content}, {piece.dtype}", f"{piece.bytes:,}", share)
    return Group(totals, *([shared] if any(len(p.components) > 1 for p in contents.pieces) else []), largest)


def _by_size(contents: Contents) -> list[tuple[tuple[tuple[str, ...], Any, str | None], int]]:
    return sorted(contents.totals().items(), key=lambda item: (-item[1], item[0][0], item[0][1], item[0][2] or ""))


def _names(piece: Piece) -> str:
    """Names of the initializers that read a piece; an inlined component's copy has its name in front."""
    names = list(dict.fromkeys(use.initializer for use in piece.uses))
    names = [name for name in names if not any(name.endswith(f"/{other}") for other in names)]
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return "\n".join(names[:_NAMES]) + more


def _joined(components: tuple[str, ...]) -> str:
    return " + ".join(components)


def _piece(piece: Piece) -> dict[str, Any]:
    record: dict[str, Any] = {"bytes": piece.bytes, "content": piece.content}
    if piece.dtype:
        record["dtype"] = piece.dtype
    if piece.offset is not None:
        record["offset"] = piece.offset
    if piece.components:
        record["components"] = list(piece.components)
    if piece.uses:
        record["shared"] = len(piece.uses) > 1
        record["uses"] = [
            {"component": use.component, "initializer": use.initializer, "shape": list(use.shape)} for use in piece.uses
        ]
    return record


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("bytes", "share") else "left")
    return table
