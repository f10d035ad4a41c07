"""Size of an ONNX file's graph in memory, counted on its bytes before anything is built from them.

A message of two bytes takes a hundred in memory, and a list of one-byte integers eight for each, so a file of 200 MB
can ask for 10 GB. Only the raw bytes of weights are as large in memory as in the file; they are not counted.
Protobuf's encoding: protobuf.dev/programming-guides/encoding.
"""

from functools import cache

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

#: Bytes that a message, a text and a number take in memory beside their content; measured with protobuf's upb.
_MESSAGE, _TEXT, _NUMBER = 120, 24, 16
_WIDEST = 10  # bytes of a varint
_Field = tuple[str, Descriptor | None]
#: Kinds of content of a length-delimited field.
_CHILD, _STRING, _BULK, _NUMBERS = "message", "string", "bulk", "numbers"


class WireError(ValueError):
    """Bytes that are not an ONNX model, or one that would take too much memory."""


def graph_size(data: memoryview, limit: int) -> int:
    """Bytes that the model would take in memory, without the raw bytes of its weights.

    Args:
        data: serialized ModelProto.
        limit: largest size; counting stops there.

    Raises:
        WireError: the encoding is damaged, a text is not UTF-8, or the size is above the limit.
    """
    size, place = 0, 0
    ends = [(len(data), _fields(onnx.ModelProto.DESCRIPTOR))]
    while ends:
        end, fields = ends[-1]
        if place == end:
            ends.pop()
            continue
        key, place = _varint(data, place, end)
        kind, child = fields.get(key >> 3, (_BULK, None))
        wire = key & 7
        if wire == 2:
            length, place = _varint(data, place, end)
            if length > end - place:
                raise WireError("it is cut short")
            if kind == _CHILD and child is not None:
                size += _MESSAGE
                ends.append((place + length, _fields(child)))
                if len(ends) > 100:  # protobuf's own bound
                    raise WireError("it is nested more than 100 levels deep")
            else:
                size += _content(data[place : place + length], kind)
                place += length
        elif wire in (0, 1, 5):
            size += _NUMBER
            place = _varint(data, place, end)[1] if wire == 0 else place + (8 if wire == 1 else 4)
            if place > end:
                raise WireError("it is cut short")
        else:
            raise WireError("its encoding is not that of ONNX")
        if size > limit:
            raise WireError(f"its graph without weights takes more than {limit} bytes of memory")
    return size


def _content(data: memoryview, kind: str) -> int:
    """Bytes in memory of a field without fields of its own."""
    if kind == _STRING:
        try:
            str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise WireError("a name in it is not UTF-8") from error
    if kind == _NUMBERS:
        return 8 * len(data)
    return _TEXT + (0 if kind == _BULK else len(data))


@cache
def _fields(message: Descriptor) -> dict[int, _Field]:
    """Kind of each length-delimited field of a message, by its number."""
    found: dict[int, _Field] = {}
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            found[field.number] = (_CHILD, field.message_type)
        elif field.type == FieldDescriptor.TYPE_STRING:
            found[field.number] = (_STRING, None)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            found[field.number] = (_BULK, None)
        else:
            found[field.number] = (_NUMBERS, None)
    return found


def _varint(data: memoryview, place: int, end: int) -> tuple[int, int]:
    """A number of variable length and the place after it."""
    value = shift = 0
    while place < end and shift < 7 * _WIDEST:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise WireError("it is cut short")
