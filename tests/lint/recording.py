"""Asks the compiler about the corpus and keeps its verdicts; run by HVLC_REGEN=1 and by hand, it takes ten minutes."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx

from hvlc.lint.probe import Compiled, ask_compiler, require_compiler
from hvlc.target import load_target
from tests.lint.tape import Case

TARGET = "qnn-sm8750"
VERDICTS = Path(__file__).with_name("verdicts.json")


def ask(case: Case, *, run: bool) -> Compiled:
    """The compiler's verdict on one case; with `run`, what it computes is compared too."""
    target = load_target(TARGET)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "case.onnx"
        onnx.save(case.model, path)
        return ask_compiler(path, target.provider_options, target.session_options, target.affinity, run=run)


def record(cases: Iterable[Case], path: Path = VERDICTS) -> None:
    """Write the verdict on each case, its partitions, the first reason and the difference from a CPU."""
    require_compiler(load_target(TARGET))  # before anything is overwritten
    verdicts = {}
    version = ""
    for case in cases:
        found = ask(case, run=True)
        version = found.version or version
        reason = next(iter(found.reasons.values()), "" if found.taken else found.error.partition("\n")[0])
        verdicts[case.name] = {
            "taken": found.taken,
            "partitions": found.partitions,
            "difference": found.difference if found.difference is None else float(f"{found.difference:.2g}"),
            "reason": reason[:160],
        }
    head = {"target": TARGET, "compiler": f"onnxruntime-qnn {version}"}
    path.write_text(json.dumps({**head, "verdicts": verdicts}, indent=0) + "\n", "utf-8")
