"""Functions of an ONNX model, put in the place of their calls.

A function states its own versions of the operators' domains, and onnxruntime reads each node by those of its function.
So an inlined node keeps the version that it was written for: see `version_of`.
"""

from collections.abc import Iterator, Mapping

import onnx
from onnx import inliner, shape_inference

from hvlc.errors import UserError
from hvlc.files.reading import shown
from hvlc.inputs.onnx_model import domain_of, graphs_of, nested, versions_of

_MOST_NODES = 50_000  # of a model with its functions in place: functions of functions can make 2^n
_FIX = "inline its functions when it is exported"
_VERSION = "hvlc.version"  # metadata of a node from a function of another version than the model's
_Key = tuple[str, str, str]
_Functions = Mapping[_Key, onnx.FunctionProto]


def inline_functions(model: onnx.ModelProto, area: str) -> onnx.ModelProto:
    """A model without functions; the model itself where it has none.

    Args:
        model: what it says of nodes' versions is removed.
        area: first part of the error's code.

    Raises:
        UserError: `AREA.function`: functions call each other in a circle, are there twice, unfold to too many nodes,
            use a domain of operators whose version nobody states, or cannot be inlined.
    """
    for graph in graphs_of(model):
        for node in graph.node:
            _forget_version(node)
    if not model.functions:
        return model
    functions = {_key(function): function for function in model.functions}
    if len(functions) < len(model.functions):
        raise UserError(f"{area}.function", "two functions of the model have one name", _FIX)
    _check_size(model, functions, area)
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    _check_domains("the model", model.graph, versions_of(model), functions, area)
    for function in copied.functions:
        _check_domains(f"function {_name(function.domain, function.name)}", function, versions_of(function), None, area)
        _keep_versions(function, versions_of(model))
        known = versions_of(copied)
        copied.opset_import.extend(one for one in function.opset_import if domain_of(one.domain) not in known)
    try:
        inlined = inliner.inline_local_functions(copied)
    except (RuntimeError, ValueError, shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise UserError(f"{area}.function", f"a function cannot be inlined: {_line(error)}", _FIX) from error
    left = next((node for graph in nested(inlined.graph) for node in graph.node if _called(node) in functions), None)
    if left is not None:
        raise UserError(f"{area}.function", f"function {_name(left.domain, left.op_type)} cannot be inlined", _FIX)
    del inlined.functions[:]
    return inlined


def version_of(node: onnx.NodeProto, versions: Mapping[str, int]) -> int:
    """Version of the domain that a node's operator is of: its function's, or the model's; 1 where nobody states it.

    Args:
        node: of a model that `inline_functions` has been over.
        versions: of the model's domains.
    """
    stated = next((entry.value for entry in node.metadata_props if entry.key == _VERSION), None)
    return int(stated) if stated is not None else versions.get(domain_of(node.domain), 1)


def _keep_versions(function: onnx.FunctionProto, versions: Mapping[str, int]) -> None:
    """Write a function's versions into its nodes where the model has others, and the model's in their place."""
    for one in function.opset_import:
        domain = domain_of(one.domain)
        version = versions.get(domain, one.version)
        for graph in nested(function) if version != one.version else ():
            for node in graph.node:
                if domain_of(node.domain) == domain:
                    node.metadata_props.add(key=_VERSION, value=str(one.version))
        one.version = version


def _forget_version(node: onnx.NodeProto) -> None:
    kept = [entry for entry in node.metadata_props if entry.key != _VERSION]
    if len(kept) < len(node.metadata_props):
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


def _check_domains(
    what: str,
    body: onnx.GraphProto | onnx.FunctionProto,
    versions: Mapping[str, int],
    functions: _Functions | None,
    area: str,
) -> None:
    """Refuse nodes whose domain has no stated version: every node of a function, and calls of functions."""
    for graph in nested(body):
        for node in graph.node:
            asked = functions is None or _called(node) in functions
            if asked and domain_of(node.domain) not in versions:
                cause = f"{what} calls {_name(node.domain, node.op_type)} and states no version of its domain"
                raise UserError(f"{area}.function", cause, _FIX)


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


def _name(domain: str, op_type: str) -> str:
    return shown(f"{domain}.{op_type}" if domain else op_type)


def _line(error: Exception) -> str:
    return shown(str(error).strip().partition("\n")[0])
