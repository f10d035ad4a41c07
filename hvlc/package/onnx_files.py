"""Write components as ONNX files with external data: first the layout, then the graphs, then the bytes."""

from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir

from hvlc.graphs.bundle import Bundle, Component
from hvlc.package.streaming import Layout, QuantizedUnit, Written, check_finite, unit_of, write_data
from hvlc.weights.lazy import expression_of

_INLINE_BYTES = 1024  # smaller tensors stay in the ONNX file: onnxruntime cannot load shape constants from outside


def data_file(group: str) -> str:
    """Name of the external data file of a data group."""
    return f"{group}.onnx.data"


def write_components(
    bundle: Bundle, directory: Path, threads: int, written: Written
) -> tuple[dict[str, str], dict[str, str]]:
    """Write every component; those of one data group share one `GROUP.onnx.data`.

    Args:
        bundle: the finished components.
        directory: where to write.
        threads: how many evaluate weights.
        written: told the bytes of external data written so far.

    Returns:
        File name of each component, and hex SHA-256 of each data file.

    Raises:
        UserError: a weight is not finite.
    """
    files: dict[str, str] = {}
    layouts: dict[str, Layout] = {}
    for component in bundle.components.values():
        layout = layouts.setdefault(component.data_group, Layout())
        files[component.name] = _write_graph(component, directory, layout)
    digests: dict[str, str] = {}
    before = 0
    for group, layout in layouts.items():
        if layout.total:
            path = directory / data_file(group)
            digests[path.name] = write_data(path, layout, threads, partial(_add, written, before))
            before += layout.total
    return files, digests


def _add(written: Written, before: int, done: int) -> None:
    written(before + done)


def _write_graph(component: Component, directory: Path, layout: Layout) -> str:
    """Write one component's graph; its large tensors get a place in the layout."""
    name = f"{component.name}.onnx"
    kept = {}
    for value in initializers(component.graph):
        tensor = value.const_value
        if tensor is None:
            continue
        kept[value] = tensor
        expression, dims = expression_of(tensor), ir.Shape(tensor.shape.numpy())
        if is_inline(tensor):
            values = check_finite(tensor.numpy(), expression)
            value.const_value = ir.Tensor(values, dtype=tensor.dtype, shape=dims, name=value.name)
        else:
            offset, length = layout.add(expression)
            value.const_value = ir.ExternalTensor(
                data_file(component.data_group), offset, length, tensor.dtype, shape=dims, name=str(value.name)
            )
    try:
        onnx.save_model(ir.to_proto(component.model), directory / name)
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor
    return name


def is_inline(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor stays in its graph's file.

    A small stream of a quantized matrix does not: it lies in the data file anyway, with the rest of its unit.
    """
    return tensor.nbytes < _INLINE_BYTES and not isinstance(unit_of(expression_of(tensor))[0], QuantizedUnit)


def initializers(graph: ir.Graph) -> list[ir.Value]:
    """Initializers of a graph and of all its subgraphs."""
    found = list(graph.initializers.values())
    for node in graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                found += list(attribute.as_graph().initializers.values())
    return found
