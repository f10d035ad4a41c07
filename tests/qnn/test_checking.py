from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.errors import TargetError
from hvlc.qnn import checking
from hvlc.qnn.checking import check_compiled, emulate, require_faithful, tolerance_of
from hvlc.qnn.compiler import compile_graph
from hvlc.results.compilation import GraphCheck, OutputCheck
from tests.qnn import graphs
from tests.qnn.conftest import needs_qnn, noise, options
from tests.report.test_compilation import graph


@needs_qnn
@pytest.mark.parametrize("hazard", graphs.HAZARDS)
def test_a_silent_hazard_is_caught(tmp_path: Path, output: Path, hazard: str) -> None:
    wrong = graphs.HAZARDS[hazard](tmp_path / "wrong.onnx", wrong=True)
    # The gain of a norm (N5) is refused by the compiler; the others compile and compute something else.
    with pytest.raises(TargetError, match=r"compile\.refused.*normed" if hazard == "N5" else r"check\.noise"):
        check_compiled(compile_graph(wrong, options(), output), [noise(wrong)], "noise")


@needs_qnn
@pytest.mark.slow
@pytest.mark.parametrize("hazard", graphs.HAZARDS)
def test_the_right_form_of_a_hazard_passes(tmp_path: Path, output: Path, hazard: str) -> None:
    right = graphs.HAZARDS[hazard](tmp_path / "right.onnx", wrong=False)
    check = check_compiled(compile_graph(right, options(), output), [noise(right)], "noise")
    assert check.worst.noise < 0.7 * check.tolerance


@needs_qnn
def test_a_check_says_what_ran(tmp_path: Path, output: Path) -> None:
    model = graphs.small_network(tmp_path / "a.onnx")
    compiled = compile_graph(model, options(), output)
    check = check_compiled(compiled, [noise(model, seed) for seed in range(3)], "normal noise")
    assert (check.ran_on, check.reference, check.inputs, check.runs) == (
        "emulated NPU on x86-64",
        "onnxruntime CPU",
        "normal noise",
        3,
    )
    assert check.outputs[0].values == 3 * 8 * 32
    assert 0 < check.worst.noise < 1e-3
    assert check.worst.cosine == pytest.approx(1, abs=1e-6)


@needs_qnn
def test_a_wrong_reference_is_caught(tmp_path: Path, output: Path) -> None:
    model = graphs.small_network(tmp_path / "a.onnx")
    compiled = compile_graph(model, options(), output)
    graphs.small_network(model, seed=1)  # the source is another graph now
    with pytest.raises(TargetError, match=r"check\.noise"):
        check_compiled(compiled, [noise(model)], "noise")


@needs_qnn
def test_a_damaged_binary_does_not_run(tmp_path: Path, output: Path) -> None:
    model = graphs.small_network(tmp_path / "a.onnx")
    compiled = compile_graph(model, options(), output)
    content = compiled.context.binary.read_bytes()
    compiled.context.binary.write_bytes(content[: len(content) // 2])
    with pytest.raises(TargetError, match=r"check\.emulation"):
        list(emulate(compiled, [noise(model)], tmp_path))


def output_of(found: list[np.ndarray], expected: list[np.ndarray], *, scores: bool = False) -> OutputCheck:
    sums = checking._Sums()
    for one, other in zip(found, expected, strict=True):
        sums.add(one, other, scores=scores)
    return sums.output("y")


@given(st.integers(0, 1000), st.integers(1, 4), st.floats(0, 0.5))
def test_sums_over_runs_are_those_of_all_values(seed: int, runs: int, error: float) -> None:
    random = np.random.default_rng(seed)
    expected = [random.standard_normal((2, 5)) for _ in range(runs)]
    found = [values + error * random.standard_normal(values.shape) for values in expected]
    check = output_of(found, expected, scores=True)
    one, other = np.concatenate(found).ravel(), np.concatenate(expected).ravel()
    assert check.noise == pytest.approx(np.linalg.norm(one - other) / np.linalg.norm(other))
    assert check.cosine == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    assert check.max_error == np.abs(one - other).max()
    rows = np.concatenate(found).argmax(-1) == np.concatenate(expected).argmax(-1)
    assert check.top1 is not None
    assert (check.top1.value, check.top1.n) == (pytest.approx(rows.mean()), 2 * runs)


@given(st.integers(0, 1000), st.floats(5, 40), st.floats(0.002, 0.2))
def test_bytes_have_the_noise_of_what_was_rounded(seed: int, spread: float, noise: float) -> None:
    random = np.random.default_rng(seed)
    exact = 128 + spread * random.standard_normal(100_000)
    off = exact + noise * spread * random.standard_normal(exact.size)
    found, expected = (np.clip(np.round(x), 0, 255).astype(np.uint8) for x in (off, exact))
    assert output_of([found], [expected]).noise == pytest.approx(noise, rel=0.25, abs=0.1 / spread * noise)


@pytest.mark.parametrize(
    "spoil",
    [lambda x: x + 1, lambda x: np.where(np.arange(x.size) % 1000, x, 255 - x), lambda x: 2 * (x // 2)],
    ids=["another zero point", "some rows of something else", "the last bit lost"],
)
def test_bytes_that_are_wrong_are_noise_all_the_same(spoil) -> None:
    levels = np.clip(128 + 40 * np.random.default_rng(0).standard_normal(10_000), 0, 250).astype(np.uint8)
    assert output_of([spoil(levels).astype(np.uint8)], [levels]).noise > 0.015


def test_integers_count_around_their_mean() -> None:
    """A level that is 100 off is much of a spread of 1,000, however far from zero the levels are."""
    expected = np.array([40000, 42000], np.uint16)
    assert output_of([expected + np.uint16(100)], [expected]).noise == pytest.approx(0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_cannot_pass(value: float) -> None:
    expected = np.ones((1, 4), np.float32)
    check = output_of([np.array([[1, 1, value, 1]], np.float32)], [expected])
    assert check.noise >= 0.5


def test_zeros_tolerate_no_value() -> None:
    zeros = np.zeros((1, 4), np.float32)
    assert output_of([zeros], [zeros]).noise == 0
    found = output_of([zeros + 1e-6], [zeros])
    assert (found.noise, found.cosine) == (1, None)


@pytest.mark.parametrize(
    ("operators", "tolerance"),
    [
        ({"MatMul": 9}, 0.005),
        ({"MatMul": 64, "Add": 36}, 0.008),
        ({"MatMul": 64, "Add": 36, "Reshape": 500, "DequantizeLinear": 500}, 0.008),
        ({"MatMul": 400}, 0.016),
    ],
)
def test_deep_graphs_may_round_more(operators: dict[str, int], tolerance: float) -> None:
    assert tolerance_of(graph("a", operators=operators)) == pytest.approx(tolerance)


def test_noise_beyond_the_tolerance_is_refused() -> None:
    quiet = OutputCheck(name="a", values=1, cosine=1, max_error=0, largest=1, noise=0.004)
    loud = OutputCheck(name="b", values=1, cosine=1, max_error=0.5, largest=1, noise=0.006)
    require_faithful(GraphCheck(component="c", inputs="i", runs=1, outputs=(quiet,), tolerance=0.005))
    with pytest.raises(TargetError, match=r"check.noise.*'b' departs from the CPU by 0.60%"):
        require_faithful(GraphCheck(component="c", inputs="i", runs=1, outputs=(quiet, loud), tolerance=0.005))
