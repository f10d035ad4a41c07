"""Fold small values that depend on constants and static shapes, as onnxruntime does when it loads a model.

Exporters compute sizes by chains of Shape, Slice, Gather, Concat and arithmetic; shapes that depend on such a chain are
static only after folding it. Opsets differ in where axes and limits stand: as attributes first, later as inputs.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

MOST = 1024  # elements of a value that is followed
_Values = Sequence[np.ndarray | None]
_Attributes = Mapping[str, object]
_Function = Callable[[_Values, _Attributes], np.ndarray | None]
#: Errors of NumPy for values that an operator does not take; such nodes are not followed.
_ERRORS = (ArithmeticError, IndexError, KeyError, TypeError, ValueError, MemoryError)


def fold(node: onnx.NodeProto, inputs: _Values, shape: tuple[int | None, ...] | None) -> np.ndarray | None:
    """The value of a node's only output.

    Args:
        node: of ONNX's own domain.
        inputs: their values, at most `MOST` elements each; None where one is absent or not known.
        shape: of the first input, for operators that read nothing else of it.

    Returns:
        None where it does not follow, or has more than `MOST` elements.
    """
    function = _FUNCTIONS.get(node.op_type)
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute if _is_plain(one)}
    if node.op_type in ("Shape", "Size"):
        return _of_shape(node.op_type, shape, attributes)
    given = [value for name, value in zip(node.input, inputs, strict=True) if name]
    if function is None or not given or any(value is None for value in given):
        return None
    try:
        with np.errstate(all="ignore"):
            found = function(inputs, attributes)
    except _ERRORS:
        return None
    return found if found is not None and found.size <= MOST else None


def _is_plain(attribute: onnx.AttributeProto) -> bool:
    kinds = onnx.AttributeProto
    return attribute.type in (kinds.INT, kinds.INTS, kinds.FLOAT, kinds.STRING, kinds.TENSOR)


def _of_shape(op_type: str, shape: tuple[int | None, ...] | None, attributes: _Attributes) -> np.ndarray | None:
    if shape is None:
        return None
    if op_type == "Shape":
        start, end = attributes.get("start", 0), attributes.get("end")
        dims = shape[slice(start if isinstance(start, int) else 0, end if isinstance(end, int) else None)]
        return None if None in dims else np.array(dims, np.int64)
    sizes = [size for size in shape if size is not None]
    return np.array(math.prod(sizes), np.int64) if len(sizes) == len(shape) else None


def _first(inputs: _Values) -> np.ndarray:
    return _at(inputs, 0)


def _at(inputs: _Values, place: int) -> np.ndarray:
    """An input that has to be there."""
    value = inputs[place] if place < len(inputs) else None
    if value is None:
        raise ValueError("an input is absent")
    return value


def _ints(inputs: _Values, place: int, attributes: _Attributes, name: str) -> list[int] | None:
    """A list of integers from an input, or from an attribute as earlier opsets have it; None where it is in neither."""
    value = inputs[place] if place < len(inputs) else None
    if value is not None:
        return [int(one) for one in value.reshape(-1)]
    given = attributes.get(name)
    return [int(one) for one in given] if isinstance(given, Sequence) else None


def _slice(inputs: _Values, attributes: _Attributes) -> np.ndarray:
    data = _first(inputs)
    starts, ends = (_ints(inputs, place, attributes, name) for place, name in ((1, "starts"), (2, "ends")))
    if starts is None or ends is None:
        raise ValueError("no limits")
    axes = _ints(inputs, 3, attributes, "axes")
    steps = _ints(inputs, 4, attributes, "steps")
    parts = [slice(None)] * data.ndim
    for place, axis in enumerate(range(len(starts)) if axes is None else axes):
        parts[axis] = slice(starts[place], ends[place], steps[place] if steps is not None else 1)
    return data[tuple(parts)]


def _gather(inputs: _Values, attributes: _Attributes) -> np.ndarray:
    return np.take(_first(inputs), _at(inputs, 1).astype(np.int64), axis=int(str(attributes.get("axis", 0))))


def _concat(inputs: _Values, attributes: _Attributes) -> np.ndarray:
    return np.concatenate([_at(inputs, place) for place in range(len(inputs))], axis=int(str(attributes["axis"])))


def _squeeze(inputs: _Values, attributes: _Attributes) -> np.ndarray:
    axes = _ints(inputs, 1, attributes, "axes")
    return np.squeeze(_first(inputs), axis=None if axes is None else tuple(axes))


def _unsqueeze(inputs: _Values, attributes: _Attributes) -> np.ndarray:
    axes = _ints(inputs, 1, attributes, "axes")
    if axes is None:
        raise ValueError("no axes")
    return np.expand_dims(_first(inputs), tuple(axes))


def _cast(inputs: _Values, attributes: _Attributes) -> np.ndarray | None:
    dtype = helper.tensor_dtype_to_np_dtype(int(str(attributes["to"])))
    return _first(inputs).astype(dtype) if dtype.kind in "iufb" else None


def _reshape(inputs: _Values, attributes: _Attributes) -> np.ndarray:
    data, sizes = _first(inputs), [int(size) for size in _at(inputs, 1)]
    if not attributes.get("allowzero"):
        sizes = [size or data.shape[place] for place, size in enumerate(sizes)]
    return data.reshape(sizes)


def _filled(inputs: _Values, attributes: _Attributes) -> np.ndarray | None:
    dims = [int(size) for size in _first(inputs)]
    value = attributes.get("value")
    array = onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.zeros(1, np.float32)
    return np.full(dims, array.reshape(-1)[0]) if math.prod(dims) <= MOST else None


def _range(inputs: _Values, _attributes: _Attributes) -> np.ndarray | None:
    start, limit, step = (_at(inputs, place).reshape(()) for place in range(3))
    count = max(0, math.ceil((limit.item() - start.item()) / step.item()))
    return (start + np.arange(count, dtype=start.dtype) * step).astype(start.dtype) if count <= MOST else None


def _expand(inputs: _Values, _attributes: _Attributes) -> np.ndarray | None:
    data, sizes = _first(inputs), tuple(int(size) for size in _at(inputs, 1))
    dims = np.broadcast_shapes(data.shape, sizes)
    return np.broadcast_to(data, dims) if math.prod(dims) <= MOST else None


def _divide(inputs: _Values, _attributes: _Attributes) -> np.ndarray:
    one, other = _at(inputs, 0), _at(inputs, 1)
    if one.dtype.kind == "f":
        return one / other
    if not other.all():
        raise ZeroDivisionError
    return (np.sign(one) * np.sign(other) * (np.abs(one) // np.abs(other))).astype(one.dtype)  # towards zero


def _modulo(inputs: _Values, attributes: _Attributes) -> np.ndarray:
    one, other = _at(inputs, 0), _at(inputs, 1)
    if other.dtype.kind != "f" and not other.all():
        raise ZeroDivisionError
    return np.asarray(np.fmod(one, other) if attributes.get("fmod") else np.mod(one, other))


def _power(inputs: _Values, _attributes: _Attributes) -> np.ndarray:
    one, other = _at(inputs, 0), _at(inputs, 1)
    return np.asarray(np.power(one.astype(np.result_type(one, other)), other)).astype(one.dtype)


def _reduced(function: Callable[..., np.ndarray]) -> _Function:
    def reduce(inputs: _Values, attributes: _Attributes) -> np.ndarray:
        axes = _ints(inputs, 1, attributes, "axes")
        data = _first(inputs)
        if not axes and attributes.get("noop_with_empty_axes"):
            return data
        kept = bool(attributes.get("keepdims", 1))
        return np.asarray(function(data, axis=tuple(axes) if axes else None, keepdims=kept)).astype(data.dtype)

    return reduce


def _of_two(function: Callable[..., np.ndarray]) -> _Function:
    return lambda inputs, _attributes: np.asarray(function(_at(inputs, 0), _at(inputs, 1)))


def _of_one(function: Callable[..., np.ndarray]) -> _Function:
    return lambda inputs, _attributes: np.asarray(function(_first(inputs)))


def _of_all(function: Callable[..., np.ndarray]) -> _Function:
    def apply(inputs: _Values, _attributes: _Attributes) -> np.ndarray:
        found = _first(inputs)
        for place in range(1, len(inputs)):
            found = function(found, _at(inputs, place))
        return np.asarray(found)

    return apply


def _where(inputs: _Values, _attributes: _Attributes) -> np.ndarray:
    return np.where(_at(inputs, 0), _at(inputs, 1), _at(inputs, 2))


def _transpose(inputs: _Values, attributes: _Attributes) -> np.ndarray:
    perm = attributes.get("perm")
    return np.transpose(_first(inputs), perm if isinstance(perm, Sequence) else None)


_FUNCTIONS: Mapping[str, _Function] = {
    "Abs": _of_one(np.abs),
    "Add": _of_two(np.add),
    "And": _of_two(np.logical_and),
    "Cast": _cast,
    "Ceil": _of_one(np.ceil),
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _divide,
    "Equal": _of_two(np.equal),
    "Expand": _expand,
    "Floor": _of_one(np.floor),
    "Gather": _gather,
    "Greater": _of_two(np.greater),
    "GreaterOrEqual": _of_two(np.greater_equal),
    "Identity": _of_one(np.asarray),
    "Less": _of_two(np.less),
    "LessOrEqual": _of_two(np.less_equal),
    "Max": _of_all(np.maximum),
    "Min": _of_all(np.minimum),
    "Mod": _modulo,
    "Mul": _of_two(np.multiply),
    "Neg": _of_one(np.negative),
    "Not": _of_one(np.logical_not),
    "Or": _of_two(np.logical_or),
    "Pow": _power,
    "Range": _range,
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "Reshape": _reshape,
    "Slice": _slice,
    "Sqrt": _of_one(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _of_two(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
