"""Prune data files to the ranges that graphs still read, after other graphs have got data files of their own."""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import onnx

from hvlc.opening.graphs import load_graph, nested
from hvlc.opening.tensors import place_of

#: Layout of files in bytes, as in `hvlc.package.streaming`.
_LARGE, _PAGE, _ALIGNED = 1 << 20, 4096, 64
_BLOCK = 1 << 24

_Range = tuple[int, int]  # offset and length


def prune_data(directory: Path, graphs: Iterable[str], sources: Iterable[str]) -> None:
    """Keep in data files what some graphs read, and remove the files that none reads.

    Args:
        directory: the package.
        graphs: names of the ONNX files that are there to stay; their external data is renumbered.
        sources: names of the data files.

    Raises:
        UserError: a graph names data that is not there.
    """
    sizes = {name: (directory / name).stat().st_size for name in sources}
    models = {name: load_graph(directory / name) for name in graphs}
    models = {name: model for name, model in models.items() if data_files(model) & sizes.keys()}
    ranges: dict[str, set[_Range]] = defaultdict(set)
    for name, model in models.items():
        for tensor in _external_tensors(model, sizes):
            file, offset, length = place_of(name, tensor, sizes)
            ranges[file].add((offset, length))
    moved = {file: _cut(directory / file, ranges[file]) for file in sizes}
    for name, model in models.items():
        for tensor in _external_tensors(model, sizes):
            file, offset, length = place_of(name, tensor, sizes)
            place = {"location": file, "offset": moved[file][offset, length], "length": length}
            del tensor.external_data[:]
            tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in place.items())
        (directory / name).write_bytes(model.SerializeToString(deterministic=True))


def data_files(model: onnx.ModelProto) -> set[str]:
    """Names of the data files that a graph reads."""
    return {_location(tensor) for tensor in _stored(model) if tensor.data_location == onnx.TensorProto.EXTERNAL}


def _external_tensors(model: onnx.ModelProto, files: Container[str]) -> list[onnx.TensorProto]:
    """Initializers of a graph and its subgraphs that lie in some data files."""
    external = [tensor for tensor in _stored(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    return [tensor for tensor in external if _location(tensor) in files]


def _stored(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in nested(model.graph):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer


def _location(tensor: onnx.TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "").removeprefix("./")


def _cut(path: Path, ranges: set[_Range]) -> dict[_Range, int]:
    """Rewrite a file with these ranges alone; where each starts now."""
    moved: dict[_Range, int] = {}
    if not ranges:
        path.unlink()
        return moved
    cut = path.with_name(f".{path.name}")
    with path.open("rb") as source, cut.open("xb") as target:
        for offset, length in sorted(ranges):
            target.write(bytes(-target.tell() % (_PAGE if length >= _LARGE else _ALIGNED)))
            moved[offset, length] = target.tell()
            source.seek(offset)
            while length:
                block = source.read(min(length, _BLOCK))
                target.write(block)
                length -= len(block)
    cut.replace(path)
    return moved
