"""Read small constants of a graph (scales, zero points, indices) and constants folded from them; never large ones."""

import math
from pathlib import Path

import numpy as np
import onnx

from hvlc.inputs.onnx_data import values_of

_LARGEST = 1 << 20  # bytes; scales and norms are smaller, matrices larger


class Constants:
    """The initializers of a graph and what Constant nodes hold, read when they are asked for.

    Args:
        graph: external data not loaded.
        directory: of its external data.
        outer: those around the graph.
    """

    def __init__(self, graph: onnx.GraphProto, directory: Path, outer: "Constants | None" = None) -> None:
        self._directory = directory
        self._outer = outer
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._folded: dict[str, np.ndarray] = {}
        for node in graph.node:
            if node.op_type == "Constant" and not node.domain and node.output:
                self._take(node)

    def __contains__(self, name: str) -> bool:
        own = name in self._tensors or name in self._folded
        return own or (self._outer is not None and name in self._outer)

    def keep(self, name: str, values: np.ndarray) -> None:
        """Keep what follows from other constants."""
        self._folded[name] = values

    def values(self, name: str) -> np.ndarray | None:
        """A constant's values; None when there is no such constant, or it is larger than a mebibyte.

        Raises:
            UserError: its data lies outside the model's directory, is not there or does not fit its shape.
        """
        if name in self._folded:
            return self._folded[name]
        tensor = self._tensors.get(name)
        if tensor is None:
            return self._outer.values(name) if self._outer is not None else None
        if math.prod(tensor.dims) > _LARGEST:
            return None
        return values_of(tensor, self._directory, "lint")

    def small(self, name: str, most: int) -> np.ndarray | None:
        """A constant's values where it has at most that many elements.

        Raises:
            UserError: see `values`.
        """
        tensor = self._tensors.get(name)
        if tensor is not None and name not in self._folded and math.prod(tensor.dims) > most:
            return None
        found = self.values(name)
        return found if found is not None and found.size <= most else None

    def _take(self, node: onnx.NodeProto) -> None:
        """The value of a Constant, in whichever of its attributes it is."""
        name = node.output[0]
        for attribute in node.attribute:
            if attribute.name == "value":
                self._tensors[name] = attribute.t
            elif attribute.name in ("value_int", "value_ints"):
                one = attribute.name == "value_int"
                self._folded[name] = np.array(attribute.i if one else list(attribute.ints), np.int64)
            elif attribute.name in ("value_float", "value_floats"):
                one = attribute.name == "value_float"
                self._folded[name] = np.array(attribute.f if one else list(attribute.floats), np.float32)
