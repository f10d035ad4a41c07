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


def test_full_passes_that_were_not_run_are_fitted_and_marked() -> None:
    from vision import summary, with_fitted

    sides = [768, 1024, 1536, 2048]
    pixels = [side * side / 1e6 for side in sides]
    cells = {
        f"full {side}": {"seconds": 2 * p * p + 3 * p + 1, "peak": 5 * p} for side, p in zip(sides, pixels, strict=True)
    }
    wanted = cells["full 2048"]
    cells |= {f"base {side}": {"seconds": p, "peak": 1.0} for side, p in zip(sides, pixels, strict=True)}
    cells["full 2048"] = {"skipped": "not asked for"}
    found = with_fitted(cells, sides)
    assert found["full 2048"].pop("fitted") == sides[:3]
    assert found["full 2048"] == pytest.approx(wanted)
    assert found["full 1536"] == cells["full 1536"]
    ratios = summary(with_fitted(cells, sides), ["base", "full"], sides)["ratios"]
    assert [ratio["side"] for ratio in ratios if "fitted" in ratio] == [2048]
    assert "full 2048" not in {name for name, cell in with_fitted(cells, sides[2:]).items() if "seconds" in cell}


def test_the_plot_is_drawn_in_both_formats(tmp_path: Path) -> None:
    from vision import plot

    cells = {"full 768": {"seconds": 8.0, "peak": 6e8}, "full 1024": {"seconds": 9.0, "peak": 7e8, "fitted": [768]}}
    files = [tmp_path / "vision.png", tmp_path / "vision.svg"]
    plot(cells, ["full", "base"], [768, 1024], files)
    assert files[0].read_bytes().startswith(b"\x89PNG")
    first = files[1].read_bytes()
    assert b"</svg>" in first
    plot(cells, ["full", "base"], [768, 1024], files)
    assert files[1].read_bytes() == first
