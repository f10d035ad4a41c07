"""Run a graph over many samples segment by segment, so that only one segment's weights are in memory.

A segment ends where a group of linears reads its input: everything before has run with the weights of the package, so
the input's statistics can be collected. Values that later segments read are kept for every sample, large ones on disk.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from hvlc.files.scratch import nameless_file
from hvlc.files.writing import writing
from hvlc.graphs.builder import IR_VERSION, MICROSOFT, OPSET
from hvlc.graphs.sessions import open_session, session_options
from hvlc.weights.lazy import LazyTensor, expression_of

_ON_DISK = 1 << 20  # bytes from which a value is kept in a file

_LARGE = 1 << 14  # bytes from which a constant is given to a session

#: The values that a weight has on this walk; None for those that the checkpoint gives it.
Weights = Callable[[ir.Value], np.ndarray | None]
#: Shown a value of one sample: its name and its numbers.
Observer = Callable[[str, np.ndarray], None]


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes of a graph.

    Attributes:
        nodes: in order.
        inputs: what they read of earlier segments and of the graph's inputs.
        weights: lazy and large initializers that they read; they are given to a session, not held by it.
        outputs: what later segments, the caller or an observer reads of what they make.
        live: names of all values that are still read when it has run: its own outputs and earlier ones.
        lookups: rows of large tables that are looked up by graph inputs, which is done beside the graph: a few rows
            are read instead of the table.
        observed: values that an observer is shown when it has run, among its outputs, its lookups' and, at the
            beginning, the graph's inputs.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    weights: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    live: frozenset[str]
    lookups: tuple[ir.Node, ...] = ()
    observed: tuple[ir.Value, ...] = ()


def cut_segments(
    graph: ir.Graph, ends: Iterable[ir.Value], wanted: Iterable[ir.Value] = (), observed: Iterable[ir.Value] = ()
) -> list[Segment]:
    """Cut a graph's nodes so that each of `ends` is known when its segment has run, before the readers that matter.

    Args:
        graph: nodes in topological order, without subgraphs that read its values.
        ends: values, in the order in which the readers that matter come; graph inputs make an empty first segment.
        wanted: values that the caller reads at the end; nodes behind the last that anything wanted, anything observed
            or any end's reader needs are left out.
        observed: values that an observer is shown on the way; they are not kept for it.
    """
    nodes, ends, wanted, observed = list(graph), tuple(ends), tuple(wanted), set(observed)
    position = {node: i for i, node in enumerate(nodes)}
    # What something else reads early is cut where the end before it is: still ahead of the reader that matters.
    cuts = list(accumulate((min(position[node] for node in value.consumers()) for value in ends), max))
    last = max([*(position[p] + 1 for v in {*wanted, *observed} if (p := v.producer())), *cuts, 0])
    bounds = [0, *cuts, last] if wanted or observed else [0, *cuts]
    made: list[Segment] = []
    for index, (start, stop) in enumerate(pairwise(bounds)):
        lookups = [node for node in nodes[start:stop] if _is_lookup(node)]
        inside = [node for node in nodes[start:stop] if node not in lookups]
        produced = {v for node in inside for v in node.outputs}
        read = list(dict.fromkeys(v for node in inside for v in node.inputs if v is not None))
        later = {v for node in nodes[stop:last] for v in node.inputs if v is not None} | {*wanted, *ends[index:]}
        looked_up = [v for node in lookups for v in node.outputs]
        known = [*(graph.inputs if index == 0 else ()), *looked_up, *(v for node in inside for v in node.outputs)]
        made.append(
            Segment(
                tuple(inside),
                tuple(v for v in read if v.const_value is None and v not in produced),
                tuple(v for v in read if _is_given(v)),
                tuple(v for node in inside for v in node.outputs if v in later or v in observed),
                frozenset(str(v.name) for v in later),
                tuple(lookups),
                tuple(v for v in known if v in observed),
            )
        )
    return made


def _is_given(value: ir.Value) -> bool:
    """Whether a value is a constant that many sessions had better not hold a copy of each, such as a rotary table."""
    constant = value.const_value
    return constant is not None and (isinstance(constant, LazyTensor) or constant.nbytes >= _LARGE)


def _is_lookup(node: ir.Node) -> bool:
    """Whether a node copies rows of a lazy table that a graph input names."""
    if node.op_type != "Gather" or node.domain or ("axis" in node.attributes and node.attributes["axis"].as_int()):
        return False
    table, rows = node.inputs
    lazy = table is not None and isinstance(table.const_value, LazyTensor)
    return lazy and rows is not None and rows.is_graph_input()


def _look_up(node: ir.Node, rows: np.ndarray, weights: Weights) -> np.ndarray:
    """float32 `[..., width]`: the rows of the node's table."""
    table = node.inputs[0]
    if table is None or table.const_value is None:
        raise ValueError(f"{node.name} has no table")
    chosen = weights(table)
    if chosen is not None:
        return np.asarray(chosen[rows])
    values = expression_of(table.const_value)
    if values.whole:
        return values.read()[rows]
    wanted, places = np.unique(rows, return_inverse=True)
    found = np.concatenate([values.rows(0, 0), *(values.rows(row, row + 1) for row in wanted.tolist())])
    return found[places].reshape(*rows.shape, *values.shape[1:])


