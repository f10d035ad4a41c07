"""Settings of every test: offline, silent, the same on every run."""

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.helpers.sharing import once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hvlc.results.build import BuildResult
    from tests.helpers.commands import Hvlc

# Before any test imports a library that reads them.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models lose time by sharing it

# Ten thousand collected tests and the imported libraries are a heap that Python's default thresholds walk again and
# again: a tenth of the processor time. Cycles of a test's graphs are still collected, less often.
gc.set_threshold(50_000, 20, 10)

settings.register_profile("hvlc", deadline=None, derandomize=True, database=None)
settings.load_profile("hvlc")


def refuse_regeneration(environment: os._Environ[str] | dict[str, str]) -> None:
    """Rewriting goldens is for a person who then reads the difference."""
    if environment.get("HVLC_REGEN") == "1" and environment.get("CI"):
        raise pytest.UsageError("HVLC_REGEN=1 rewrites the expected results; unset it where CI is set")


def pytest_configure() -> None:
    refuse_regeneration(os.environ)


def pytest_collection_finish() -> None:
    """Leave what was imported and collected, which lives as long as the process, out of later collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved HyperVL with random weights; tests copy it before they damage it."""
    from tests.helpers.tiny import save_tiny

    return once(tmp_path_factory, "tiny", lambda directory: save_tiny(directory / "checkpoint"))


@pytest.fixture(scope="session")
def untied_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a language-model head of its own."""
    from tests.helpers.tiny import save_tiny

    return once(tmp_path_factory, "untied", lambda directory: save_tiny(directory / "checkpoint", tied=False))


def _built(factory: pytest.TempPathFactory, checkpoint: Path, recipe: str) -> "BuildResult":
    from hvlc.workflows.build.build import build
    from hvlc.workflows.build.request import open_request

    return once(factory, f"tiny-{recipe}", lambda d: build(open_request(checkpoint, "cpu", recipe, d / recipe)))


@pytest.fixture(scope="session")
def float32_build(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> "BuildResult":
    return _built(tmp_path_factory, tiny_checkpoint, "float32")


@pytest.fixture(scope="session")
def w4a16_build(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> "BuildResult":
    return _built(tmp_path_factory, tiny_checkpoint, "w4a16-rtn")


@pytest.fixture(scope="session")
def tiny_float32(float32_build: "BuildResult") -> Path:
    """A float32 package of `tiny_checkpoint`; read only."""
    return float32_build.output


@pytest.fixture(scope="session")
def tiny_w4a16(w4a16_build: "BuildResult") -> Path:
    """A W4A16 package of `tiny_checkpoint`; read only."""
    return w4a16_build.output


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass leaves valid graphs, also when it found valid ones, and a second run changes nothing."""
    from tests.helpers.checks import check_every_pass

    check_every_pass(monkeypatch)


@pytest.fixture
def hvlc(capsys: pytest.CaptureFixture[str]) -> "Iterator[Hvlc]":
    """`hvlc ARGUMENTS` in this process: exit code, stdout and stderr."""
    from tests.helpers.commands import commands

    yield from commands(capsys)
