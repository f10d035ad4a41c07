"""Compare graphs regardless of the names of nodes and values: match equal nodes, and find the differing ones.

Each node has three hashes: its label (operator, attributes, and shape and dtype of the constants that it reads), what
flows into it (the labels of everything upstream, a Merkle tree), and what it flows into (the same downstream). Nodes
with equal hashes on both sides are the same; of a node with one equal side the other side was changed elsewhere. Names
decide between nodes that are alike, and pair up what is left. Subgraphs are part of the node that holds them: their
nodes stand before it, and their results flow into it.

Weisfeiler and Lehman's refinement, on graphs that have a direction and an order of inputs: Shervashidze et al.,
"Weisfeiler-Lehman Graph Kernels", JMLR 2011.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import onnx
from google.protobuf.message import Message

from hvlc.opening.graphs import load_graph
from hvlc.opening.tensors import damaged
from hvlc.package.initializers import Initializer, open_initializer

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
#: Constants of at most so many integers are part of the structure: shapes, axes, sizes of splits.
_STRUCTURAL = 64
_INTEGERS = ("int64", "int32", "bool")
_MOST_ALIGNED = 4_000_000  # comparisons of a sequence alignment, which takes their product


@dataclass(frozen=True)
class Node:
    """A node of a flattened graph.

    Attributes:
        op: operator with its domain, if that is not ONNX's own.
        name: in its graph.
        path: names of the nodes whose subgraphs hold it, with the attribute: "choose_scale/else_branch".
        attributes: by name as text, subgraphs left out.
        label: hash of what it is, but for what it reads.
        inputs: numbers of the values that it reads; None where it leaves one out.
        nested: numbers of the results of its subgraphs, in order.
        outputs: numbers of the values that it makes; None where it leaves one out.
    """

    op: str
    name: str
    path: str
    attributes: Mapping[str, str]
    label: bytes
    inputs: tuple[int | None, ...]
    nested: tuple[int, ...]
    outputs: tuple[int | None, ...]

    @property
    def place(self) -> str:
        """Name with the path to it."""
        return f"{self.path}/{self.name}" if self.path else self.name


@dataclass
class CanonicalGraph:
    """A graph as nodes and numbered values.

    Attributes:
        nodes: in an order in which they can run.
        constants: the initializers by the number of their value.
        inputs: name, element type and dimensions of the graph's inputs.
        outputs: the same of its outputs.
        results: numbers of the outputs' values.
        upstream: of each node.
        downstream: of each node.
    """

    nodes: list[Node]
    constants: dict[int, Initializer]
    inputs: dict[str, str]
    outputs: dict[str, str]
    results: list[int]
    upstream: list[bytes] = field(default_factory=list)
    downstream: list[bytes] = field(default_factory=list)

    @property
    def digest(self) -> bytes:
        """Equal for graphs that are equal but for names of nodes and values, order, and values of float constants."""
        both = sorted(zip(self.upstream, self.downstream, strict=True))
        return _hash(*(part for pair in both for part in pair), repr((self.inputs, self.outputs)))


def canonical_graph(path: Path, sizes: Mapping[str, int]) -> CanonicalGraph:
    """Read a graph, its weights left on disk.

    Args:
        path: of the ONNX file.
        sizes: of every file of the package.

    Raises:
        UserError: the file is not a graph, reads values that nothing makes, or data that is not there.
    """
    return _Flattening(path, sizes).flattened()


def _hash(*parts: bytes | str) -> bytes:
    """16 bytes for parts of any length."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


_Body = onnx.GraphProto | onnx.FunctionProto


