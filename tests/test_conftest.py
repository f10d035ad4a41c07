"""The guards in conftest.py hold, and what workers share is made once."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.sharing import common, once


def test_regeneration_is_refused_in_ci() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", __file__],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "HVLC_REGEN": "1", "CI": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 4, run.stdout
    assert "HVLC_REGEN" in run.stderr


def test_what_is_shared_is_made_once(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    made = []

    def make(directory: Path) -> Path:
        time.sleep(0.2)  # the others have come by then
        made.append(directory)
        (directory / "file").write_text("whole")
        return directory / "file"

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: once(tmp_path_factory, tmp_path.name, make), range(3)))
    assert len(made) == 1
    assert {path.read_text() for path in found} == {"whole"}


def test_what_failed_is_made_afresh(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").touch()
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        once(tmp_path_factory, tmp_path.name, fail)
    assert once(tmp_path_factory, tmp_path.name, lambda directory: list(directory.iterdir())) == []


def test_workers_share_the_directory_around_theirs(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path_factory.getbasetemp()
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    assert common(tmp_path_factory) == own
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    assert common(tmp_path_factory) == own.parent
