"""Read the graphs of a package, and refuse what this version does not write into one.

A graph says where its weights lie, may define functions and name operators of other libraries, and may hold a loop
without end. onnxruntime believes it; so it is looked at before.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from hvlc.files.reading import read_bytes
from hvlc.opening.tensors import check_values, damaged

#: Largest graph without its weights: a decoder of 100 layers has some megabytes.
_LARGEST = 64_000_000
_MICROSOFT = "com.microsoft"
_DEEPEST = 8  # graphs within each other
#: Operators of onnxruntime that graphs hold, but for `EPContext`, which compiled ones do.
_CONTRIB = frozenset(
    {
        "CausalConvWithState",
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MultiHeadAttention",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
_CONTEXT = "EPContext"
#: Operators that find one range for all that they are given, whatever the axes.
_WHOLE_TENSOR = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul"})
#: Standard operators that may run without end, or hold what is not a tensor; a Scan ends with its input.
_NEVER_WRITTEN = frozenset({"Loop", "SequenceMap"})
#: onnxruntime takes session options from a file under this key, where the environment allows it.
_SESSION_OPTIONS = "ort_config"
_CONTEXT_SOURCES = ("QNN", "QNNExecutionProvider")

#: Containers of nodes.
Body = onnx.GraphProto | onnx.FunctionProto


def load_graph(path: Path) -> onnx.ModelProto:
    """A graph without its external data.

    Raises:
        UserError: the file is not a graph, or is larger than one without weights can be.
    """
    content = read_bytes(path, "package.graph", limit=_LARGEST, fix="build or copy the package again")
    try:
        return onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise damaged(path.name, "it is not an ONNX file") from error


def nested(graph: Body, depth: int = 0) -> Iterator[Body]:
    """A graph and all of its subgraphs, outer ones first.

    Raises:
        UserError: they are nested too deeply.
    """
    if depth > _DEEPEST:
        raise damaged(graph.name, f"more than {_DEEPEST} graphs within each other")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from nested(inner, depth + 1)


def stored_tensors(graph: Body) -> Iterator[onnx.TensorProto]:
    """Every tensor that a graph stores, in attributes too; subgraphs are left out."""
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            alone = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for sparse in (*alone, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def mixes_batch(graph: onnx.GraphProto) -> bool:
    """Whether nodes of an encoder's graph make of a batch what depends on its other rows: ranges or sums of all of it.

    What remains are products, norms and attention, in which a row of a batch is alone.
    """
    return any(_takes_all(node) for body in nested(graph) for node in body.node)


def _takes_all(node: onnx.NodeProto) -> bool:
    """Whether a node looks at whole tensors: by its kind, or as a reduction without axes."""
    if not node.op_type.startswith("Reduce"):
        return node.op_type in _WHOLE_TENSOR
    given = {attribute.name: attribute.i for attribute in node.attribute}
    has_axes = "axes" in given or (len(node.input) > 1 and bool(node.input[1]))
    return not has_axes and not given.get("noop_with_empty_axes", 0)


def check_graph(path: Path, sizes: Mapping[str, int], binary: str | None) -> onnx.ModelProto:
    """Read a graph of a package and hold all that it names against what this version writes.

    Args:
        path: of the graph's file.
        sizes: bytes of every file of the package.
        binary: file with the context of a compiled graph; None for another graph.

    Returns:
        The graph without its external data.

    Raises:
        UserError: it is not a graph, it holds operators, functions or options that hvlc does not write, it reads data
            that is not there or lies outside the package, or its nodes read values that nothing makes.
    """
    model = load_graph(path)
    file = path.name
    if model.functions:
        raise damaged(file, f"it defines functions of its own ({model.functions[0].name!r}), which hvlc does not write")
    if model.training_info:
        raise damaged(file, "it holds training steps, which hvlc does not write")
    if any(entry.key.lower() == _SESSION_OPTIONS for entry in model.metadata_props):
        raise damaged(file, "it brings options for the session that opens it, which hvlc does not write")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    for graph in nested(model.graph):
        for node in graph.node:
            _check_operator(file, node, opset, compiled=binary is not None)
        for tensor in stored_tensors(graph):
            check_values(file, tensor, sizes)
    for node in model.graph.node:
        if node.op_type == _CONTEXT:
            _check_context(file, model, node, binary)
    _check_flow(file, model.graph, frozenset())
    return model


def _check_operator(file: str, node: onnx.NodeProto, opset: int, *, compiled: bool) -> None:
    if node.domain in ("", "ai.onnx"):
        known = node.op_type not in _NEVER_WRITTEN and _is_standard(node.op_type, opset)
    else:
        known = node.domain == _MICROSOFT and (node.op_type in _CONTRIB or (compiled and node.op_type == _CONTEXT))
    if not known:
        name = f"{node.domain}.{node.op_type}".removeprefix(".")
        raise damaged(file, f"{node.name[:80]!r} is a {name[:80]}, which hvlc does not write")


def _is_standard(op_type: str, opset: int) -> bool:
    """Whether ONNX has an operator, or onnxruntime has it under ONNX's name."""
    return onnx.defs.has(op_type, min(opset, onnx.defs.onnx_opset_version()))


def _check_context(file: str, model: onnx.ModelProto, node: onnx.NodeProto, binary: str | None) -> None:
    """A context is all of its graph, and lies in the binary which the manifest lists."""
    if len(model.graph.node) != 1:
        raise damaged(file, "it is not wholly compiled: it holds a context and other nodes")
    found = {attribute.name: attribute for attribute in node.attribute}
    named = found["ep_cache_context"].s if "ep_cache_context" in found else b""
    if binary is None or "embed_mode" not in found or found["embed_mode"].i != 0 or named != binary.encode():
        raise damaged(file, f"its context is not in {binary}, as the manifest says, but in {named[:80]!r}")
    source = found["source"].s.decode("utf-8", "replace") if "source" in found else ""
    if source and source not in _CONTEXT_SOURCES:
        raise damaged(file, f"its context was made by {source[:80]!r}, not by {_CONTEXT_SOURCES[0]}")


def _check_flow(file: str, graph: onnx.GraphProto, outer: frozenset[str]) -> None:
    """Every value that is read is made before, and once."""
    known = set(outer)
    inputs = {value.name for value in graph.input}
    made = [value.name for value in graph.input]
    made += [tensor.name for tensor in graph.initializer if tensor.name not in inputs]
    made += [sparse.values.name for sparse in graph.sparse_initializer]
    known.update(made)
    if len(made) != len(set(made)):
        raise damaged(file, "two of its inputs or constants have one name")
    own = set(made)
    for node in graph.node:
        missing = next((name for name in node.input if name and name not in known), None)
        if missing is not None:
            raise damaged(file, f"{node.name[:80]!r} reads {missing[:80]!r}, which nothing before it makes")
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _check_flow(file, inner, frozenset(known))
        outputs = [name for name in node.output if name]
        if len(outputs) != len(set(outputs)) or own & set(outputs):
            raise damaged(file, f"{node.name[:80]!r} makes a value that is there already")
        own.update(outputs)
        known.update(outputs)
    missing = next((value.name for value in graph.output if value.name not in known), None)
    if missing is not None:
        raise damaged(file, f"nothing makes its output {missing[:80]!r}")
