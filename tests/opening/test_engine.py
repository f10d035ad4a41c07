"""What onnxruntime-genai is shown of a package, and what onnxruntime takes for an attack."""

import shutil
from pathlib import Path

import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as failures

from hvlc.errors import UserError
from hvlc.opening.configuration import CONFIGURATION
from hvlc.opening.engine import engine_directory, engine_runs
from hvlc.opening.package import open_package
from tests.helpers.packages import hub_snapshot


def test_the_runtime_is_shown_what_the_manifest_lists(tiny_w4a16: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(tiny_w4a16, tmp_path / "package"))
    opened = open_package(package)
    (package / "chat_template.json").write_text("{}")  # comes too late to be refused
    with engine_directory(opened) as shown:
        names = {path.name for path in shown.iterdir()}
        assert names == set(opened.manifest.files) - {"hvlc.lock.json"}
        assert not (shown / CONFIGURATION).is_symlink()
        assert all(p.resolve().parent == package.resolve() for p in shown.iterdir() if p.name != CONFIGURATION)
    assert not shown.exists()


def test_external_data_is_read_through_links_where_the_graph_is_one(tiny_w4a16: Path, tmp_path: Path) -> None:
    snapshot = hub_snapshot(tiny_w4a16, tmp_path)
    ort.InferenceSession(snapshot / "model.onnx", providers=["CPUExecutionProvider"])
    graph = (snapshot / "model.onnx").read_bytes()
    (snapshot / "model.onnx").unlink()
    (snapshot / "model.onnx").write_bytes(graph)
    with pytest.raises(failures.Fail, match="escapes model directory"):
        ort.InferenceSession(snapshot / "model.onnx", providers=["CPUExecutionProvider"])


def test_what_the_runtime_refuses_is_the_packages_fault() -> None:
    for error in (RuntimeError("no\nmore"), ValueError(), MemoryError()):
        with pytest.raises(UserError) as caught, engine_runs(Path("package")):
            raise error
        assert caught.value.code == "package.graph"
        assert "\n" not in caught.value.cause
    with pytest.raises(ZeroDivisionError), engine_runs(Path("package")):
        raise ZeroDivisionError