class _Flattening:
    """Numbers the values of a graph, its subgraphs and functions."""

    def __init__(self, path: Path, sizes: Mapping[str, int]) -> None:
        self._model = load_graph(path)
        self._path, self._sizes = path, sizes
        self._nodes: list[Node] = []
        self._constants: dict[int, Initializer] = {}
        self._signatures: dict[int, str] = {}
        self._flow: list[bytes] = []  # hash of what flows into each value

    def flattened(self) -> CanonicalGraph:
        graph = self._model.graph
        initialized = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in initialized]
        scope = {value.name: self._value("input", str(i), _type(value)) for i, value in enumerate(inputs)}
        results = self._body(graph, scope, "")
        for function in self._model.functions:
            name = f"{function.domain}.{function.name}"
            arguments = {n: self._value("argument", name, str(i)) for i, n in enumerate(function.input)}
            self._body(function, arguments, f"function {name}")
        found = CanonicalGraph(
            nodes=self._nodes,
            constants=self._constants,
            inputs={value.name: _type(value) for value in inputs},
            outputs={value.name: _type(value) for value in graph.output},
            results=results,
        )
        found.upstream = [self._into(node) for node in self._nodes]
        found.downstream = _downstream(found)
        return found

    def _value(self, *parts: bytes | str) -> int:
        """The number of a new value."""
        self._flow.append(_hash(*parts))
        return len(self._flow) - 1

    def _body(self, body: _Body, outer: Mapping[str, int], path: str) -> list[int]:
        """Flatten a graph or function; the numbers of its outputs."""
        scope = dict(outer)
        if isinstance(body, onnx.GraphProto):
            for tensor in body.initializer:
                constant = open_initializer(self._path, tensor, self._sizes)
                signature = _signature(constant)
                number = self._value("constant", signature)
                scope[tensor.name] = number
                self._constants[number], self._signatures[number] = constant, signature
        for node in body.node:
            self._node(node, scope, path)
        names = [value if isinstance(value, str) else value.name for value in body.output]
        return [self._read(name, scope, "the outputs") for name in names]

    def _node(self, node: onnx.NodeProto, scope: dict[str, int], path: str) -> None:
        inputs = tuple(self._read(name, scope, node.name) if name else None for name in node.input)
        nested, graphs = [], []
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
            for i, graph in enumerate(inner):
                where = f"{path}/{node.name}/{attribute.name}{i or ''}".removeprefix("/")
                formal = {
                    v.name: self._value("formal", attribute.name, str(i), str(k)) for k, v in enumerate(graph.input)
                }
                results = self._body(graph, {**scope, **formal}, where)
                nested += results
                graphs.append(f"{attribute.name} {len(results)}")
        op = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        attributes = {a.name: _text(a) for a in sorted(node.attribute, key=lambda a: a.name) if a.type not in _GRAPHS}
        reads = [self._label(number) for number in inputs]
        made = "".join("1" if name else "0" for name in node.output)
        label = _hash(op, repr(attributes), repr(graphs), made, *reads)
        outputs = tuple(self._value(b"") if name else None for name in node.output)
        scope |= {name: number for name, number in zip(node.output, outputs, strict=True) if number is not None}
        found = Node(op, node.name, path, attributes, label, inputs, tuple(nested), outputs)
        into = self._into(found)
        for position, number in enumerate(outputs):
            if number is not None:
                self._flow[number] = _hash(into, str(position))
        self._nodes.append(found)

    def _into(self, node: Node) -> bytes:
        """Hash of a node and everything upstream."""
        read = [b"" if number is None else self._flow[number] for number in node.inputs]
        return _hash(node.label, *read, "nested", *(self._flow[number] for number in node.nested))

    def _label(self, number: int | None) -> str:
        """Label of an input within its node's own."""
        if number is None:
            return "absent"
        return self._signatures.get(number, "value")

    def _read(self, name: str, scope: Mapping[str, int], reader: str) -> int:
        if name not in scope:
            raise damaged(self._path.name, f"{reader!r} reads {name!r}, which nothing before it makes")
        return scope[name]


def _signature(constant: Initializer) -> str:
    """Structure of a constant as text: dtype and shape, with the values of a few integers."""
    form = f"{constant.dtype} {list(constant.shape)}"
    if constant.dtype in _INTEGERS and constant.size <= _STRUCTURAL:
        return f"{form} {constant.read().tolist()}"
    return form


def _type(value: onnx.ValueInfoProto) -> str:
    """Element type and dimensions as text, e.g. "float[batch,3]"."""
    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return name
    dims = [d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in tensor.shape.dim]
    return f"{name}[{','.join(dims)}]"


def _text(attribute: onnx.AttributeProto) -> str:
    """The value of an attribute as text; of tensors and types the digest."""
    if attribute.ref_attr_name:
        return f"@{attribute.ref_attr_name}"
    value = onnx.helper.get_attribute_value(attribute)
    items = [value] if isinstance(value, int | float | bytes) or not isinstance(value, Iterable) else list(value)
    texts = [repr(i) if isinstance(i, int | float | bytes) else _message(i) for i in items]
    return texts[0] if items == [value] else f"[{', '.join(texts)}]"


def _message(item: Message) -> str:
    """Digest of a tensor or type, whatever it is called."""
    nameless = type(item)()
    nameless.CopyFrom(item)
    for field_name in ("name", "doc_string"):
        if field_name in item.DESCRIPTOR.fields_by_name:
            nameless.ClearField(field_name)
    return _hash(nameless.SerializeToString(deterministic=True)).hex()


def _downstream(graph: CanonicalGraph) -> list[bytes]:
    """Hash of each node and everything that it flows into."""
    readers: dict[int, list[bytes]] = defaultdict(list)
    for position, number in enumerate(graph.results):
        readers[number].append(_hash("output", str(position)))
    found: list[bytes] = []
    for node in reversed(graph.nodes):
        flows = [part for number in node.outputs for part in _sorted_readers(number, readers)]
        down = _hash(node.label, *flows)
        for slot, read in enumerate((*node.inputs, *node.nested)):
            if read is not None:
                readers[read].append(_hash(down, str(slot)))
        found.append(down)
    return found[::-1]


