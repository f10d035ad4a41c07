import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from hvlc.qnn.checking import Sample
from hvlc.qnn.compiler import CompileOptions

needs_qnn = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None,
    reason="needs Qualcomm's compiler: pip install 'hvlc[qnn]' on x86-64 Linux",
)

#: Chips by Qualcomm's name: number of the chip and generation of its NPU.
CHIPS = {"SM8550": (43, 73), "SM8650": (57, 75), "SM8750": (69, 79), "SM8850": (87, 81)}


def options(chip: str = "SM8750", **changes: object) -> CompileOptions:
    soc_model, htp_arch = CHIPS[chip]
    return CompileOptions(soc_model, htp_arch, **changes)  # type: ignore[arg-type]


def noise(model: Path, seed: int = 0) -> Sample:
    """Normal floats and integers of the middle of their range, as inputs of a model."""
    random, feeds = np.random.default_rng(seed), {}
    for value in ort.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs():
        dtype = np.dtype({"float": "float32"}.get(name := value.type[len("tensor(") : -1], name))
        if dtype.kind == "f":
            feeds[value.name] = random.standard_normal(value.shape).astype(dtype)
        else:
            info = np.iinfo(dtype)
            low, high = (info.min // 3, info.max // 3) if info.min else (info.max // 3, info.max // 3 * 2)
            feeds[value.name] = random.integers(low, high, value.shape).astype(dtype)
    return Sample(feeds)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where compiled graphs go."""
    (tmp_path / "output").mkdir()
    return tmp_path / "output"
