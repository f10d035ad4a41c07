"""What one measurement has found is not lost to another that uses the same cache."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hvlc.calibration import trial_cache as module
from hvlc.calibration.sensitivity import Damage
from hvlc.calibration.trial_cache import TrialCache
from hvlc.errors import UserError
from hvlc.files.locks import locked_directory

FINGERPRINT = {"checkpoint": "1"}
ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from pathlib import Path
from hvlc.calibration.trial_cache import TrialCache
from hvlc.calibration.sensitivity import Damage
cache = TrialCache.open(Path(sys.argv[1]), {"checkpoint": "1"})
print("open", flush=True)
input()
for number in range(40):
    cache.put(f"{sys.argv[2]}{number}", Damage(0.5, None))
"""


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    writers = [subprocess.Popen([*command, name], **pipes) for name in "ab"]
    for writer in writers:
        assert writer.stdout.readline() == "open\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    (path,) = tmp_path.iterdir()
    assert len(json.loads(path.read_text())["damages"]) == 80


def test_a_loss_is_not_replaced_by_none(tmp_path: Path) -> None:
    first, second = (TrialCache.open(tmp_path, FINGERPRINT) for _ in range(2))
    first.put("part", Damage(0.5, 0.25))
    second.put("part", Damage(0.5, None))
    assert TrialCache.open(tmp_path, FINGERPRINT).damages == {"part": {"output_error": 0.5, "loss": 0.25}}
    third = TrialCache.open(tmp_path, FINGERPRINT)
    third.damages.clear()
    first.put("other", Damage(0.5, None))
    third.put("other", Damage(0.5, 0.125))
    assert TrialCache.open(tmp_path, FINGERPRINT).damages["other"]["loss"] == 0.125


def test_a_cache_that_is_held_for_ever_has_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    cache = TrialCache.open(tmp_path, FINGERPRINT)
    with locked_directory(tmp_path), pytest.raises(UserError, match="another run uses it") as error:
        cache.put("part", Damage(0.5, None))
    assert error.value.code == "sensitivity.cache"
    assert "--cache" in error.value.fix


def test_a_place_that_is_none_has_a_code(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "cache", tmp_path / ("x" * 5000)):
        with pytest.raises(UserError, match="--cache") as error:
            TrialCache.open(place, FINGERPRINT)
        assert error.value.code == "sensitivity.cache"
