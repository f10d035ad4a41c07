"""Initializers of a package's graphs, read one at a time from where the graph says they lie."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from hvlc.errors import HvlcError
from hvlc.opening.tensors import damaged, dtype_of, place_of, width_of
from hvlc.weights.formats.packing import unpack

_HALF_BYTES = {"int4": np.int8, "uint4": np.uint8}


@dataclass(frozen=True)
class Initializer:
    """An initializer whose values stay on disk until they are read.

    Attributes:
        name: in its graph.
        dtype: ONNX's name of the element type, in lower case: "float", "uint8", "int4".
        shape: its dimensions.
        bytes: that it takes.
        file: with the values; None for those inside the graph.
        offset: of the values in `file`.
        inline: the values inside the graph.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: Path | None = None
    offset: int = 0
    inline: onnx.TensorProto | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def place(self) -> tuple[Path, int] | None:
        """Place of the values, the same for tensors that share bytes; None inside a graph."""
        return None if self.file is None else (self.file, self.offset)

    def read(self) -> np.ndarray:
        """The values in `shape`, in numpy's (or ml_dtypes') type; those of 4 bits as int8 or uint8."""
        if self.inline is not None:
            array = numpy_helper.to_array(self.inline)
            return array.astype(_HALF_BYTES[self.dtype]) if self.dtype in _HALF_BYTES else array
        if self.file is None:
            raise HvlcError("package.initializer", f"{self.name} has neither values nor a file", "report it")
        if self.dtype in _HALF_BYTES:
            packed = np.fromfile(self.file, np.uint8, self.bytes, offset=self.offset)
            return _unpacked(packed, self.size, signed=self.dtype == "int4").reshape(self.shape)
        element = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(self.dtype.upper()))
        return np.fromfile(self.file, element.newbyteorder("<"), self.size, offset=self.offset).reshape(self.shape)


def open_initializer(path: Path, tensor: onnx.TensorProto, sizes: Mapping[str, int]) -> Initializer:
    """Find an initializer's values, as far as the graph tells the truth about them.

    Args:
        path: of its graph.
        tensor: as the graph has it.
        sizes: of every file of the package.

    Raises:
        UserError: the data lies outside the package, is missing, or does not fill the tensor's shape.
    """
    dtype, shape = dtype_of(path.name, tensor), tuple(tensor.dims)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        try:
            size = numpy_helper.to_array(tensor).size
        except (ValueError, TypeError, KeyError) as error:
            raise damaged(path.name, f"{tensor.name!r} has not the values of its shape") from error
        return Initializer(tensor.name, dtype, shape, width_of(dtype, size), inline=tensor)
    file, offset, length = place_of(path.name, tensor, sizes)
    if min(shape, default=0) < 0 or length != width_of(dtype, math.prod(shape)):
        raise damaged(path.name, f"{tensor.name!r} is {dtype} {list(shape)}, which {length} bytes are not")
    return Initializer(tensor.name, dtype, shape, length, path.parent / file, offset)


def _unpacked(packed: np.ndarray, count: int, *, signed: bool) -> np.ndarray:
    """Levels of 4 bits, low nibble first, as int8 or uint8 `[count]`."""
    levels = unpack(packed.reshape(-1), 4, count)
    return ((levels ^ 8).view(np.int8) - np.int8(8)) if signed else levels
