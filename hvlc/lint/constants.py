"""Small constants of a graph: scales, zero points, indices. Large ones are never read."""

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from hvlc.errors import UserError

_LARGEST = 1 << 20  # bytes; scales and norms are smaller, matrices larger


class Constants:
    """The initializers of a graph and what Constant nodes hold, read when they are asked for.

    Args:
        graph: the graph, external data not loaded.
        directory: where its external data lies.
    """

    def __init__(self, graph: onnx.GraphProto, directory: Path) -> None:
        self._directory = directory
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and not node.domain:
                for attribute in node.attribute:
                    if attribute.HasField("t"):
                        self._tensors[node.output[0]] = attribute.t

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> onnx.TensorProto | None:
        """A constant as the file has it."""
        return self._tensors.get(name)

    def values(self, name: str) -> np.ndarray | None:
        """A constant's values; None when there is no such constant, or it is larger than a mebibyte.

        Raises:
            UserError: its data lies outside the model's directory, or is not there.
        """
        tensor = self._tensors.get(name)
        if tensor is None or math.prod(tensor.dims) * 8 > 8 * _LARGEST:
            return None
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor = self._loaded(tensor)
        return numpy_helper.to_array(tensor)

    def _loaded(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = self._directory / entries.get("location", "")
        if path.resolve().parent != self._directory.resolve():
            cause = f"{tensor.name!r} reads {entries.get('location')!r} from outside the model's directory"
            raise UserError("lint.escape", cause, "do not trust this model")
        copied = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        try:
            with path.open("rb") as file:
                file.seek(int(entries.get("offset", 0)))
                copied.raw_data = file.read(int(entries.get("length", -1)))
        except (OSError, ValueError) as error:
            cause = f"{tensor.name!r}: cannot read {path.name}: {error}"
            raise UserError("lint.data", cause, "copy the model together with its data") from error
        return copied
