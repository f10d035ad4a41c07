"""The largest images that are allowed, four of them for one question: bounded memory of the whole command."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvlc.inputs.images import PIXEL_LIMIT

_MOST = 1_500_000  # kB

#: Runs a command and says what it took at most.
_MEASURED = """
import resource, subprocess, sys
ended = subprocess.run(sys.argv[1:], capture_output=True, text=True)
sys.stderr.write(ended.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_four_of_the_largest_images_stay_within_memory(tmp_path: Path, tiny_w4a16: Path, format: str) -> None:
    side = int(PIXEL_LIMIT**0.5)
    noise = np.random.default_rng(0).integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    path = tmp_path / "large"
    Image.fromarray(noise).resize((side, side)).save(path, format)
    asked = ["--image", str(path)] * 4 + ["--prompt", "?", "--max-new-tokens", "1"]
    command = [sys.executable, "-m", "hvlc", "run", str(tiny_w4a16), *asked]
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command], env=os.environ, capture_output=True, text=True, check=True
    )
    assert "[bug]" not in measured.stderr
    assert int(measured.stdout) < _MOST
