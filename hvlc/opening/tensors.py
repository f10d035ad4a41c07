"""Constants of graphs as stated and checked: type, shape, and where the values lie."""

import math
from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from hvlc.errors import UserError

_HALF_BYTES = frozenset({"int4", "uint4", "float4e2m1"})
_QUARTER_BYTES = frozenset({"int2", "uint2"})
_WITHOUT_WIDTH = frozenset({"string", "undefined"})


def damaged(file: str, cause: str) -> UserError:
    """Error about a graph file that is damaged."""
    return UserError("package.graph", f"{file}: {cause}", "build or copy the package again")


def dtype_of(file: str, tensor: onnx.TensorProto) -> str:
    """ONNX's name of the element type, in lower case."""
    try:
        return onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    except ValueError as error:
        raise damaged(file, f"{tensor.name!r} has the unknown dtype {tensor.data_type}") from error


def width_of(dtype: str, size: int) -> int:
    """Bytes of `size` elements; 0 for types without a width."""
    if dtype in _WITHOUT_WIDTH:
        return 0
    if dtype in _HALF_BYTES:
        return -(-size // 2)
    if dtype in _QUARTER_BYTES:
        return -(-size // 4)
    return size * onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(dtype.upper())).itemsize


def place_of(file: str, tensor: onnx.TensorProto, sizes: Mapping[str, int]) -> tuple[str, int, int]:
    """File, offset and length of external data, as far as they are true."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "").removeprefix("./")
    if name not in sizes:
        if name in ("", ".", "..") or any(separator in name for separator in "/\\\0"):
            cause = f"{file} reads {tensor.name!r} from outside the package: {name[:200]!r}"
            raise UserError("package.escape", cause, "do not trust this package")
        cause = f"{file} reads {tensor.name!r} from {name[:200]!r}, which is not a file of the package"
        raise UserError("package.incomplete", cause, "build or copy the package again")
    offset, length = (_count(file, tensor, entries.get(key)) for key in ("offset", "length"))
    start = offset or 0
    stop = sizes[name] if length is None else start + length
    if not start <= stop <= sizes[name]:
        raise damaged(file, f"{tensor.name!r} lies at bytes {start} to {stop} of {name}, which has {sizes[name]}")
    return name, start, stop - start


def check_values(file: str, tensor: onnx.TensorProto, sizes: Mapping[str, int]) -> None:
    """Hold where a tensor's values lie, and how many there are, against its shape.

    Args:
        file: of the graph.
        tensor: as the graph has it.
        sizes: bytes of every file of the package.

    Raises:
        UserError: the data lies outside the package, is missing, or does not fill the tensor's shape.
    """
    dtype, shape = dtype_of(file, tensor), tuple(tensor.dims)
    if dtype == "undefined" or min(shape, default=0) < 0:
        raise damaged(file, f"{tensor.name!r} is {dtype} {list(shape)[:8]}, which no values have")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _, _, length = place_of(file, tensor, sizes)
        needed, said = width_of(dtype, math.prod(shape)), any(entry.key == "length" for entry in tensor.external_data)
        if dtype == "string" or length < needed or (said and length != needed):
            raise damaged(file, f"{tensor.name!r} is {dtype} {list(shape)[:8]}, which {length} bytes are not")
        return
    if math.prod(shape) > 8 * (len(tensor.raw_data) or tensor.ByteSize()):  # before anything is made of that size
        raise damaged(file, f"{tensor.name!r} has not the values of its shape")
    try:
        numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(file, f"{tensor.name!r} has not the values of its shape") from error


def _count(file: str, tensor: onnx.TensorProto, text: str | None) -> int | None:
    """A number of bytes that a graph gives as text."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise damaged(file, f"{tensor.name!r} lies at {text[:40]!r}, which is not a number of bytes")
    return int(text)
