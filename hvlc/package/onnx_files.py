"""Components to ONNX files with external data, every tensor evaluated, written and dropped in turn."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from hvlc.bundle import STORAGE, Bundle, Component

_INLINE_BYTES = 1024  # smaller tensors stay in the ONNX file: onnxruntime cannot load shape constants from outside
_PAGE = 4096
_ALIGN_LARGE, _LARGE = _PAGE, 1 << 20


@dataclass
class _DataFile:
    """One external data file; remembers where each stored tensor lies."""

    path: Path
    file: BinaryIO
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def place(self, tensor: ir.TensorProtocol) -> tuple[int, int]:
        """Offset and length of the tensor, written on first sight."""
        key = tensor.metadata_props.get(STORAGE) or f"id:{id(tensor)}"
        if key not in self.places:
            data = tensor.tobytes()
            self.places[key] = (self._aligned(len(data)), len(data))
            self.file.write(data)
        return self.places[key]

    def _aligned(self, length: int) -> int:
        position = self.file.tell()
        padding = -position % (_ALIGN_LARGE if length >= _LARGE else 64)
        self.file.write(b"\0" * padding)
        return position + padding


def write_components(bundle: Bundle, directory: Path) -> dict[str, str]:
    """Write every component; those of one data group share one `GROUP.onnx.data`.

    Returns:
        File name of each component.
    """
    files = {}
    groups: dict[str, list[Component]] = {}
    for component in bundle.components.values():
        groups.setdefault(component.data_group, []).append(component)
    for group, components in groups.items():
        path = directory / f"{group}.onnx.data"
        with path.open("wb") as handle:
            data = _DataFile(path, handle)
            for component in components:
                files[component.name] = _write(component, directory, data)
        if not path.stat().st_size:
            path.unlink()
    return files


def _write(component: Component, directory: Path, data: _DataFile) -> str:
    """Write one component's graph, its large tensors into the data file."""
    name = f"{component.name}.onnx"
    kept = {}
    for value in _initializers(component.graph):
        tensor = value.const_value
        if tensor is None:
            continue
        kept[value] = tensor
        if tensor.nbytes < _INLINE_BYTES:
            value.const_value = ir.Tensor(
                tensor.numpy(), dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name
            )
        else:
            offset, length = data.place(tensor)
            value.const_value = ir.ExternalTensor(
                data.path.name,
                offset,
                length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=str(value.name),
                base_dir=directory,
            )
    try:
        onnx.save_model(ir.to_proto(component.model), directory / name)
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor
    return name


def _initializers(graph: ir.Graph) -> list[ir.Value]:
    """Initializers of a graph and of all its subgraphs."""
    found = list(graph.initializers.values())
    for node in graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                found += list(attribute.as_graph().initializers.values())
    return found
