"""Names in an ONNX model, as every reader of a graph relies on them: each value has one maker that comes before it.

onnxruntime sorts the nodes of the main graph itself, but not those of subgraphs; so does `sort_nodes`.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx

from hvlc.errors import Collector, UserError
from hvlc.files.reading import shown
from hvlc.inputs.onnx_model import subgraphs

_FIX = "export the model again"
_SHOWN = 4  # names in one message


class Names:
    """Values that are visible in a graph: its own and those around it.

    Attributes:
        own: of this graph.
    """

    def __init__(self, outer: "Names | None" = None) -> None:
        self.own: set[str] = set()
        self._outer = outer

    def __contains__(self, name: str) -> bool:
        return name in self.own or (self._outer is not None and name in self._outer)


def check_names(model: onnx.ModelProto, area: str) -> None:
    """Refuse a model whose values are missing, made twice or made of themselves; sorts its main graph's nodes.

    Functions are not looked at: inline them first.

    Args:
        model: its nodes are put in topological order.
        area: first part of the error's code.

    Raises:
        UserError: `AREA.graph`, all problems at once.
    """
    sort_nodes(model.graph)
    problems = Collector()
    for cause in _graph(model.graph, None, ""):
        with problems:
            raise UserError(f"{area}.graph", cause, _FIX)
    problems.raise_all()


def label(node: onnx.NodeProto, place: int) -> str:
    """Name of a node, or its operator and position where it has none."""
    return node.name or f"{node.op_type}[{place}]"


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put a graph's nodes in topological order; nodes of a cycle stay behind the others."""
    order = _order(graph.node)
    if order != list(range(len(order))):
        nodes = [onnx.NodeProto.FromString(graph.node[place].SerializeToString()) for place in order]
        del graph.node[:]
        graph.node.extend(nodes)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node and everything inside it read from the graph around it."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        inside = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        for inner in graph.node:
            yield from (name for name in reads(inner) if name not in inside)
            inside.update(inner.output)


def _order(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """Places of nodes in topological order, the given order kept where it is one; those of cycles come last."""
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    needs = [{makers[name] for name in reads(node) if name in makers} for node in nodes]
    if all(need < place for place, needed in enumerate(needs) for need in needed):
        return list(range(len(nodes)))
    feeds: Mapping[int, list[int]] = {place: [] for place in range(len(nodes))}
    for place, needed in enumerate(needs):
        for need in needed:
            feeds[need].append(place)
    waiting = [len(needed) for needed in needs]
    ready = [place for place, count in enumerate(waiting) if not count]
    order = []
    while ready:
        place = heapq.heappop(ready)
        order.append(place)
        for fed in feeds[place]:
            waiting[fed] -= 1
            if not waiting[fed]:
                heapq.heappush(ready, fed)
    return [*order, *sorted(set(range(len(nodes))) - set(order))]


def _graph(graph: onnx.GraphProto, outer: Names | None, where: str) -> Iterator[str]:
    """Problems of the names of a graph and of those inside it."""
    names = Names(outer)
    inputs = [value.name for value in graph.input]
    constants = [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]
    yield from (f"{where}{_several(inputs)} is an input twice" for _ in [0] if _several(inputs))
    yield from (f"{where}{_several(constants)} is a constant twice" for _ in [0] if _several(constants))
    names.own.update(inputs, constants)
    labels = [node.name for node in graph.node if node.name]
    yield from (f"{where}two nodes are named {_several(labels)}" for _ in [0] if _several(labels))
    later = Counter(name for node in graph.node for name in node.output if name)
    for place, node in enumerate(graph.node):
        this = f"{where}{label(node, place)}"
        for name in dict.fromkeys(filter(None, node.input)):
            if name in names:
                continue
            made = "is made of itself or later" if name in later else "is made by no node and is not an input"
            yield f"{shown(this)} reads {shown(name)!r}, which {made}"
        for inner in subgraphs(node):
            yield from _graph(inner, names, f"{this}/")
        for name in filter(None, node.output):
            if name in names:
                yield f"{shown(this)} writes {shown(name)!r}, which is there already"
            names.own.add(name)
    for name in (value.name for value in graph.output):
        if name not in names:
            yield f"{where}the output {shown(name)!r} is made by no node"


def _several(names: Iterable[str]) -> str:
    """Names that come more than once, for a message; empty when none does."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    return ", ".join(repr(shown(name)) for name in twice[:_SHOWN])
