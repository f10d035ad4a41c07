"""`hvlc --help` starts fast, and running a package never loads torch."""

import json
import os
import resource
import subprocess
import sys

import pytest

HELP = """
import json, sys
sys.argv = ["hvlc", "--help"]
try:
    from hvlc.cli import main
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(json.dumps(sorted(sys.modules)))
"""

IMPORT = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted(sys.modules)))
"""

#: Loaded by no help text.
HEAVY = frozenset("torch transformers onnx onnx_ir onnxruntime onnxruntime_genai numpy matplotlib pydantic".split())
#: Absent from an install without the `compile` extra.
COMPILE_ONLY = frozenset("torch transformers optimum onnxscript neural_compressor torchao".split())

HELP_SECONDS = 0.3


def loaded(script: str, *arguments: str) -> tuple[frozenset[str], float]:
    """Top-level modules that a fresh process has loaded at its end, and its CPU time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={key: value for key, value in os.environ.items() if not key.startswith(("COV_", "COVERAGE_"))},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 0, run.stderr
    names = json.loads(run.stdout.splitlines()[-1])
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return frozenset(name.partition(".")[0] for name in names), seconds


def test_help_loads_nothing_heavy_and_is_fast() -> None:
    runs = [loaded(HELP) for _ in range(3)]
    assert not runs[0][0] & HEAVY
    assert min(seconds for _, seconds in runs) < HELP_SECONDS


@pytest.mark.parametrize("module", ["hvlc.runtime", "hvlc.evaluation", "hvlc.report", "hvlc.workflows.lint.lint"])
def test_running_a_package_needs_no_torch(module: str) -> None:
    assert not loaded(IMPORT, module)[0] & COMPILE_ONLY


def test_the_probe_sees_what_is_loaded() -> None:
    names, seconds = loaded(IMPORT, "numpy")
    assert "numpy" in names
    assert seconds > 0
