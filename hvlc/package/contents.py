"""Account for every byte of a package, from its graphs alone.

The graphs are untrusted: their references to external data are checked against the files first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.opening.graphs import Body, load_graph, nested, stored_tensors
from hvlc.opening.tensors import dtype_of, place_of
from hvlc.results.build import Content, Contents, Piece, Use

_LEVELS_SCALES_ZEROS = (Content.LEVELS, Content.SCALES, Content.ZERO_POINTS)
#: Operators that read quantized weights, and the inputs with levels, scales and zero points.
_QUANTIZED = {
    "MatMulNBits": (1, 2, 3),
    "GatherBlockQuantized": (0, 2, 3),
    "DequantizeLinear": (0, 1, 2),
    "MatMulIntegerToFloat": (1, 3),
}
#: Operators whose output is their first input in another form: what reads it reads the weight.
_FORMS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Split"})
_LARGEST_GAP = 4096  # that aligning a tensor leaves; more is data that no graph names
_TOKENIZER = ("tokenizer", "special_tokens_map", "chat_template", "added_tokens", "vocab", "merges")


@dataclass
class _Range:
    """A stretch of a data file as one or more initializers name it."""

    content: Content
    dtype: str
    uses: list[Use] = field(default_factory=list)


_Ranges = dict[str, dict[tuple[int, int], _Range]]  # by file, then by offset and length


def contents_of(directory: Path, manifest: Manifest) -> Contents:
    """Attribute every byte of the package's files.

    Args:
        directory: the package.
        manifest: of it.

    Raises:
        UserError: a file is missing, lies outside the package, or is not a graph; or a graph names data that is not
            there.
    """
    sizes = file_sizes(directory, manifest)
    component_of = {entry.file: name for name, entry in manifest.components.items()}
    ranges: _Ranges = {}
    inside: dict[str, list[Piece]] = {}
    for name in (name for name in sizes if name.endswith(".onnx")):
        inside[name] = _graph(directory / name, component_of.get(name, name), sizes, ranges)
    compiled: dict[str, set[str]] = {}
    for name, entry in manifest.components.items():
        if entry.compiled:
            compiled.setdefault(entry.compiled.binary, set()).add(name)
    pieces: list[Piece] = []
    for name, size in sizes.items():
        if name in inside:
            pieces += inside[name]
        elif name in ranges:
            pieces += _data(name, size, ranges[name])
        elif name in compiled:
            pieces.append(Piece(name, size, Content.COMPILED, components=tuple(sorted(compiled[name]))))
        else:
            pieces.append(Piece(name, size, _plain(name)))
    return Contents(tuple(piece for piece in pieces if piece.bytes or piece.uses))


def file_sizes(directory: Path, manifest: Manifest) -> dict[str, int]:
    """Size of every file of the package, its manifest last.

    Raises:
        UserError: one is missing or lies outside the package.
    """
    manifest.locate(directory)
    return {name: (directory / name).stat().st_size for name in (*manifest.files, MANIFEST)}


def _plain(name: str) -> Content:
    """Kind of content of a file without a graph."""
    if name.startswith(_TOKENIZER):
        return Content.TOKENIZER
    return Content.UNUSED if name.endswith(".data") else Content.CONFIGURATION


def _graph(path: Path, component: str, sizes: Mapping[str, int], ranges: _Ranges) -> list[Piece]:
    """The pieces of one graph file; what it names in data files goes into `ranges`."""
    model = load_graph(path)
    graphs = [graph for body in (model.graph, *model.functions) for graph in nested(body)]
    read: dict[str, tuple[Content, str]] = {}
    aliases: dict[str, str] = {}
    for graph in graphs:
        _note_reads(graph, aliases, read)
    pieces: list[Piece] = []
    for tensor in (tensor for graph in graphs for tensor in stored_tensors(graph)):
        dtype = dtype_of(path.name, tensor)
        kind = Content.FLOATS if "float" in dtype or dtype == "double" else Content.OTHER
        content, width = read.get(tensor.name, (kind, dtype))
        if content in (Content.LEVELS, Content.ZERO_POINTS):  # packed into bytes
            dtype = width
        use = Use(component, tensor.name, tuple(tensor.dims))
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            file, offset, length = place_of(path.name, tensor, sizes)
            ranges.setdefault(file, {}).setdefault((offset, length), _Range(content, dtype)).uses.append(use)
        else:
            size = len(tensor.raw_data)
            pieces.append(Piece(path.name, size, content, dtype, None, (use,), (component,)))
    rest = sizes[path.name] - sum(piece.bytes for piece in pieces)
    return [*pieces, Piece(path.name, rest, Content.GRAPH, components=(component,))]


def _note_reads(graph: Body, aliases: dict[str, str], read: dict[str, tuple[Content, str]]) -> None:
    """Note the values of a graph that are read as levels, scales and zero points, and how wide a level is."""
    for node in graph.node:
        if node.op_type in _FORMS and node.input:
            source = aliases.get(node.input[0], node.input[0])
            aliases |= dict.fromkeys(node.output, source)
        bits = next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)
        bits = 8 if node.op_type == "MatMulIntegerToFloat" else bits  # which has no such attribute
        for position, content in zip(_QUANTIZED.get(node.op_type, ()), _LEVELS_SCALES_ZEROS, strict=False):
            if position < len(node.input):
                name = node.input[position]
                read[aliases.get(name, name)] = (content, f"int{bits}")


def _data(name: str, size: int, ranges: Mapping[tuple[int, int], _Range]) -> list[Piece]:
    """The pieces of a data file; bytes that two overlapping ranges name count for the first."""
    pieces: list[Piece] = []
    position = 0
    for offset, length in sorted(ranges, key=lambda place: (place[0], -place[1])):
        if offset > position:
            pieces.append(_gap(name, position, offset))
        found = ranges[offset, length]
        start = max(offset, position)
        position = max(position, offset + length)
        components = tuple(sorted({use.component for use in found.uses}))
        piece = Piece(name, position - start, found.content, found.dtype, start, tuple(found.uses), components)
        pieces.append(piece)
    return [*pieces, _gap(name, position, size)]


def _gap(name: str, start: int, stop: int) -> Piece:
    content = Content.PADDING if stop - start < _LARGEST_GAP else Content.UNUSED
    return Piece(name, stop - start, content, offset=start)
