"""Run compiled graphs in emulation and compare their outputs with those of the source graphs.

Emulation shows what a binary computes. It shows no speed, no memory limit of a device and not its last bit; and it
cannot load binaries whose graphs share weights (QAIRT 2.51 crashes), so those are refused here and checked unshared.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hvlc.errors import TargetError
from hvlc.files.scratch import temporary_directory
from hvlc.graphs.sessions import open_session, session_options
from hvlc.manifest.manifest import FLOAT_PRODUCTS
from hvlc.qnn.compiler import Compiled, require_npu
from hvlc.qnn.isolation import Failure, Graph, Isolation, Request
from hvlc.results.base import Score, wilson
from hvlc.results.compilation import CompiledGraph, GraphCheck, OutputCheck

#: Most noise (root mean square of the error over that of the values) of an output of a small graph. The silent errors
#: that are known make 1 % and more there, and what rounding alone makes is below 0.3 % (tests/qnn/graphs.py).
TOLERANCE = 0.005
#: Independent rounding errors add up like the square root of their number. Half precision made 0.04 % to 0.06 % for
#: each: 0.34 % after 68 nodes (hypervl-nano's decoder), 1.1 % after 30 layers (SmolLM2).
_PER_NODE = 0.0008
#: Operators that move values or change their form, and round no sum.
_MOVING = frozenset("Cast Concat DequantizeLinear Gather QuantizeLinear Reshape Slice Split Transpose".split())
_SCORES = "logits"
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Sample:
    """Inputs of one run.

    Attributes:
        feeds: by the input's name.
        valid: what counts of an output of which only a part is defined, as the filled rows of a KV cache.
    """

    feeds: Mapping[str, np.ndarray]
    valid: Mapping[str, tuple[slice, ...]] = field(default_factory=dict)


def check_compiled(
    compiled: Compiled,
    samples: Sequence[Sample],
    inputs: str,
    tolerance: float | None = None,
    isolation: Isolation | None = None,
) -> GraphCheck:
    """Run a compiled graph in emulation and its source on the CPU.

    Args:
        compiled: what `compile_graph` made, its source still there.
        samples: at least one.
        inputs: what they are, in words.
        tolerance: most noise; None is what rounding alone may make of a graph of this depth.
        isolation: bounds of time and memory of the emulation.

    Raises:
        TargetError: the binary cannot be emulated, or an output is not finite where the CPU's is, or has more noise
            than is tolerated.
    """
    session = open_session(compiled.source, session_options(entries=dict([FLOAT_PRODUCTS])))
    names = [output.name for output in session.get_outputs()]
    sums = {name: _Sums() for name in names}
    with temporary_directory("emulation") as directory:
        for sample, found in zip(samples, emulate(compiled, samples, directory, isolation), strict=True):
            for name, expected in zip(names, session.run(None, dict(sample.feeds)), strict=True):
                part = sample.valid.get(name, (slice(None),))
                sums[name].add(found[name][part], expected[part], scores=name == _SCORES)
    check = GraphCheck(
        component=compiled.record.component,
        inputs=inputs,
        runs=len(samples),
        outputs=tuple(sums[name].output(name) for name in names),
        tolerance=tolerance_of(compiled.record) if tolerance is None else tolerance,
    )
    require_faithful(check)
    return check


def tolerance_of(graph: CompiledGraph) -> float:
    """Most noise that rounding explains, by the number of nodes that round."""
    rounding = sum(count for op_type, count in graph.operators.items() if op_type not in _MOVING)
    return max(TOLERANCE, _PER_NODE * math.sqrt(rounding))


def require_faithful(check: GraphCheck) -> None:
    """Refuse a graph that computes something else than its source.

    Raises:
        TargetError: an output has more noise than is tolerated.
    """
    if not check.holds:
        worst = check.worst
        cause = (
            f"{check.component}: emulated, {worst.name!r} departs from the CPU by {worst.noise:.2%} of its values "
            f"(largest error {worst.max_error:.3g} of {worst.largest:.3g}), and {check.tolerance:.2%} is tolerated"
        )
        raise TargetError("check.noise", cause, "`hvlc lint` lists what is known to go wrong silently")


def emulate(
    compiled: Compiled, samples: Sequence[Sample], scratch: Path, isolation: Isolation | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Outputs by name of each sample, from the binary in emulation.

    Raises:
        TargetError: the binary shares weights between graphs, or its emulation fails, crashes or takes too long, or
            onnxruntime ran the graph elsewhere.
    """
    if compiled.context.graphs > 1:
        cause = f"{compiled.context.binary.name} holds {compiled.context.graphs} graphs, and x86-64 cannot load it"
        raise TargetError("check.shared", cause, "compile without shared weights to run it in emulation")
    yield from emulate_file(compiled.context.file, compiled.options.running(), samples, scratch, isolation)


