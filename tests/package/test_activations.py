"""A package states the memory of its encoders, and runs within it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hvlc.manifest.manifest import Manifest
from hvlc.package.activations import encoder_caps, request_cap
from tests.helpers.commands import Hvlc
from tests.helpers.packages import changed_json
from tests.helpers.tiny import TILE, picture


def test_caps_grow_with_the_batch_and_the_encoder(tiny_float32: Path) -> None:
    manifest = Manifest.load(tiny_float32)
    one, four, usual = (encoder_caps(tiny_float32, manifest, batch) for batch in (1, 4, None))
    assert set(one) == {"base", "large"}
    assert usual == four
    assert all(one[name] < four[name] <= 4 * one[name] for name in one)
    assert four["base"] < four["large"]


def test_a_request_takes_no_more_than_its_pieces(tiny_float32: Path) -> None:
    manifest = Manifest.load(tiny_float32)
    caps = [request_cap(tiny_float32, manifest, "base", [(n, 3, TILE, TILE)], 4) for n in (1, 3, 4, 40)]
    assert caps[0] < caps[1] < caps[2] == caps[3] == encoder_caps(tiny_float32, manifest)["base"]


def test_inspect_and_run_say_it(hvlc: Hvlc, tiny_float32: Path, tmp_path: Path) -> None:
    found = hvlc("inspect", tiny_float32, "--json").json
    assert found["activation_bytes"] == encoder_caps(tiny_float32, Manifest.load(tiny_float32))
    assert "at most for activations" in " ".join(hvlc("inspect", tiny_float32).out.split())
    picture(40, 60).save(tmp_path / "image.png")
    asked = ["run", tiny_float32, "--prompt", "What?", "--max-new-tokens", 1, "--verbose"]
    said = " ".join(hvlc(*asked, "--image", tmp_path / "image.png").err.split())
    assert "MB stated for activations" in said
    assert "measured for the whole answer" in said
    assert "stated" not in hvlc(*asked).err


def test_a_batch_of_the_package_is_taken(tiny_float32: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_float32, tmp_path / "package"))
    changed_json(copied / "hvlc.json", lambda content: content["images"].update(tile_batch=2))
    manifest = Manifest.load(copied)
    assert encoder_caps(copied, manifest) == encoder_caps(copied, manifest, 2)


_MEASURED = """
import sys, threading
from pathlib import Path
import numpy as np
from hvlc.graphs.activations import stated_cap
from hvlc.opening.graphs import load_graph
from hvlc.opening.sessions import PackageSession, session_options

def unshared():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))

path, pieces = Path(sys.argv[1]), np.ones((int(sys.argv[2]), 3, 128, 128), np.float32)
session = PackageSession(path.name, path, session_options(1), ["CPUExecutionProvider"])
stated = stated_cap(load_graph(path), {"pixel_values": pieces.shape})
done, most, before = threading.Event(), [0], unshared()

def watch():
    while not done.wait(0.001):
        most[0] = max(most[0], unshared())

thread = threading.Thread(target=watch)
thread.start()
session.run(None, {"pixel_values": pieces})
done.set()
thread.join()
taken = most[0] - before
assert stated / 5 < taken < stated, (taken, stated)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="unshared memory is read from /proc")
@pytest.mark.parametrize("recipe", ["float32", "w4a16-rtn"])
def test_a_trained_encoder_runs_within_what_is_stated(tmp_path: Path, recipe: str) -> None:
    from hvlc.workflows.build.build import build
    from hvlc.workflows.build.request import open_request
    from hvlc.zoo import nano_checkpoint

    package = build(open_request(nano_checkpoint(), "cpu", recipe, tmp_path / "package", threads=1)).output
    file = package / Manifest.load(package).encoders["large"]
    done = subprocess.run([sys.executable, "-c", _MEASURED, file, "16"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
