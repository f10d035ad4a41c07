"""Validate a graph before rules read it: supported versions, valid names, nodes that match their schemas.

Rules and folding rely on what is checked here: counts of inputs and outputs, the types of attributes, required
operands.
"""

from collections.abc import Iterator
from functools import cache

import onnx
from onnx import helper

from hvlc.errors import Collector, UserError
from hvlc.files.reading import shown
from hvlc.graphs.sessions import REFUSALS, SILENT, open_session, session_options
from hvlc.inputs.onnx_functions import version_of
from hvlc.inputs.onnx_graph import check_names, label
from hvlc.inputs.onnx_model import domain_of, subgraphs, versions_of
from hvlc.lint import operators

_EXPORT = "export the model again"
_LARGEST = 9999  # version of a domain; no domain has had a hundred


def check_structure(model: onnx.ModelProto) -> None:
    """Refuse a graph that onnxruntime cannot load whatever the target; sorts its nodes.

    Args:
        model: without functions.

    Raises:
        UserError: `lint.graph` for its names, inputs and nodes. All problems at once.
    """
    problems = Collector()
    with problems:
        check_names(model, "lint")
    for cause in (*_inputs(model.graph), *_nodes(model.graph, versions_of(model), "")):
        with problems:
            raise UserError("lint.graph", cause, _EXPORT)
    problems.raise_all()


def check_versions(model: onnx.ModelProto) -> None:
    """Refuse a model of a version that onnxruntime does not know, of the format or of a domain of operators.

    Raises:
        UserError: `lint.version`.
    """
    if not _loads(model.ir_version, "", 17):
        most = next((one for one in range(99, 0, -1) if _loads(one, "", 17)), 0)
        cause = f"{operators.version()} loads IR versions up to {most}, the model has {model.ir_version}"
        raise UserError("lint.version", cause, "export it for an older IR version")
    if "" not in versions_of(model) and any(not node.domain for node in model.graph.node):
        raise UserError("lint.version", "the model does not state the version of ONNX's operators", _EXPORT)
    for what, body in (("the model", model), *(("a function", function) for function in model.functions)):
        versions = versions_of(body)
        if len({(domain_of(one.domain), one.version) for one in body.opset_import}) > len(versions):
            raise UserError("lint.version", f"{what} states two versions of one domain of operators", _EXPORT)
        for domain, version in versions.items():
            if not 0 < version <= _LARGEST:
                cause = f"{what} states version {version} of the operators of {shown(domain) or 'ai.onnx'}"
                raise UserError("lint.version", f"{cause}, 1 to {_LARGEST} is expected", _EXPORT)
            if operators.has_domain(domain) and not _loads(4, domain, version):
                most = next((one for one in range(99, 0, -1) if _loads(4, domain, one)), 0)
                named = f"{what} states version {version} of {domain or 'ai.onnx'}"
                cause = f"{operators.version()} loads operators up to version {most}, {named}"
                raise UserError("lint.version", cause, "export it for an older opset")


@cache
def _loads(ir_version: int, domain: str, version: int) -> bool:
    """Whether onnxruntime loads a model of such versions: one that is made here, without nodes."""
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    opsets = [helper.make_opsetid("", 17)] * bool(domain) + [helper.make_opsetid(domain, version)]
    made = helper.make_model(helper.make_graph([], "g", [value], [value]), opset_imports=opsets)
    made.ir_version = ir_version
    try:
        open_session(made.SerializeToString(), session_options(log=SILENT))
    except REFUSALS:
        return False
    return True


def _inputs(graph: onnx.GraphProto) -> Iterator[str]:
    """Problems of the types of the main graph's inputs."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for value in graph.input:
        if value.type.WhichOneof("value") is None:
            yield f"the input {shown(value.name)!r} has no type"
        stated, constant = value.type.tensor_type, constants.get(value.name)
        if constant is None:
            continue
        dims = [d.dim_value if d.HasField("dim_value") else None for d in stated.shape.dim]
        fits = len(dims) == len(constant.dims) and all(a in (None, b) for a, b in zip(dims, constant.dims, strict=True))
        if stated.elem_type != constant.data_type or (stated.HasField("shape") and not fits):
            yield f"the input {shown(value.name)!r} has another type or shape than its constant"
    known = onnx.TensorProto.DataType.values()
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and (tensor.elem_type not in known or not tensor.elem_type):
            yield f"{shown(value.name)!r} has the unknown element type {tensor.elem_type}"


def _values(node: onnx.NodeProto) -> int:
    """Number of attributes of a Constant that give its value."""
    return sum(attribute.name.startswith(("value", "sparse_value")) for attribute in node.attribute)


def _nodes(graph: onnx.GraphProto, versions: dict[str, int], where: str) -> Iterator[str]:
    """Contradictions of a graph's nodes, and of those inside them, to their schemas."""
    for place, node in enumerate(graph.node):
        name = f"{where}{label(node, place)}"
        operator = operators.operator_of(node.op_type, node.domain, version_of(node, versions))
        if operator is not None:
            found = operators.objection(node, operator)
            if found:
                yield f"{shown(name)} ({shown(node.op_type)}) {found}"
            elif node.op_type == "Constant" and (count := _values(node)) != 1:
                yield f"{shown(name)} (Constant) has {count} values, one is expected"
        elif not node.output:
            yield f"{shown(name)} ({shown(node.op_type)}) has no outputs"
        for inner in subgraphs(node):
            yield from _nodes(inner, versions, f"{name}/")