def emulate_file(
    file: Path,
    options: Mapping[str, str],
    samples: Sequence[Sample],
    scratch: Path,
    isolation: Isolation | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Outputs by name of each sample, from a compiled graph whose binary lies beside it and holds no other graph.

    Args:
        file: the ONNX file.
        options: of the provider.
        samples: at least one.
        scratch: an existing directory.
        isolation: bounds of time and memory.

    Raises:
        TargetError: its emulation fails, crashes or takes too long, or onnxruntime ran the graph elsewhere.
    """
    feeds = [scratch / f"feeds-{number}.npz" for number in range(len(samples))]
    for path, sample in zip(feeds, samples, strict=True):
        np.savez(path, **sample.feeds)  # type: ignore[arg-type] # numpy's stub has an option among the names
    graph = Graph(file.name, {"session.disable_cpu_ep_fallback": "1"})
    request = Request(file.parent, [graph], options, feeds, scratch)
    ended = (isolation or Isolation()).run(request, scratch)
    if isinstance(ended, Failure):
        code = "check.timeout" if ended.how == "timeout" else "check.emulation"
        cause = f"{file.name}: its emulation ended with {ended.how}: {ended.last_words}"
        raise TargetError(code, cause, "allow it more time" if ended.how == "timeout" else "report it")
    require_npu(file.name, [(node.provider, node.op_type) for node in ended.graphs[0].nodes])
    for number in range(len(samples)):
        with np.load(scratch / f"{number}.npz", allow_pickle=False) as arrays:
            yield {name.removeprefix("output."): arrays[name] for name in arrays.files}


class _Sums:
    """Sums over all values so far that a comparison needs, in float64.

    Integers stand for values around a zero point that is not known here, so they are taken around their mean. Steps of
    8 bits are so wide that two values which differ by little are mostly on one level and now and then on two, and that
    one step squared says nothing of them. But as many levels lie between two values as they are steps apart, on average
    over where levels lie; so differences of one step count by their mean, as those of a normal distribution, and larger
    ones by their squares.
    """

    def __init__(self) -> None:
        self._values = self._rows = self._same = 0
        self._error = self._largest = 0.0
        self._moments = np.zeros(6)  # of found and expected values: both sums, both squares, product, squared error
        self._integers = False
        self._steps = 0  # differences of one step in bytes

    def add(self, found: np.ndarray, expected: np.ndarray, *, scores: bool) -> None:
        one, other = found.astype(np.float64), expected.astype(np.float64)
        # What is not finite is not refused as such: the tolerance cannot be met, and the figures stay finite.
        one = np.nan_to_num(one, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)
        difference = one - other
        if np.issubdtype(expected.dtype, np.integer):
            self._integers = True
            self._steps += int((np.abs(difference) == 1).sum()) if expected.dtype.itemsize == 1 else 0
        self._values += other.size
        self._error = max(self._error, float(np.abs(difference).max(initial=0)))
        self._largest = max(self._largest, float(np.abs(other).max(initial=0)))
        products = (one * one, other * other, one * other, difference * difference)
        self._moments += [array.sum() for array in (one, other, *products)]
        if scores:
            self._same += int((one.argmax(-1) == other.argmax(-1)).sum())
            self._rows += other[..., 0].size

    def output(self, name: str) -> OutputCheck:
        one, other, ones, others, product, error = self._moments.tolist()
        if self._integers:
            ones, others = (total - mean**2 / self._values for total, mean in ((ones, one), (others, other)))
            product -= one * other / self._values
            error += math.pi / 2 * self._steps**2 / self._values - self._steps
        top1 = None
        if self._rows:
            share = self._same / self._rows
            low, high = wilson(share, self._rows)
            top1 = Score(value=share, low=low, high=high, n=self._rows, method="wilson")
        return OutputCheck(
            name=name,
            values=self._values,
            cosine=product / math.sqrt(ones * others) if ones > 0 and others > 0 else None,
            max_error=self._error,
            largest=self._largest,
            # Where all values should be the same, any difference at all is noise.
            noise=math.sqrt(error / others) if others > 0 else float(error > 0),
            top1=top1,
        )
