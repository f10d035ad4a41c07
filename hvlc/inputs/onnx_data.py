"""The values of an ONNX model's tensors, in the file or beside it: what a tensor states is compared with what is there.

External data lies in the model's folder or below it (ONNX, "External Data"), or where a link of the hub's cache
leads (`hvlc.files.links`). Nothing is read before offset and length agree with the file's size and with the shape.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from hvlc.errors import Collector, UserError
from hvlc.files.links import leads_outside
from hvlc.files.reading import is_file, open_file, reason, shown, state_of
from hvlc.inputs.onnx_model import graphs_of

_COPY = "copy the model together with its data"
_EXPORT = "export or fetch the model again"
_DISTRUST = "do not trust this model"
_IN_MEMORY = "_ORT_MEM_ADDR_"  # onnxruntime's mark for data at an address of its own process
_LONGEST = 1 << 40  # elements of a tensor; more is not held by any memory
_DIGITS = 18  # of an offset or a length


@dataclass(frozen=True)
class ExternalRange:
    """Place of external data.

    Attributes:
        path: of the file.
        offset: first byte.
        length: in bytes.
    """

    path: Path
    offset: int
    length: int


def check_tensors(model: onnx.ModelProto, directory: Path, area: str) -> None:
    """Compare what every tensor states with the data that it has; external files are measured, not read.

    Args:
        model: its functions included.
        directory: of its external data.
        area: first part of the error's code.

    Raises:
        UserError: a shape is negative or giant, an element type unknown, data is missing, cut short or too long, or
            lies outside the directory. All problems at once.
    """
    problems = Collector()
    for tensor in tensors_of(model):
        with problems:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                place_of(tensor, directory, area)
            else:
                _check_inline(tensor, area)
    problems.raise_all()


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers, dense and sparse, and attributes."""
    for graph in graphs_of(model):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        else:
            yield from _of_attributes(graph.attribute_proto)
        for node in graph.node:
            yield from _of_attributes(node.attribute)


def place_of(tensor: onnx.TensorProto, directory: Path, area: str) -> ExternalRange:
    """Place of a tensor's external data, compared with its shape and with the file's size.

    Raises:
        UserError: see `check_tensors`.
    """
    entries = _entries(tensor, area)
    size = _bytes_of(tensor, area)
    location = entries.get("location", "")
    if not location:
        raise UserError(f"{area}.data", f"{named(tensor)} names no file of its external data", _EXPORT)
    path = external_path(location, directory, area)
    offset = _number(tensor, entries, "offset", 0, area)
    length = _number(tensor, entries, "length", size, area) or size  # as onnxruntime reads 0
    if length != size:
        cause = f"{named(tensor)} of {size} bytes names {length} bytes of {shown(location)}"
        raise UserError(f"{area}.data", cause, _EXPORT)
    found = state_of(path)
    if found is None or not is_file(path):
        what = "is missing" if found is None else "is not a regular file"
        cause = f"{named(tensor)}: cannot read {shown(location)}: it {what}"
        raise UserError(f"{area}.data", cause, _COPY)
    if offset + length > found.st_size:
        cause = f"{named(tensor)} ends at byte {offset + length} of {shown(location)}, which has {found.st_size}"
        raise UserError(f"{area}.data", cause, "fetch the model's data again")
    return ExternalRange(path, offset, length)


def locations_of(model: onnx.ModelProto) -> set[str]:
    """The files that hold a model's external data, as its tensors name them."""
    outside = (one for one in tensors_of(model) if one.data_location == onnx.TensorProto.EXTERNAL)
    return {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}


def external_path(location: str, directory: Path, area: str) -> Path:
    """The file of external data by the location that a tensor names.

    Raises:
        UserError: it lies outside the directory.
    """
    path = directory / location
    names = Path(location)
    if location.endswith("/"):
        raise UserError(f"{area}.data", f"the model reads {shown(location)!r}, which is not a file", _EXPORT)
    if _IN_MEMORY in location or names.is_absolute() or ".." in names.parts or leads_outside(path, directory):
        cause = f"the model reads {shown(location)!r} from outside the model's directory"
        raise UserError(f"{area}.escape", cause, _DISTRUST)
    return path


