"""Asks the compiler about the corpus and keeps its verdicts.

HVLC_REGEN=1 asks about every case, which takes an hour; `python -m tests.lint.recording` about those that have no
verdict yet.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from hvlc.qnn.compiler import CompileOptions, traced
from hvlc.qnn.isolation import Answer, Graph, Isolation, Request
from hvlc.qnn.probing import Probe, probe_graph
from hvlc.targets import load_target
from hvlc.workflows.lint.probing import require_compiler
from tests.lint.tape import Case

TARGET = "qnn-sm8750"
VERDICTS = Path(__file__).with_name("verdicts.json")
_SECONDS = 90  # no case takes more than a few, but some never end


def ask(case: Case) -> Probe:
    """The compiler's verdict on one case."""
    with tempfile.TemporaryDirectory() as directory:
        options = CompileOptions.of(load_target(TARGET))
        return probe_graph(_saved(case, directory), options, Isolation(seconds=_SECONDS))


def difference(case: Case) -> float | None:
    """Largest difference of the emulated outputs from onnxruntime's on a CPU, over the largest value.

    Inputs are random; None where the emulation or the CPU cannot run the case.
    """
    options = CompileOptions.of(load_target(TARGET))
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as scratch:
        model, work = _saved(case, directory), Path(scratch)
        feeds = _feeds(case.model.graph)
        np.savez(work / "feeds.npz", **feeds)
        graph = Graph(model.name, {**options.session_options, "session.disable_cpu_ep_fallback": "1"})
        provider = traced(options, options.modes[0], work)
        ended = Isolation(seconds=_SECONDS).run(
            Request(model.parent, [graph], provider, [work / "feeds.npz"], work), work
        )
        if not isinstance(ended, Answer):
            return None
        try:
            expected = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)
        except Exception:  # noqa: BLE001 - onnxruntime raises classes of its own for what it has no kernel for
            return None
        with np.load(work / "0.npz") as found:
            return _distance([found[f"output.{output.name}"] for output in case.model.graph.output], expected)


def _saved(case: Case, directory: str) -> Path:
    onnx.save(case.model, Path(directory) / "case.onnx")
    return Path(directory) / "case.onnx"


def _feeds(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Normal floats, zeros and ones."""
    random, feeds = np.random.default_rng(0), {}
    for value in graph.input:
        tensor = value.type.tensor_type
        dims, dtype = [d.dim_value for d in tensor.shape.dim], helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        made = random.standard_normal(dims) if dtype.kind == "f" else random.integers(0, 2, dims)
        feeds[value.name] = np.asarray(made, dtype)
    return feeds


def _distance(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        one, other = (np.asarray(value, np.float64) for value in (one, other))
        both = np.isfinite(one) & np.isfinite(other)
        if both.any():
            worst = max(worst, float(np.abs(one - other)[both].max() / max(1.0, np.abs(other[both]).max())))
    return worst


def recorded(path: Path = VERDICTS) -> dict[str, dict[str, Any]]:
    """The verdicts by the case's name."""
    return json.loads(path.read_text("utf-8"))["verdicts"]


def record(cases: Iterable[Case], known: Mapping[str, dict[str, Any]], path: Path = VERDICTS) -> None:
    """Write the verdict on each case, its partitions, the first reason and the difference from a CPU.

    Args:
        cases: in the order that they are written in.
        known: verdicts that stand, by the case's name.
        path: of the file.
    """
    require_compiler(load_target(TARGET))  # before anything is overwritten
    compiler = json.loads(path.read_text("utf-8"))["compiler"] if known else ""
    lines = []
    for case in cases:
        verdict = known.get(case.name)
        if verdict is None:
            found = ask(case)
            verdict = _verdict(found, difference(case) if found.taken else None)
            compiler = f"onnxruntime-qnn {found.version}" if found.version else compiler
        lines.append(f"{json.dumps(case.name)}: {json.dumps(verdict)}")
    head = json.dumps({"target": TARGET, "compiler": compiler}).removesuffix("}")
    path.write_text(head + ', "verdicts": {\n' + ",\n".join(lines) + "\n}}\n", "utf-8")


def _verdict(found: Probe, difference: float | None) -> dict[str, Any]:
    reason = next(iter(found.reasons.values()), "" if found.taken else found.error.partition("\n")[0])
    return {
        "taken": found.taken,
        "partitions": found.partitions,
        "difference": difference if difference is None else float(f"{difference:.2g}"),
        "reason": reason[:160],
    }


if __name__ == "__main__":
    from tests.lint.corpus import corpus

    record(corpus(), recorded())
