"""Parts of the vision benchmark: attention written out, positions, fits and ratios."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_written_out_attention_is_the_fused_one() -> None:
    from vision import _write_out

    shape, names = [1, 5, 1024], ["q", "k", "v"]
    node = helper.make_node("MultiHeadAttention", names, ["y"], domain="com.microsoft", num_heads=16)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in [*names, "y"]]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", values[:3], values[3:]), opset_imports=opsets, ir_version=10
    )
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal(shape, np.float32) for name in names}
    fused, written = model, onnx.ModelProto()
    written.CopyFrom(model)
    _write_out(written.graph)
    assert "MultiHeadAttention" not in [node.op_type for node in written.graph.node]
    first, second = (
        ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for each in (fused, written)
    )
    np.testing.assert_allclose(second, first, atol=1e-5)


def test_positions_of_the_same_grid_stay_and_a_plane_stays_one() -> None:
    from vision import _resized

    plane = np.add.outer(np.arange(4.0), np.arange(4.0)).reshape(16, 1).astype(np.float32)
    np.testing.assert_array_equal(_resized(plane, 4, 4), plane)
    inner = _resized(plane, 4, 8).reshape(8, 8)[1:-1, 1:-1]
    np.testing.assert_allclose(np.diff(inner, axis=0), 0.5, atol=1e-6)


def test_a_fit_tells_a_line_from_a_square() -> None:
    from vision import fit

    sides = [768, 1024, 1536, 2048]
    linear, square = fit(sides, [3 * s * s / 1e6 + 1 for s in sides]), fit(sides, [(s * s / 1e6) ** 2 for s in sides])
    assert (linear["seconds_per_megapixel"], linear["seconds"]) == pytest.approx((3, 1))
    assert linear["r2"] == pytest.approx(1)
    assert square["r2"] < 0.97


def test_ratios_leave_out_what_was_skipped() -> None:
    from vision import expected_bytes, summary

    cells = {
        "full 768": {"seconds": 8.0, "peak": 60},
        "full-written 768": {"skipped": "about 9 GB"},
        "base 768": {"seconds": 2.0, "peak": 20},
    }
    (only,) = summary(cells, ["base", "full", "full-written"], [768])["ratios"]
    assert only == {"form": "base", "side": 768, "against": "full", "seconds": 4.0, "peak": 3.0}
    assert expected_bytes("full-written", 2048) > 10**10 > expected_bytes("base", 2048)
