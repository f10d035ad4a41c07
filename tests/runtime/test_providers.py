import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.manifest.manifest import CompiledEntry, Manifest
from hvlc.runtime import providers
from hvlc.runtime.providers import register_providers, runs_on
from tests.qnn.conftest import needs_qnn


def compiled(package: Path, provider: str = "QNNExecutionProvider") -> Manifest:
    """The manifest of a package, as if its encoders had been compiled."""
    manifest = Manifest.load(package)
    device = CompiledEntry(
        binary="a_qnn.bin",
        chip="SM8750",
        soc_model=69,
        htp_arch=79,
        sdk="2.51.0",
        provider=provider,
        provider_options={"backend_type": "htp"},
    )
    components = {
        name: entry.model_copy(update={"compiled": device}) if name.startswith("vision_") else entry
        for name, entry in manifest.components.items()
    }
    return manifest.model_copy(update={"components": components})


def test_what_runs_a_package_is_named(tiny_float32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs_on(Manifest.load(tiny_float32)) == "onnxruntime CPU"
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert runs_on(compiled(tiny_float32)) == "emulated NPU of SM8750, and onnxruntime CPU"
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert runs_on(compiled(tiny_float32)) == "NPU of SM8750, and onnxruntime CPU"


def test_a_package_for_the_cpu_needs_no_provider(tiny_float32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_register", lambda provider: pytest.fail(f"{provider} was registered"))
    register_providers(Manifest.load(tiny_float32))


def test_a_missing_provider_has_a_way_out(tiny_float32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    with pytest.raises(UserError, match=r"install\.qnn.*OtherExecutionProvider.*hvlc\[qnn\]"):
        register_providers(compiled(tiny_float32, "OtherExecutionProvider"))


SCRIPT = """
import json
from hvlc.runtime.providers import _register
_register("QNNExecutionProvider")
_register("QNNExecutionProvider")  # a second time is nothing
print(json.dumps("all that is said"))
"""


@needs_qnn
def test_stdout_stays_clean() -> None:
    """Qualcomm's library prints when it is loaded; what reads JSON must not see that."""
    environment = {**os.environ, "PYTHONPATH": str(Path(providers.__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == "all that is said"
    assert "LIBNATIVE" in run.stderr  # else there is nothing to keep clean of any more