def values_of(tensor: onnx.TensorProto, directory: Path, area: str) -> np.ndarray:
    """The values of a tensor, whose external data is read; its size is the caller's choice.

    Raises:
        UserError: see `check_tensors`; or the data cannot be read.
    """
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        place = place_of(tensor, directory, area)
        loaded = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        try:
            with open_file(place.path, f"{area}.data", fix=_COPY) as file:
                file.seek(place.offset)
                loaded.raw_data = file.read(place.length)
        except OSError as error:
            cause = f"{named(tensor)}: cannot read {shown(place.path.name)}: {reason(error)}"
            raise UserError(f"{area}.data", cause, _COPY) from error
        tensor = loaded
    _check_inline(tensor, area)
    try:
        return numpy_helper.to_array(tensor)
    except (TypeError, ValueError) as error:
        raise UserError(f"{area}.data", f"{named(tensor)} cannot be read: {error}", _EXPORT) from error


def named(tensor: onnx.TensorProto) -> str:
    """A tensor in a message."""
    return f"tensor {shown(tensor.name)!r}" if tensor.name else "a tensor without a name"


def _of_attributes(attributes: "list[onnx.AttributeProto]") -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = ([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []) + [
            *attribute.sparse_tensors
        ]
        for one in sparse:
            yield from (one.values, one.indices)


def _check_inline(tensor: onnx.TensorProto, area: str) -> None:
    """Compare the data inside the file with the shape."""
    size, elements = _bytes_of(tensor, area), math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        found, expected, unit = len(tensor.raw_data), size, "bytes"
        if tensor.data_type == onnx.TensorProto.STRING:
            raise UserError(f"{area}.data", f"{named(tensor)} has texts as raw bytes", _EXPORT)
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        packed = ir.DataType(tensor.data_type).bitwidth if field != "string_data" else 8
        expected = -(-elements * packed // 8) if packed < 8 else elements
        expected *= 2 if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128) else 1
        found, unit = len(getattr(tensor, field)), "values"
    if found != expected:
        cause = f"{named(tensor)} of shape {list(tensor.dims)[:8]} has {found} {unit}, {expected} are expected"
        raise UserError(f"{area}.data", cause, _EXPORT)


def _bytes_of(tensor: onnx.TensorProto, area: str) -> int:
    """Bytes of a tensor's data by shape and element type; those of texts are not known and count as none."""
    dims, dtype = tuple(tensor.dims), tensor.data_type
    if dtype == onnx.TensorProto.UNDEFINED or dtype not in onnx.TensorProto.DataType.values():
        raise UserError(f"{area}.data", f"{named(tensor)} has the unknown element type {dtype}", _EXPORT)
    if any(size < 0 for size in dims) or math.prod(dims) > _LONGEST:
        raise UserError(f"{area}.data", f"{named(tensor)} has the impossible shape {list(dims)[:8]}", _EXPORT)
    if dtype == onnx.TensorProto.STRING:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise UserError(f"{area}.data", f"{named(tensor)} has texts as external data", _EXPORT)
        return 0
    return -(-math.prod(dims) * ir.DataType(dtype).bitwidth // 8)


def _entries(tensor: onnx.TensorProto, area: str) -> Mapping[str, str]:
    keys = [entry.key for entry in tensor.external_data]
    if len(keys) != len(set(keys)):
        raise UserError(f"{area}.data", f"{named(tensor)} says twice where its external data lies", _EXPORT)
    return {entry.key: entry.value for entry in tensor.external_data}


def _number(tensor: onnx.TensorProto, entries: Mapping[str, str], key: str, otherwise: int, area: str) -> int:
    text = entries.get(key, "")
    if not text:
        return otherwise
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        cause = f"{named(tensor)}: the {key} of its external data is {shown(text, 40)!r}, not a number of bytes"
        raise UserError(f"{area}.data", cause, _EXPORT)
    return int(text)