@dataclass(frozen=True)
class WalkCache:
    """Sessions and weights that many walks over the same graphs share.

    Attributes:
        sessions: of segments; they hold no lazy weights.
        weights: as the checkpoint gives them and graphs read them, with the values of a spool on disk.
    """

    sessions: dict[Segment, ort.InferenceSession] = field(default_factory=dict)
    weights: dict[ir.Value, np.ndarray] = field(default_factory=dict)


class Walk:
    """The values of all samples, as far as the segments have been run."""

    def __init__(
        self,
        feeds: Sequence[Mapping[str, np.ndarray]],
        threads: int,
        spool: Path | None = None,
        cache: WalkCache | None = None,
    ) -> None:
        """Begin.

        Args:
            feeds: the graph's inputs by name, for each sample (or batch of samples).
            threads: of onnxruntime.
            spool: directory for large values; None keeps them in memory. Nothing is left in it, even after a kill.
            cache: for segments that are run again; None keeps nothing.
        """
        self._values: list[dict[str, np.ndarray]] = [dict(feed) for feed in feeds]
        self._threads = threads
        self._spool = spool
        self._cache = cache

    def branch(self) -> "Walk":
        """A walk that goes on from here by itself; the values so far are shared, not copied."""
        return Walk(self._values, self._threads, self._spool, self._cache)

    @staticmethod
    def joined(walks: Sequence["Walk"]) -> "Walk":
        """One walk over the samples of several branches, one branch after another."""
        first = walks[0]
        values = [sample for walk in walks for sample in walk._values]
        return Walk(values, first._threads, first._spool, first._cache)

    def __len__(self) -> int:
        return len(self._values)

    def value(self, value: ir.Value, sample: int) -> np.ndarray:
        """A value of a sample that the last segment left."""
        return self._values[sample][str(value.name)]

    def run(
        self,
        segment: Segment,
        weights: Weights,
        done: Callable[[], None] = lambda: None,
        observe: Observer = lambda name, values: None,
    ) -> None:
        """Run a segment over every sample, then drop what nothing reads any more.

        Args:
            segment: the next one.
            weights: asked for every weight.
            done: called after each sample.
            observe: shown the segment's observed values of each sample.
        """
        names = [str(v.name) for v in segment.outputs]
        for values, results in zip(self._values, self.results(segment, weights), strict=True):
            made = dict(zip(names, results, strict=True))
            for value in segment.observed:
                name = str(value.name)
                observe(name, made[name] if name in made else values[name])
            values |= {name: self._put(result) for name, result in made.items() if name in segment.live}
            for name in values.keys() - segment.live:
                del values[name]
            done()

    def results(self, segment: Segment, weights: Weights) -> Iterator[list[np.ndarray]]:
        """Run a segment without keeping what it makes: its outputs, sample after sample; none of one that only looks
        up rows.

        Args:
            segment: the next one.
            weights: asked for every weight.
        """
        for node in segment.lookups:
            for values in self._values:
                values[str(node.outputs[0].name)] = self._put(_look_up(node, values[str(node.inputs[1].name)], weights))  # type: ignore[union-attr]
        if not segment.nodes or not self._values:
            yield from ([] for _ in self._values)
            return
        constants = {str(v.name): self._constant(v, weights) for v in segment.weights}
        session = self._session(segment)
        names = [str(v.name) for v in segment.outputs]
        for values in self._values:
            feeds = {str(v.name): values[str(v.name)] for v in segment.inputs}
            yield session.run(names, feeds | constants) if names else []

    def _session(self, segment: Segment) -> ort.InferenceSession:
        sessions = self._cache.sessions if self._cache else {}
        if segment not in sessions:
            sessions[segment] = _session(segment, self._values[0], self._threads)
        return sessions[segment]

    def _constant(self, weight: ir.Value, weights: Weights) -> np.ndarray:
        chosen = weights(weight)
        if chosen is not None:
            return np.ascontiguousarray(chosen)
        known = self._cache.weights if self._cache else {}
        if weight not in known:
            known[weight] = self._put(_stored(weight)) if self._cache else _stored(weight)
        return known[weight]

    def _put(self, array: np.ndarray) -> np.ndarray:
        """The array, on disk if it is large: in a file without a name, which goes with its last reader."""
        if self._spool is None or array.nbytes < _ON_DISK:
            return array
        with writing(self._spool, "output.temporary", "values between layers"), nameless_file(self._spool) as file:
            # Unlike ndarray.tofile, it says why it fails.
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            return np.memmap(file, array.dtype, "r", shape=array.shape)


