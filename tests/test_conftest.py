"""The guards in conftest.py hold."""

import os
import subprocess
import sys
from pathlib import Path


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
