"""The one way to open an ONNX file that others made: a graph of bounded size, its external data not loaded."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from hvlc.errors import UserError
from hvlc.files.reading import GRAPH, map_file, open_file, shown
from hvlc.inputs.onnx_wire import WireError, graph_size

_MOST_MEMORY = 150_000_000  # bytes of a graph without its weights; public models take some 10 MB
_MOST_NODES = 50_000  # of a graph and everything inside it


def open_model(path: Path, area: str, fix: str = "name an ONNX file") -> onnx.ModelProto:
    """Read an ONNX file; nothing else is opened.

    Args:
        path: the file.
        area: first part of the error's code, as in "lint.model".
        fix: way out of the error.

    Raises:
        UserError: it is missing, not a regular file, too large, not an ONNX model, or has no graph.
    """
    code = f"{area}.model"
    open_file(path, code, limit=GRAPH, fix=fix).close()
    try:
        data = memoryview(map_file(path, code, fix=fix))  # not closed here: an error of protobuf still holds it
        graph_size(data, _MOST_MEMORY)
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, WireError) as error:
        reason = str(error) if isinstance(error, WireError) else "its encoding is damaged"
        raise UserError(code, f"{shown(path)} is not an ONNX model that can be read: {reason}", fix) from error
    if not model.graph.node and not model.graph.output:
        raise UserError(code, f"{shown(path)} is not an ONNX model: it has no graph", fix)
    nodes = sum(len(graph.node) for graph in graphs_of(model))
    if nodes > _MOST_NODES:
        raise UserError(code, f"{shown(path)} has {nodes} nodes, at most {_MOST_NODES} are read", fix)
    return model


def graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The graph of a model, its functions, and every graph that an attribute of their nodes holds."""
    yield from nested(model.graph)
    for function in model.functions:
        yield from nested(function)


def nested(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """A graph or function, and every graph below it; protobuf bounds the depth."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from nested(inner)


def domain_of(name: str) -> str:
    """The name of a domain of operators: ONNX's own has two."""
    return "" if name == "ai.onnx" else name


def versions_of(model: onnx.ModelProto | onnx.FunctionProto) -> dict[str, int]:
    """Version of each domain of operators that a model or a function states."""
    return {domain_of(one.domain): one.version for one in model.opset_import}


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that the attributes of a node hold."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
