"""Compare two packages, from the files' bytes down to single weights.

Files with equal bytes are not opened. One tensor of each package is in memory at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from hvlc.errors import Progress, UserError
from hvlc.files.digests import digest_file
from hvlc.manifest.manifest import MANIFEST, ComponentEntry, Manifest
from hvlc.opening.graphs import load_graph
from hvlc.opening.package import open_package
from hvlc.package.canonical import Matching, canonical_graph, match, paired_constants
from hvlc.package.contents import file_sizes
from hvlc.package.distance import distance
from hvlc.package.initializers import Initializer
from hvlc.package.settings import changed_settings, changed_tokenizer, changed_values
from hvlc.package.weights import StoredWeight, graph_weights
from hvlc.results.difference import (
    ComponentDifference,
    Difference,
    FileChange,
    Likeness,
    NodeChange,
    TensorChange,
    ValueChange,
)


@dataclass(frozen=True)
class _Package:
    """A package with the size and digest of every file."""

    directory: Path
    manifest: Manifest
    sizes: Mapping[str, int]
    digests: Mapping[str, str]

    @classmethod
    def open(cls, directory: Path) -> "_Package":
        manifest = open_package(directory).manifest
        sizes = file_sizes(directory, manifest)
        listed = {*sizes, MANIFEST}
        strays = [p for p in sorted(directory.iterdir()) if p.name not in listed and p.is_file() and not p.is_symlink()]
        sizes = {**sizes, **{path.name: path.stat().st_size for path in strays}}
        return cls(directory, manifest, sizes, {name: digest_file(directory / name) for name in sizes})


def difference(a: Path, b: Path, *, progress: Progress | None = None) -> Difference:
    """Compare two packages.

    Args:
        a: the first.
        b: the second.
        progress: told before each component.

    Raises:
        UserError: one of the two is not a package, or is damaged.
    """
    first, second = _Package.open(a), _Package.open(b)
    names = list(dict.fromkeys([*first.manifest.components, *second.manifest.components]))
    components = []
    for done, name in enumerate(names):
        if progress:
            progress(name, done, len(names))
        components.append(_component(name, first, second))
    files = tuple(_files(first, second))
    return Difference(
        a=a.resolve().name,
        b=b.resolve().name,
        files=files,
        components=tuple(components),
        settings=changed_settings(a, b, (first.manifest, second.manifest)) if files else {},
        tokenizer=changed_tokenizer(a, b) if files else (),
    )


def _files(first: _Package, second: _Package) -> Iterator[FileChange]:
    for name in dict.fromkeys([*first.digests, *second.digests]):
        digests = first.digests.get(name), second.digests.get(name)
        if digests[0] != digests[1]:
            yield FileChange(name=name, bytes=(first.sizes.get(name), second.sizes.get(name)), sha256=digests)


def _component(name: str, first: _Package, second: _Package) -> ComponentDifference:
    """One component of both packages, or of one."""
    entries = first.manifest.components.get(name), second.manifest.components.get(name)
    if entries[0] is None or entries[1] is None:
        there: Likeness = "only in B" if entries[0] is None else "only in A"
        counts = [
            0 if e is None else _count(p.directory / e.file) for p, e in zip((first, second), entries, strict=True)
        ]
        compiled = tuple(_compiled(entries))
        return ComponentDifference(name=name, likeness=there, nodes=(counts[0], counts[1]), facts=compiled)
    paths = first.directory / entries[0].file, second.directory / entries[1].file
    if any(entry.compiled for entry in entries if entry):
        return _compiled_pair(name, first, second)
    if _same_bytes(first, second, paths):
        count = _count(paths[0])
        return ComponentDifference(name=name, likeness="identical", nodes=(count, count))
    return _Pair(name, first, second, paths).compared()


def _compiled_pair(name: str, first: _Package, second: _Package) -> ComponentDifference:
    """A component of which at least one side is a binary: equal to the last byte, or not readable."""
    entries = first.manifest.components[name], second.manifest.components[name]
    paths = first.directory / entries[0].file, second.directory / entries[1].file
    binaries = [
        package.digests.get(entry.compiled.binary) if entry.compiled else None
        for package, entry in zip((first, second), entries, strict=True)
    ]
    same = binaries[0] == binaries[1] and _same_bytes(first, second, paths)
    facts = _compiled(entries) if not same else ()
    return ComponentDifference(
        name=name,
        likeness="identical" if same else "compiled",
        nodes=(_count(paths[0]), _count(paths[1])),
        facts=tuple(facts),
    )


def _compiled(entries: Sequence[ComponentEntry | None]) -> Iterator[ValueChange]:
    """Facts of the sides of a component that are compiled: the chip, and that the weights are not readable."""
    chips = [entry.compiled.chip if entry and entry.compiled else None for entry in entries]
    yield from changed_values({"compiled for": chips[0]}, {"compiled for": chips[1]})
    if any(chips):
        hidden = [
            "compiled, not readable" if chip else "graph" if entry else None
            for chip, entry in zip(chips, entries, strict=True)
        ]
        yield ValueChange(key="weights", a=hidden[0], b=hidden[1])


def _count(path: Path) -> int:
    """Nodes of the main graph."""
    return len(load_graph(path).graph.node)


def _same_bytes(first: _Package, second: _Package, paths: tuple[Path, Path]) -> bool:
    """Whether two graphs and all data files that they read are the same."""
    if first.digests[paths[0].name] != second.digests[paths[1].name]:
        return False
    model = load_graph(paths[0])
    read = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
    return all(first.digests.get(name) == second.digests.get(name) for name in read)


class _Pair:
    """Two graphs of one component."""

    def __init__(self, name: str, first: _Package, second: _Package, paths: tuple[Path, Path]) -> None:
        self._name, self._paths = name, paths
        same = first.digests[paths[0].name] == second.digests[paths[1].name]
        self._equal: Likeness = "identical" if same else "names"  # where nothing else differs
        self._a = canonical_graph(paths[0], first.sizes)
        self._b = canonical_graph(paths[1], second.sizes)
        self._weights = _weights(name, paths[0], first.sizes), _weights(name, paths[1], second.sizes)
        self._told: set[str] = set()  # parts of quantized weights whose change is on the list
        self._matching: Matching = match(self._a, self._b)
        self._pairs = paired_constants(self._a, self._b, self._matching)

    def compared(self) -> ComponentDifference:
        changed, tensors, facts = tuple(self._nodes()), tuple(self._tensors()), tuple(self._facts())
        renamed = sum(self._a.nodes[i].place != self._b.nodes[j].place for i, j in self._matching.same)
        structure = bool(changed or facts) or self._a.digest != self._b.digest
        likeness: Likeness = "structure" if structure else "weights" if tensors else self._equal
        return ComponentDifference(
            name=self._name,
            likeness=likeness,
            nodes=(len(self._a.nodes), len(self._b.nodes)),
            renamed=renamed,
            facts=facts,
            changed=changed,
            tensors=tensors,
        )

    def _nodes(self) -> Iterator[NodeChange]:
        for i, j in self._matching.changed:
            one, other = self._a.nodes[i], self._b.nodes[j]
            attributes = tuple(
                ValueChange(key=key, a=one.attributes.get(key), b=other.attributes.get(key))
                for key in dict.fromkeys([*one.attributes, *other.attributes])
                if one.attributes.get(key) != other.attributes.get(key)
            )
            reads = one.op == other.op and not attributes
            yield NodeChange(place=one.place, a=one.op, b=other.op, attributes=attributes, reads=reads)
        for i in self._matching.only_first:
            yield NodeChange(place=self._a.nodes[i].place, a=self._a.nodes[i].op, b=None)
        for j in self._matching.only_second:
            yield NodeChange(place=self._b.nodes[j].place, a=None, b=self._b.nodes[j].op)

    def _tensors(self) -> Iterator[TensorChange]:
        """Constants in pairs, then weights in another format, then what is in one graph alone."""
        accounted = (
            {self._a.constants[i].name for i, _ in self._pairs},
            {self._b.constants[j].name for _, j in self._pairs},
        )
        for i, j in self._pairs:
            change = self._constant(self._a.constants[i], self._b.constants[j])
            if change is not None:
                yield change
        reformed = self._reformed(accounted)
        for one, other in reformed:
            yield _weight_change(one, other)
            for seen, weight in zip(accounted, (one, other), strict=True):
                seen |= {part.name for part in weight.values.parts}
        for graph, seen, here in ((self._a, accounted[0], 0), (self._b, accounted[1], 1)):
            for constant in graph.constants.values():
                if constant.name not in seen:
                    forms = (_form(constant), None) if here == 0 else (None, _form(constant))
                    yield TensorChange(name=constant.name, a=forms[0], b=forms[1])

    def _constant(self, one: Initializer, other: Initializer) -> TensorChange | None:
        """Difference of a constant from its counterpart, if any; a quantized weight is told of once, as a whole."""
        quantized = self._weights[0].get(one.name), self._weights[1].get(other.name)
        whole = quantized[0] is not None and quantized[1] is not None and not quantized[0].is_float
        if (one.dtype, one.shape) == (other.dtype, other.shape):
            values = one.read(), other.read()
            if _equal(*values):
                return None
        if whole and quantized[0] is not None and quantized[1] is not None:
            told = one.name in self._told
            self._told |= {part.name for part in quantized[0].values.parts}
            return None if told else _weight_change(quantized[0], quantized[1])
        names = {"name": one.name, "other_name": other.name if other.name != one.name else None}
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return TensorChange(**names, a=_form(one), b=_form(other))
        found = distance(*values) if values[0].dtype.kind not in "OSU" else None
        return TensorChange(
            **names,
            a=_form(one),
            b=_form(other),
            relative_error=found.relative if found else None,
            largest_error=found.largest if found else None,
        )

    def _reformed(self, accounted: tuple[set[str], set[str]]) -> list[tuple[StoredWeight, StoredWeight]]:
        """Weights of one name that are stored in different formats."""
        by_name = [{w.name: w for w in weights.values()} for weights in self._weights]
        both = [(by_name[0][name], by_name[1][name]) for name in by_name[0] if name in by_name[1]]
        return [
            (one, other)
            for one, other in both
            if one.values.parts[0].name not in accounted[0] and other.values.parts[0].name not in accounted[1]
        ]

    def _facts(self) -> Iterator[ValueChange]:
        """Inputs, outputs, operator sets and metadata that differ."""
        yield from changed_values(self._a.inputs, self._b.inputs, "inputs")
        yield from changed_values(self._a.outputs, self._b.outputs, "outputs")
        facts = [_facts(load_graph(path)) for path in self._paths]
        yield from changed_values(facts[0], facts[1])


def _facts(model: onnx.ModelProto) -> dict[str, object]:
    return {
        "ir_version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }


def _weights(component: str, path: Path, sizes: Mapping[str, int]) -> dict[str, StoredWeight]:
    """The weights of a graph by the names of their parts; none where they are stored in ways of others."""
    try:
        found = graph_weights(component, path, sizes)
    except UserError as error:
        if error.code != "package.weight":
            raise
        return {}
    return {part.name: weight for weight in found for part in weight.values.parts}


def _weight_change(one: StoredWeight, other: StoredWeight) -> TensorChange:
    """A weight that is stored otherwise, by the values that both graphs compute with."""
    found = distance(one.load(), other.load()) if one.shape == other.shape else None
    return TensorChange(
        name=one.name,
        other_name=other.name if other.name != one.name else None,
        a=f"{one.format} {list(one.shape)}",
        b=f"{other.format} {list(other.shape)}",
        relative_error=found.relative if found else None,
        largest_error=found.largest if found else None,
        dequantized=True,
    )


def _form(constant: Initializer) -> str:
    return f"{constant.dtype} {list(constant.shape)}"


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays of one form have the same bytes."""
    if first.dtype.kind == "O":
        return bool((first == second).all())
    one, other = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (first, second))
    return bool(np.array_equal(one, other))
