"""Functions of an ONNX model, put in the place of their calls."""

from collections.abc import Iterator, Mapping

import onnx
from onnx import inliner, version_converter

from hvlc.errors import UserError
from hvlc.files.reading import shown
from hvlc.inputs.onnx_model import nested

_MOST_NODES = 200_000  # of a model with its functions in place: functions of functions can make 2^n
_FIX = "inline its functions when it is exported"
_ONNX = ("", "ai.onnx")
_Key = tuple[str, str, str]
_Functions = Mapping[_Key, onnx.FunctionProto]


def inline_functions(model: onnx.ModelProto, area: str) -> onnx.ModelProto:
    """A model without functions; the model itself where it has none.

    onnxruntime lets a function use another version of ONNX's operators than the model; so it is converted, or kept as
    it is where every operator means the same in both.

    Args:
        model: stays as it is.
        area: first part of the error's code.

    Raises:
        UserError: `AREA.function`: functions call each other in a circle, are there twice, unfold to too many nodes or
            cannot be converted.
    """
    if not model.functions:
        return model
    functions = {_key(function): function for function in model.functions}
    if len(functions) < len(model.functions):
        raise UserError(f"{area}.function", "two functions of the model have one name", _FIX)
    _check_size(model, functions, area)
    versions = {one.domain: one.version for one in model.opset_import}
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for function in copied.functions:
        _agree(function, versions)
        known = {one.domain for one in copied.opset_import}
        copied.opset_import.extend(one for one in function.opset_import if one.domain not in known)
    try:
        inlined = inliner.inline_local_functions(copied, convert_version=True)
    except (RuntimeError, ValueError, version_converter.ConvertError) as error:
        raise UserError(f"{area}.function", f"a function cannot be inlined: {_line(error)}", _FIX) from error
    left = next((node for graph in nested(inlined.graph) for node in graph.node if _called(node) in functions), None)
    if left is not None:
        cause = f"function {_name(left.domain, left.op_type)} cannot be converted to the model's opset"
        raise UserError(f"{area}.function", cause, _FIX)
    del inlined.functions[:]
    return inlined


def _check_size(model: onnx.ModelProto, functions: _Functions, area: str) -> None:
    """Refuse functions that call each other in a circle, or unfold to more nodes than are read."""
    sizes: dict[_Key, int] = {}
    for key in functions:
        _measure(key, functions, sizes, area)
    total = sum(sizes.get(_called(node), 1) for graph in nested(model.graph) for node in graph.node)
    if total > _MOST_NODES:
        cause = f"the model has {total} nodes with its functions in place, at most {_MOST_NODES} are read"
        raise UserError(f"{area}.function", cause, _FIX)


def _measure(start: _Key, functions: _Functions, sizes: dict[_Key, int], area: str) -> None:
    """Nodes of a function with all that it calls in place, into `sizes`; without recursion, as chains may be long."""
    path: list[_Key] = [start]
    while path:
        key = path[-1]
        calls = [*_calls(functions[key])]
        waiting = next((call for call in calls if call in functions and call not in sizes), None)
        if waiting is None:
            sizes[key] = sum(sizes.get(call, 1) for call in calls)
            path.pop()
        elif waiting in path:
            cause = f"function {_name(*waiting[:2])} calls itself"
            raise UserError(f"{area}.function", cause, "export the model without recursive functions")
        else:
            path.append(waiting)


def _calls(function: onnx.FunctionProto) -> Iterator[_Key]:
    for graph in nested(function):
        for node in graph.node:
            yield _called(node)


def _called(node: onnx.NodeProto) -> _Key:
    return node.domain, node.op_type, node.overload


def _key(function: onnx.FunctionProto) -> _Key:
    return function.domain, function.name, function.overload


def _agree(function: onnx.FunctionProto, versions: Mapping[str, int]) -> None:
    """State the model's version of a domain where every operator of the function is the same in it."""
    for one in function.opset_import:
        version = versions.get(one.domain)
        if version is None or version == one.version:
            continue
        used = {n.op_type for g in nested(function) for n in g.node if _same_domain(n.domain, one.domain)}
        if all(_since(name, one.domain, one.version) == _since(name, one.domain, version) for name in used):
            one.version = version


def _same_domain(one: str, other: str) -> bool:
    return one == other or (one in _ONNX and other in _ONNX)


def _since(op_type: str, domain: str, version: int) -> int | None:
    """Version in which an operator got the meaning that it has; None where ONNX does not know it."""
    domain = "" if domain in _ONNX else domain
    try:
        return int(onnx.defs.get_schema(op_type, version, domain).since_version)
    except onnx.defs.SchemaError:
        return None


def _name(domain: str, op_type: str) -> str:
    return shown(f"{domain}.{op_type}" if domain else op_type)


def _line(error: Exception) -> str:
    return shown(str(error).strip().partition("\n")[0])
