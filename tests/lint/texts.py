"""Graphs as ONNX text, for tests of lint and of the passes that fix what it finds."""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from hvlc.graphs.bundle import Bundle, Component, Role


def model_of(text: str, opset: int = 23) -> ir.Model:
    """A model from ONNX text; float initializers that the text leaves at zero get random values."""
    header = f'<ir_version: 11, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    model = ir.from_onnx_text(header + text.strip())
    random = np.random.default_rng(0)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and not tensor.numpy().any():
            dims = tuple(int(d) for d in tensor.shape)
            value.const_value = ir.tensor(random.normal(size=dims).astype(np.float32), name=value.name)
    return model


def bundle_of(text: str, opset: int = 23) -> Bundle:
    """The same as the only component of a bundle."""
    made = Bundle("test")
    made.add(Component("graph", Role.DECODER, model_of(text, opset), "graph"))
    return made


def with_int4(made: Bundle) -> Bundle:
    """The same with int4 for int8 constants, which ONNX's text cannot write."""
    for value in made.components["graph"].graph.initializers.values():
        if value.dtype == ir.DataType.INT8 and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(ml_dtypes.int4), name=value.name)
            value.type = ir.TensorType(ir.DataType.INT4)
    return made


def nodes_of(made: Bundle) -> list[str]:
    """The nodes as ONNX text, attributes rounded."""
    texts = []
    for node in made.components["graph"].graph:
        outputs = ", ".join(v.name or '""' for v in node.outputs)
        domain = f"{node.domain}." if node.domain else ""
        attributes = ", ".join(f"{a.name} = {_round(a.value)}" for a in node.attributes.values())
        inputs = ", ".join(v.name if v else '""' for v in node.inputs)
        texts.append(f"[{node.name}] {outputs} = {domain}{node.op_type} <{attributes}> ({inputs})")
    return texts


def _round(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value


def skips(made: Bundle) -> list[tuple[str, str]]:
    """What the last pass declined."""
    return [(skip.where, skip.reason) for skip in made.journal[-1].skipped]


def feeds(model: ir.Model) -> dict[str, np.ndarray]:
    """Random inputs; integers are positions below 4."""
    random = np.random.default_rng(1)
    made = {}
    for value in model.graph.inputs:
        dims = [d if isinstance(d, int) else 2 for d in value.shape]
        dtype = value.dtype.numpy()
        floating = np.dtype(dtype).kind == "f"
        made[value.name] = (random.normal(size=dims) if floating else random.integers(0, 4, dims)).astype(dtype)
    return made
