"""Graphs of a package that are read, changed, and run from memory; their weights stay where they are."""

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from hvlc.errors import UserError
from hvlc.opening.graphs import load_graph
from hvlc.opening.sessions import PackageSession, running, said
from hvlc.opening.tensors import damaged

#: Session option: folder of the external data of a graph that is given as bytes.
_FOLDER = "session.model_external_initializers_file_folder_path"


def session_of(file: str, model: ir.Model, folder: Path, options: ort.SessionOptions) -> PackageSession:
    """A session on a graph that was read and changed.

    Args:
        file: of the graph, for messages.
        model: the graph.
        folder: where its external data lies (`load_ir`).
        options: of the session.

    Raises:
        SessionError: onnxruntime refuses the graph.
    """
    options.add_session_config_entry(_FOLDER, str(folder))
    with running(file):
        serialized = ir.to_proto(model).SerializeToString()
    return PackageSession(file, serialized, options, ["CPUExecutionProvider"])


def load_ir(path: Path) -> tuple[ir.Model, Path]:
    """A graph of a package for cutting, and the folder of its weights, which stay there.

    In the hub's cache a graph's data is beside it under another name: links are followed, because neither onnx_ir nor a
    session on a graph in memory does.

    Raises:
        UserError: it cannot be read.
    """
    folder = path.resolve().parent
    proto = load_graph(path)
    try:
        model = ir.from_proto(proto)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:  # onnx_ir's are RuntimeErrors
        raise damaged(path.name, f"it cannot be read: {said(error)}") from error
    for value in _initializers(model.graph):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            place = (path.parent / tensor.location).resolve()
            if place.parent != folder:
                cause = f"{path.name} lies in {folder}, and its data in {place.parent}, where onnxruntime does not look"
                raise UserError("package.place", cause, "copy the package with `cp -rL`")
            value.const_value = ir.ExternalTensor(
                place.name,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=str(tensor.name),
                base_dir=folder,
            )
    return model, folder


def _initializers(graph: ir.Graph) -> Iterator[ir.Value]:
    """Initializers of a graph and of its subgraphs."""
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from attribute.as_graph().initializers.values()
