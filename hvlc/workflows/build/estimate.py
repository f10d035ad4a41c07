"""Cost of a build, told before it starts: disk to the byte of the weights, memory and time as estimates."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import onnx_ir as ir

from hvlc.graphs.bundle import Bundle
from hvlc.package.onnx_files import initializers, is_inline
from hvlc.package.streaming import AHEAD, CHUNK, IntegerUnit, Layout, PlainUnit, QuantizedUnit, Unit
from hvlc.results.build import Estimate
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.lazy import expression_of
from hvlc.workflows.calibrate.cost import CalibrationCost

# Measured on one core of a 2023 server processor (docs/memory.md); the probe scales them to this machine.
_PROBE_SECONDS = 0.33e-3
_COPY = 1.2e-9  # seconds an element: widen, check, write and digest
_DIGEST = 0.65e-9  # seconds a byte of the checkpoint
_WRITE = 1.5e-9  # seconds a byte of the package: copy, digest, the system's own work
_NODE_BYTES, _ATTRIBUTE_BYTES, _REFERENCE_BYTES = 4, 24, 90  # in an ONNX file, roughly
_RESULT = 4  # bytes an element of a result that waits to be written: at most float32
_BESIDE = 0.4  # processors that digesting and writing keep busy beside the evaluating threads
_WORKING = 16  # bytes an element of a job in flight: float32, a contiguous copy of it, levels, checks
_FIXED = 40 << 20  # machine code of the kernels, file formats, buffers


@dataclass(frozen=True)
class WeightTotals:
    """Totals of the weights of a bundle.

    Attributes:
        data_bytes: external data of all components.
        graph_bytes: graphs and small tensors, roughly.
        seconds: of one core of the reference machine.
        waiting_bytes: most that is held back while a matrix is written (its scales).
        row: elements of the longest row.
    """

    data_bytes: int
    graph_bytes: int
    seconds: float
    waiting_bytes: int
    row: int


def weight_totals(bundle: Bundle) -> WeightTotals:
    """Add up a finished bundle; nothing is evaluated."""
    layouts: dict[str, Layout] = {}
    graph_bytes = 0
    for component in bundle.components.values():
        layout = layouts.setdefault(component.data_group, Layout())
        graph_bytes += sum(_node_bytes(node) for node in component.graph.all_nodes())
        for value in initializers(component.graph):
            if value.const_value is None:
                continue
            inline = is_inline(value.const_value)
            graph_bytes += len(str(value.name)) + (value.const_value.nbytes if inline else _REFERENCE_BYTES)
            if not inline:
                layout.add(expression_of(value.const_value))
    units = [unit for layout in layouts.values() for unit in layout.units.values()]
    return WeightTotals(
        sum(layout.total for layout in layouts.values()),
        graph_bytes,
        sum(_seconds(unit) for unit in units),
        max((sum(unit.sizes()[1:]) for unit in units), default=0),
        max((_row(unit) for unit in units), default=1),
    )


def _node_bytes(node: ir.Node) -> int:
    """Bytes of a node in a file: its names, and some for each attribute and field."""
    names = [node.name, node.op_type, node.domain, *(v.name for v in [*node.inputs, *node.outputs] if v is not None)]
    return sum(len(name or "") + 2 for name in names) + _ATTRIBUTE_BYTES * len(node.attributes) + _NODE_BYTES


def _seconds(unit: Unit) -> float:
    match unit:
        case QuantizedUnit(matrices):
            return sum((_COPY + m.solver.seconds) * m.weight.shape[0] * m.weight.shape[1] for m in matrices)
        case IntegerUnit(matrix):
            return (_COPY + matrix.of.solver.seconds) * float(np.prod(matrix.of.weight.shape))
        case PlainUnit(expression):
            return _COPY * unit.sizes()[0] / max(1, expression.dtype.itemsize)
    raise TypeError(type(unit))


def _row(unit: Unit) -> int:
    match unit:
        case QuantizedUnit(matrices):
            return max(m.weight.shape[1] for m in matrices)
        case IntegerUnit(matrix):
            return int(np.prod(matrix.of.weight.shape))
        case PlainUnit(expression):
            return int(np.prod(expression.shape[0 if expression.whole else 1 :]))
    raise TypeError(type(unit))


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def machine_factor() -> float:
    """Ratio of this machine's time to the reference's, from the median of a few short runs."""
    values, out = np.linspace(-8, 8, 1 << 16, dtype=np.float32), np.empty(1 << 16, np.float32)

    def once() -> float:
        started = time.perf_counter()
        for _ in range(16):
            np.multiply(values, np.float32(1.7), out=out)
            np.floor(out, out=out)
            np.add(out, values, out=out)
        return time.perf_counter() - started

    return median(once() for _ in range(9)) / _PROBE_SECONDS


def estimate(
    totals: WeightTotals,
    checkpoint: Checkpoint,
    copied: Iterable[Path],
    threads: int,
    base: int,
    calibration: CalibrationCost | None = None,
) -> Estimate:
    """Estimate of what the build will take.

    Args:
        totals: of the bundle.
        checkpoint: digested whole.
        copied: files that go into the package as they are.
        threads: how many evaluate weights.
        base: bytes of unshared memory before the weights are touched.
        calibration: what goes before, if any solver needs data.
    """
    elements = max(CHUNK, totals.row)
    jobs = threads * elements * (_WORKING + _RESULT * AHEAD)
    writing = jobs + totals.waiting_bytes + 2 * totals.graph_bytes
    memory = base + _FIXED + max(writing, calibration.memory_bytes if calibration else 0)
    digest = _DIGEST * sum(path.stat().st_size for path in checkpoint.files) + _WRITE * totals.data_bytes
    disk = totals.data_bytes + totals.graph_bytes + sum(path.stat().st_size for path in copied)
    return Estimate(
        disk_bytes=disk,
        memory_bytes=memory,
        seconds=machine_factor() * (totals.seconds + digest) / min(threads + _BESIDE, processors()),
        threads=threads,
        calibration_seconds=calibration.seconds if calibration else None,
    )
