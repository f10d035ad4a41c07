"""What Qualcomm's compiler itself says of a model, where `onnxruntime-qnn` is installed."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvlc.errors import UserError
from hvlc.results.lint import Disagreement, GraphLint, Probed, Weight
from hvlc.target import Target

_SCRIPT = Path(__file__).with_name("compiler.py")
_SECONDS = 1800


@dataclass(frozen=True)
class Compiled:
    """The compiler's answer.

    Attributes:
        taken: whether the whole graph compiled, nothing left to the CPU.
        error: what it said of the whole graph when it did not.
        nodes: name, operator and whether it was taken, of every node that reached the compiler; onnxruntime's own
            rewrites come first, so a node of the file may be gone. Empty when not even a part compiled.
        reasons: by the name of a refused node.
        partitions: into how many pieces it cut the graph; None when not even a part compiled.
        difference: largest difference from onnxruntime on a CPU over the largest value, emulated, on random inputs;
            None when it was not asked for or could not be computed.
        version: of onnxruntime-qnn.
    """

    taken: bool
    error: str
    nodes: tuple[tuple[str, str, bool], ...]
    reasons: Mapping[str, str]
    partitions: int | None
    difference: float | None
    version: str


def is_installed() -> bool:
    """Whether the compiler is there to be asked."""
    return importlib.util.find_spec("onnxruntime_qnn") is not None


def require_compiler(target: Target) -> None:
    """Refuse a probe before the work.

    Raises:
        UserError: the compiler is not installed, or the target has none that runs here.
    """
    if target.execution_provider != "qnn":
        cause = f"{target.name} has no compiler that runs on this host"
        raise UserError("lint.probe", cause, "leave --probe out: its rules need no compiler")
    if not is_installed():
        cause = "Qualcomm's compiler (onnxruntime-qnn) is not installed"
        raise UserError("lint.probe", cause, "pip install 'hvlc[qnn]' on x86-64 Linux, or leave --probe out")


def ask_compiler(
    model: Path,
    provider_options: Mapping[str, str],
    session_options: Mapping[str, str],
    affinity: Mapping[str, str],
    *,
    run: bool = False,
) -> Compiled:
    """Compile a model in a process of its own.

    Args:
        model: ONNX file.
        provider_options: of the provider, among them the chip.
        session_options: of onnxruntime.
        affinity: processor of each operator type that the provider would not take otherwise.
        run: whether to run what compiled, emulated, and compare.
    """
    with tempfile.TemporaryDirectory(prefix="hvlc-probe-") as directory:
        work = Path(directory)
        options = dict(provider_options)
        if affinity:
            (work / "affinity.json").write_text(json.dumps({"op_type": dict(affinity)}), "utf-8")
            options["op_affinity"] = str(work / "affinity.json")
        answer = work / "answer.json"
        (work / "request.json").write_text(
            json.dumps(
                {
                    "model": str(model.resolve()),
                    "trace": str(work),
                    "provider_options": options,
                    "session_options": dict(session_options),
                    "run": run,
                }
            ),
            "utf-8",
        )
        return _answer(answer, _run([sys.executable, str(_SCRIPT), str(work / "request.json"), str(answer)], work))


def _run(command: list[str], work: Path) -> str:
    """Run the script; why it ended without an answer, when it did."""
    try:
        ended = subprocess.run(
            command,
            cwd=work,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the compiler did not end within {_SECONDS} s"
    if ended.returncode < 0:
        return f"the compiler was ended by signal {-ended.returncode}"
    last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] if ended.returncode else []
    return f"the compiler ended with code {ended.returncode}: {' '.join(last)}" if ended.returncode else ""


def _answer(path: Path, failure: str) -> Compiled:
    if failure or not path.is_file():
        return Compiled(False, failure or "the compiler left no answer", (), {}, None, None, "")
    found = json.loads(path.read_text("utf-8"))
    return Compiled(
        taken=found["compiled"],
        error=found["error"],
        nodes=tuple((name, op_type, taken) for name, op_type, _domain, taken in found["nodes"]),
        reasons={name: reason for name, _op_type, reason in found["reasons"]},
        partitions=found["partitions"],
        difference=found.get("difference"),
        version=found["version"],
    )


def disagreements(graph: GraphLint, compiled: Compiled) -> Probed:
    """What the compiler said, beside what the rules say."""
    refused = {finding.node for finding in graph.findings if finding.weight is Weight.REFUSAL}
    found = [
        Disagreement(
            node=name,
            operator=op_type,
            rules_take=name not in refused,
            compiler_takes=taken,
            reason=compiled.reasons.get(name, ""),
        )
        for name, op_type, taken in compiled.nodes
        if name and taken is (name in refused)
    ]
    if not found and compiled.taken is bool(graph.refused):
        found = [
            Disagreement(
                node="", operator="", rules_take=not graph.refused, compiler_takes=compiled.taken, reason=compiled.error
            )
        ]
    return Probed(
        compiler=f"onnxruntime-qnn {compiled.version}".strip(),
        taken=compiled.taken,
        error=compiled.error,
        partitions=compiled.partitions,
        disagreements=tuple(found),
    )
