"""Graphs of a test as ONNX text."""

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import IR_VERSION, OPSET
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.facts import Facts

HEADER = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}, "com.microsoft" : 1]>'


def component(text: str, role: Role = Role.DECODER, name: str = "graph") -> Component:
    """A component from ONNX text; float initializers get random values, and "__" in the name of a node is a dot."""
    model = ir.from_onnx_text(HEADER + text.strip())
    random = np.random.default_rng(0)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            dims = tuple(int(d) for d in value.const_value.shape)
            value.const_value = ir.tensor(random.normal(size=dims).astype(np.float32), name=value.name)
    for node in model.graph:
        node.name = (node.name or "").replace("__", ".")
    return Component(name, role, model, name)


def bundle(*components: Component, facts: Facts | None = None) -> Bundle:
    made = Bundle("test", facts=facts or Facts())
    for one in components:
        made.add(one)
    return made


def lines(graph: ir.Graph) -> list[str]:
    """The nodes as ONNX text, with what constants of up to 8 integers hold in the place of their names."""
    return [_line(node) for node in graph]


def signature(graph: ir.Graph) -> list[str]:
    """Inputs, an arrow, and outputs, each with type and shape."""
    return [*(_value(v) for v in graph.inputs), "=>", *(_value(v) for v in graph.outputs)]


def _value(value: ir.Value) -> str:
    dims = ", ".join(map(str, value.shape)) if value.shape is not None else "?"
    return f"{str(value.dtype).lower()}[{dims}] {value.name}"


def _line(node: ir.Node) -> str:
    outputs = ", ".join(v.name or '""' for v in node.outputs)
    domain = f"{node.domain}." if node.domain else ""
    settings = ", ".join(f"{name} = {a.value}" for name, a in sorted(node.attributes.items()))
    inputs = ", ".join('""' if v is None else _operand(v) for v in node.inputs)
    return f"{outputs} = {domain}{node.op_type}{f' <{settings}>' if settings else ''} ({inputs})"


def _operand(value: ir.Value) -> str:
    tensor = value.const_value
    if tensor is not None and tensor.dtype == ir.DataType.INT64 and tensor.size <= 8:
        return str(tensor.numpy().tolist())
    return str(value.name)