def in_float(weight: ir.Value) -> None:
    """Every weight as the checkpoint has it."""


def walk(path: Sequence[Segment], walk: Walk, weights: Weights) -> None:
    """Run all segments; what the caller wanted remains."""
    for segment in path:
        walk.run(segment, weights)


def _stored(weight: ir.Value) -> np.ndarray:
    """A weight as the checkpoint gives it."""
    if weight.const_value is None:
        raise ValueError(f"{weight.name} has no value")
    expression = expression_of(weight.const_value)
    values = np.ascontiguousarray(expression.read())
    for tensor in expression.stored():
        tensor.release()
    return values


def _session(segment: Segment, example: Mapping[str, np.ndarray], threads: int) -> ort.InferenceSession:
    """The segment as a model of its own; weights are inputs of it."""
    inputs = {v: _placeholder(v, example[str(v.name)].dtype, example[str(v.name)].ndim) for v in segment.inputs}
    inputs |= {v: _typed(v) for v in segment.weights}
    known = dict(inputs)
    initializers = []
    for v in dict.fromkeys(v for node in segment.nodes for v in node.inputs if v is not None):
        if v not in known and v.const_value is not None:
            known[v] = ir.Value(name=v.name, const_value=v.const_value)
            initializers.append(known[v])
    nodes = []
    for node in segment.nodes:
        outputs = [ir.Value(name=v.name, type=v.type) for v in node.outputs]
        known |= dict(zip(node.outputs, outputs, strict=True))
        arguments = [None if v is None else known[v] for v in node.inputs]
        attributes = list(node.attributes.values())
        nodes.append(ir.Node(node.domain, node.op_type, arguments, attributes, outputs=outputs, name=node.name))
    outputs = [known[v] for v in segment.outputs]
    graph = ir.Graph(
        list(inputs.values()), outputs, nodes=nodes, initializers=initializers, opset_imports={"": OPSET, MICROSOFT: 1}
    )
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    # Segments of all sizes follow one another; nothing is to be held back.
    return open_session(model, session_options(threads, arena=False))


def _placeholder(value: ir.Value, dtype: np.dtype, rank: int) -> ir.Value:
    shape = ir.Shape([f"{value.name}_{axis}" for axis in range(rank)])
    return ir.Value(name=value.name, type=ir.TensorType(ir.DataType.from_numpy(dtype)), shape=shape)


def _typed(value: ir.Value) -> ir.Value:
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"{value.name} has no value")
    return ir.Value(name=value.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))