def _sorted_readers(number: int | None, readers: Mapping[int, list[bytes]]) -> Iterator[bytes]:
    yield b"output"
    if number is not None:
        yield from sorted(readers.get(number, ()))


@dataclass(frozen=True)
class Matching:
    """Pairs of nodes of two graphs that are each other's counterparts.

    Attributes:
        same: positions of nodes with the same label.
        changed: positions of nodes that stand in for each other with other labels.
        only_first: positions of nodes without a counterpart.
        only_second: the same of the second graph.
    """

    same: list[tuple[int, int]]
    changed: list[tuple[int, int]]
    only_first: list[int]
    only_second: list[int]


def match(first: CanonicalGraph, second: CanonicalGraph) -> Matching:
    """Pair up the nodes of two graphs, the surest first."""
    left, right = list(range(len(first.nodes))), list(range(len(second.nodes)))
    same: list[tuple[int, int]] = []
    keys: tuple[Callable[[CanonicalGraph, int], Hashable], ...] = (
        lambda g, i: (g.upstream[i], g.downstream[i], g.nodes[i].place),
        lambda g, i: (g.upstream[i], g.downstream[i]),
        lambda g, i: (g.upstream[i], g.nodes[i].place),
        lambda g, i: (g.downstream[i], g.nodes[i].place),
        lambda g, i: g.upstream[i],
        lambda g, i: g.downstream[i],
        lambda g, i: (g.nodes[i].label, g.nodes[i].place),
    )
    for key in keys:
        pairs, left, right = _paired(first, second, left, right, key)
        same += pairs
    pairs, left, right = _aligned(first, second, left, right, lambda node: node.label)
    same += pairs
    changed, left, right = _paired(first, second, left, right, lambda g, i: g.nodes[i].place)
    more, left, right = _aligned(first, second, left, right, lambda node: node.op)
    return Matching(sorted(same), sorted([*changed, *more]), left, right)


def _paired(
    first: CanonicalGraph,
    second: CanonicalGraph,
    left: list[int],
    right: list[int],
    key: Callable[[CanonicalGraph, int], Hashable],
) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Pairs of equal key, in order, and what is left on both sides."""
    waiting: dict[Hashable, list[int]] = defaultdict(list)
    for j in reversed(right):
        waiting[key(second, j)].append(j)
    pairs = [(i, found.pop()) for i in left if (found := waiting.get(key(first, i)))]
    taken = {i for i, _ in pairs}, {j for _, j in pairs}
    return pairs, [i for i in left if i not in taken[0]], [j for j in right if j not in taken[1]]


def _aligned(
    first: CanonicalGraph,
    second: CanonicalGraph,
    left: list[int],
    right: list[int],
    key: Callable[[Node], Hashable],
) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Pairs along the longest common runs of keys, and what is left; nothing where there is too much to align."""
    if len(left) * len(right) > _MOST_ALIGNED:
        return [], left, right
    keys = [key(first.nodes[i]) for i in left], [key(second.nodes[j]) for j in right]
    pairs = [
        (left[block.a + k], right[block.b + k])
        for block in SequenceMatcher(None, *keys, autojunk=False).get_matching_blocks()
        for k in range(block.size)
    ]
    taken = {i for i, _ in pairs}, {j for _, j in pairs}
    return pairs, [i for i in left if i not in taken[0]], [j for j in right if j not in taken[1]]


def paired_constants(first: CanonicalGraph, second: CanonicalGraph, matching: Matching) -> list[tuple[int, int]]:
    """Numbers of the constants that matched nodes read in the same place, then of those with the same name.

    A constant is in several pairs where its readers no longer read the same one.
    """
    found: set[tuple[int, int]] = set()
    for i, j in [*matching.same, *matching.changed]:
        for mine, other in zip(first.nodes[i].inputs, second.nodes[j].inputs, strict=False):
            if mine is None or other is None or mine not in first.constants or other not in second.constants:
                continue
            a, b = first.constants[mine], second.constants[other]
            if a.name == b.name or (a.dtype, a.shape) == (b.dtype, b.shape):
                found.add((mine, other))
    read = {mine for mine, _ in found}, {other for _, other in found}
    by_name = {constant.name: number for number, constant in second.constants.items()}
    for number, constant in first.constants.items():
        same = by_name.get(constant.name)
        if same is not None and number not in read[0] and same not in read[1]:
            found.add((number, same))
    return sorted(found)
