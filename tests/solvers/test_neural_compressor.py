"""The adapters of neural-compressor: held against its own converted models, and against loops from the definitions."""

import importlib.util
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hvlc.errors import UserError
from hvlc.solvers import neural_compressor as inc
from hvlc.weights.formats import Levels, ScaleType, WeightFormat, ZeroType, weight_format

installed = pytest.mark.skipif(
    importlib.util.find_spec("neural_compressor") is None, reason="neural-compressor is not installed"
)
BLOCK = 32
FLOAT_ZEROS = weight_format(4, BLOCK, symmetric=False, zero_type=ZeroType.FLOAT)
symmetries = pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32) * np.float32(0.05)


def correlated(count: int, size: int) -> np.ndarray:
    random = np.random.default_rng(1)
    return (random.normal(size=(count, size)) @ random.normal(size=(size, size)) / 8).astype(np.float32)


def gram_of(inputs: np.ndarray) -> np.ndarray:
    return inputs.T @ inputs / np.float32(len(inputs))


def output_error(inputs: np.ndarray, weight: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean((inputs @ (other - weight).T) ** 2))


def flat(levels: Levels, columns: int) -> np.ndarray:
    return levels.levels.reshape(len(levels.levels), -1)[:, :columns]


def converted(weight: np.ndarray, config: Any, inputs: np.ndarray) -> Any:
    """What neural-compressor makes of a linear in a model of one decoder layer; two samples of calibration."""
    import torch
    from neural_compressor.torch.quantization import convert, prepare

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            self.linear.weight.data = torch.tensor(weight)

        def forward(self, hidden_states: Any) -> Any:
            return self.linear(hidden_states)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer()])

        def forward(self, hidden_states: Any) -> Any:
            return self.layers[0](hidden_states)

    samples = torch.tensor(inputs).reshape(2, 1, -1, weight.shape[1])
    model = prepare(Model(), config, example_inputs=samples[0])
    for sample in samples:
        model(sample)
    return convert(model).layers[0].linear


def assert_same(levels: Levels, packed: Any) -> None:
    """Levels in a float16 format against a packed layer of neural-compressor: all three to the bit."""
    theirs = packed.unpack()
    np.testing.assert_array_equal(flat(levels, packed.in_features), theirs["int_weight"].numpy())
    np.testing.assert_array_equal(levels.scales, theirs["scales"].numpy().astype(np.float32))
    middle = np.full(levels.scales.shape, 2 ** (levels.format.bits - 1))
    zeros = middle if levels.zero_points is None else levels.zero_points
    np.testing.assert_array_equal(zeros, theirs["zp"].numpy())


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    from neural_compressor.torch import quantization

    return quantization


@installed
@symmetries
@pytest.mark.parametrize(("bits", "columns"), [(4, 96), (8, 96), (4, 16)])
def test_rtn_is_what_its_packed_layer_holds(theirs: ModuleType, symmetric: bool, bits: int, columns: int) -> None:
    weight = normal(24, columns)
    config = theirs.RTNConfig(bits=bits, group_size=BLOCK, use_sym=symmetric)
    found = converted(weight, config, correlated(8, columns))
    assert_same(inc.rtn(weight, weight_format(bits, BLOCK, symmetric)), found)


@installed
@symmetries
@pytest.mark.parametrize("columns", [96, 80, 16])
def test_rtn_dequantizes_to_its_fake_quantized_weight(symmetric: bool, columns: int) -> None:
    import torch
    from neural_compressor.torch.algorithms.weight_only.utility import quant_tensor

    weight = normal(24, columns)
    fake = quant_tensor(torch.tensor(weight), group_size=BLOCK, scheme="sym" if symmetric else "asym")
    levels = inc.rtn(weight, weight_format(4, BLOCK, symmetric, ScaleType.FLOAT32))
    np.testing.assert_array_equal(levels.dequantize(columns), fake.numpy())
    whole = levels.dequantize(-(-columns // BLOCK) * BLOCK)
    assert not whole[:, columns:].any()


@installed
def test_rtn_of_a_block_by_hand() -> None:
    weight = np.array([[7, -3.4, 2.6, 0] + [0] * 12, [3, -1, 0.4, 0.6] + [0] * 12], np.float32)
    even = inc.rtn(weight, weight_format(4, 16))
    assert even.levels[0, 0, :4].tolist() == [15, 5, 11, 8]
    assert even.scales[0, 0] == 1
    ranged = inc.rtn(weight * 3.75, weight_format(4, 16, symmetric=False))
    assert ranged.levels[1, 0, :4].tolist() == [
        15,
        0,
        6,
        6,
    ]  # steps of (3 + 1) * 3.75 / 15 = 1: 11.25, -3.75, 1.5, 2.25
    assert (ranged.scales[1, 0], ranged.zero_points[1, 0]) == (1, 4)


@installed
@pytest.mark.parametrize(
    ("solve", "format"),
    [(inc.rtn, weight_format(4, BLOCK)), (inc.rtn, weight_format(4, BLOCK, symmetric=False)), (inc.hqq, FLOAT_ZEROS)],
    ids=["rtn sym", "rtn asym", "hqq"],
)
def test_a_row_does_not_depend_on_its_neighbours(
    solve: Callable[[np.ndarray, WeightFormat], Levels], format: WeightFormat
) -> None:
    weight = normal(6, 96) * np.float32([[1], [100], [0], [1e-3], [1], [3]])
    together = solve(weight, format).dequantize(96)
    alone = [solve(row[None], format).dequantize(96) for row in weight]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@installed
def test_float16_scales_lose_no_block() -> None:
    weight = np.stack([np.full(BLOCK, 1e-9), np.full(BLOCK, 1e7)]).astype(np.float32)
    scales = inc.rtn(weight, weight_format(4, BLOCK)).scales
    assert scales.tolist() == [[2**-24], [65504]]


@installed
@pytest.mark.parametrize("bits", [4, 8])
def test_hqq_is_what_its_layer_holds_for_a_row(theirs: ModuleType, bits: int) -> None:
    row = normal(1, 96)
    levels = inc.hqq(row, weight_format(bits, BLOCK, symmetric=False, zero_type=ZeroType.FLOAT))
    blocks = row.reshape(-1, BLOCK).T.copy()  # its blocks run down a column
    config = theirs.HQQConfig(bits=bits, group_size=BLOCK, quant_zero=False)
    found = converted(blocks, config, correlated(8, 3)).q_weight
    packed = found.val.numpy()
    high_first = packed if bits == 8 else np.concatenate([packed >> 4, packed & 15])
    np.testing.assert_array_equal(levels.levels[0], high_first.T)
    np.testing.assert_array_equal(levels.scales, found.scale.numpy().astype(np.float32))
    np.testing.assert_array_equal(levels.zero_points.astype(np.float16), found.zero.numpy())


@installed
def test_hqq_has_a_smaller_norm_of_the_error_than_rounding() -> None:
    weight = np.random.default_rng(0).standard_t(4, (16, 256)).astype(np.float32)
    errors = [np.abs(solve(weight, FLOAT_ZEROS).dequantize(256) - weight) ** 0.7 for solve in (inc.hqq, inc.rtn)]
    assert errors[0].mean() < 0.97 * errors[1].mean()


@installed
@symmetries
def test_gptq_is_what_its_packed_layer_holds(theirs: ModuleType, symmetric: bool, tmp_path: Any) -> None:
    weight, inputs = normal(24, 96), correlated(64, 96)
    config = theirs.GPTQConfig(bits=4, group_size=BLOCK, use_sym=symmetric, model_path=str(tmp_path))
    assert_same(
        inc.gptq(weight, weight_format(4, BLOCK, symmetric), gram_of(inputs)), converted(weight, config, inputs)
    )


@installed
@symmetries
@pytest.mark.parametrize("columns", [96, 80])
def test_gptq_is_the_textbook_loop_with_scales_of_the_unchanged_weight(symmetric: bool, columns: int) -> None:
    weight, gram = normal(12, columns), gram_of(correlated(300, columns))
    levels = inc.gptq(weight, weight_format(4, BLOCK, symmetric, ScaleType.FLOAT32), gram)
    expected, scales, zeros = textbook_gptq(weight.astype(np.float64), gram.astype(np.float64), symmetric)
    np.testing.assert_allclose(levels.scales, scales, rtol=1e-6)
    np.testing.assert_array_equal(np.full(scales.shape, 8) if symmetric else levels.zero_points, zeros)
    same = flat(levels, columns) == expected
    assert same.mean() > 0.99  # a tie that float32 decides otherwise moves what comes after it in the row
    assert same[:, :BLOCK].all()


def textbook_gptq(weight: np.ndarray, gram: np.ndarray, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels, scales and zeros: columns in order, the inverse Hessian without those that are done."""
    rows, columns = weight.shape
    inverse = np.linalg.inv(gram + 0.01 * np.mean(np.diag(gram)) * np.eye(columns))
    work, levels = weight.copy(), np.empty(weight.shape, int)
    blocks = -(-columns // BLOCK)
    scales, zeros = np.empty((rows, blocks)), np.empty((rows, blocks))
    for row, block in np.ndindex(rows, blocks):
        values = weight[row, block * BLOCK : (block + 1) * BLOCK]
        low, high = min(values.min(), 0), max(values.max(), 0)
        if symmetric:
            high = max(-low, high)
            low = -high
        scales[row, block] = (high - low) / 15
        zeros[row, block] = 8 if symmetric else round(-low / scales[row, block])
    for column in range(columns):
        scale, zero = scales[:, column // BLOCK], zeros[:, column // BLOCK]
        levels[:, column] = np.clip(np.round(work[:, column] / scale) + zero, 0, 15)
        missed = (work[:, column] - (levels[:, column] - zero) * scale) / inverse[column, column]
        work -= np.outer(missed, inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return levels, scales, zeros


@installed
def test_gptq_with_unrelated_inputs_rounds_and_with_related_ones_does_better() -> None:
    weight, inputs, format = normal(24, 96), correlated(300, 96), weight_format(4, BLOCK, symmetric=False)
    unrelated = inc.gptq(weight, format, np.diag(np.linspace(1, 9, 96)).astype(np.float32))
    rounded = inc.rtn(weight, format)
    np.testing.assert_array_equal(unrelated.dequantize(96), rounded.dequantize(96))
    related = inc.gptq(weight, format, gram_of(inputs)).dequantize(96)
    assert output_error(inputs, weight, related) < 0.75 * output_error(inputs, weight, rounded.dequantize(96))


@installed
def test_gptq_does_not_ask_for_the_magnitude_of_the_inputs() -> None:
    weight, gram, format = normal(8, 64), gram_of(correlated(300, 64)), weight_format(4, BLOCK)
    np.testing.assert_array_equal(inc.gptq(weight, format, gram).levels, inc.gptq(weight, format, 4 * gram).levels)


@installed
@symmetries
def test_awq_is_what_its_packed_layer_holds(theirs: ModuleType, symmetric: bool) -> None:
    weight, inputs = normal(24, 96), correlated(64, 96)
    config = theirs.AWQConfig(
        bits=4, group_size=BLOCK, use_sym=symmetric, absorb_layer_dict={"linear": "linear"}
    )  # the layer scales its own input
    found = converted(weight, config, inputs)
    scaled = inc.awq([weight], weight_format(4, BLOCK, symmetric), gram_of(inputs), np.abs(inputs).mean(0))
    assert_same(scaled.levels[0], found.linear)
    np.testing.assert_allclose(scaled.input_scales, 1 / found.input_scale.numpy(), rtol=1e-5)


@installed
@symmetries
def test_awq_of_a_group_is_the_best_of_both_grids(symmetric: bool) -> None:
    random = np.random.default_rng(3)
    inputs = (correlated(200, 64) * np.exp(random.normal(size=64))).astype(np.float32)
    weights, format = [normal(16, 64), normal(8, 64, seed=2)], weight_format(4, BLOCK, symmetric, ScaleType.FLOAT32)
    scaled = inc.awq(weights, format, gram_of(inputs), np.abs(inputs).mean(0))
    scales, clips = textbook_awq(weights, inputs, symmetric)
    np.testing.assert_allclose(scaled.input_scales, scales, rtol=1e-5)
    for weight, levels, clip in zip(weights, scaled.levels, clips, strict=True):
        np.testing.assert_allclose(
            levels.dequantize(64), rounded(weight * scales, symmetric, clip), rtol=1e-4, atol=1e-6
        )


def rounded(weight: np.ndarray, symmetric: bool, clip: float) -> np.ndarray:
    """Fake-quantized blocks of a range that is clipped."""
    result = np.empty(weight.shape)
    for row, start in ((row, start) for row in range(len(weight)) for start in range(0, weight.shape[1], BLOCK)):
        values = weight[row, start : start + BLOCK].astype(np.float64)
        if symmetric:
            scale, zero, low, high = np.abs(values).max() * clip / 7, 0, -8, 7
        else:
            least, most = min(values.min(), 0) * clip, max(values.max(), 0) * clip
            scale = (most - least) / 15
            zero, low, high = np.round(-least / scale), 0, 15
        result[row, start : start + BLOCK] = (np.clip(np.round(values / scale) + zero, low, high) - zero) * scale
    return result


def textbook_awq(weights: Sequence[np.ndarray], inputs: np.ndarray, symmetric: bool) -> tuple[np.ndarray, list[float]]:
    """The scaling and the clips with the least error of the outputs, all inputs looked at."""
    together = np.concatenate(weights).astype(np.float64)
    blocks = np.abs(together).reshape(len(together), -1, BLOCK)
    share = (blocks / blocks.max(axis=2, keepdims=True)).reshape(together.shape).mean(0)
    tried = []
    for step in range(20):
        scales = np.maximum(np.abs(inputs).mean(0) ** (step / 20) / share ** (1 - step / 20), 1e-4)
        scales /= np.sqrt(scales.max() * scales.min())
        tried.append((output_error(inputs, together, rounded(together * scales, symmetric, 1) / scales), step, scales))
    scales = min(tried)[2]
    clips = []
    for weight in weights:
        ratios = [1 - step / 100 for step in range(10)]
        errors = [output_error(inputs, weight, rounded(weight * scales, symmetric, r) / scales) for r in ratios]
        clips.append(ratios[int(np.argmin(errors))])
    return scales, clips


@installed
@pytest.mark.parametrize("where", [np.s_[3, :BLOCK], np.s_[:, 7]], ids=["block", "column"])
def test_awq_refuses_what_it_would_divide_by(where: Any) -> None:
    weight = normal(4, 64)
    weight[where] = 0
    with pytest.raises(UserError, match=r"solver\.zeros.*all zeros"):
        inc.awq([weight], weight_format(4, BLOCK), np.eye(64, dtype=np.float32), np.ones(64, np.float32))


@installed
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_no_numbers_are_refused(value: float) -> None:
    gram = np.eye(64, dtype=np.float32)
    gram[2, 3] = value
    with pytest.raises(UserError, match=r"calibration\.finite"):
        inc.gptq(normal(4, 64), weight_format(4, BLOCK), gram)
    with pytest.raises(UserError, match=r"calibration\.finite"):
        inc.awq([normal(4, 64)], weight_format(4, BLOCK), gram, np.ones(64, np.float32))


@pytest.mark.parametrize(
    ("solver", "format", "columns", "reason"),
    [
        ("inc/rtn", weight_format(8, BLOCK, symmetric=False), 80, ""),
        ("inc/gptq", weight_format(8, BLOCK, symmetric=False), 80, ""),
        ("inc/awq", weight_format(4, BLOCK, symmetric=False), 96, ""),
        ("inc/awq", weight_format(8, BLOCK), 96, "4 bits"),
        ("inc/awq", weight_format(4, BLOCK), 80, "rows of 80"),
        ("inc/hqq", FLOAT_ZEROS, 96, ""),
        ("inc/hqq", FLOAT_ZEROS, 80, "rows of 80"),
        ("inc/hqq", weight_format(4, BLOCK, symmetric=False), 96, "fractions"),
        ("inc/hqq", weight_format(4, BLOCK), 96, "fractions"),
        ("inc/autoround", weight_format(4, BLOCK), 96, "auto-round"),
        ("inc/teq", weight_format(4, BLOCK), 96, "whole model"),
        ("inc/gtpq", weight_format(4, BLOCK), 96, "no such solver"),
    ],
)
def test_what_it_cannot_do_is_known_before(solver: str, format: WeightFormat, columns: int, reason: str) -> None:
    verdict = inc.supports(solver, format, columns)
    assert bool(verdict) == (not reason)
    assert reason in verdict.reason


@installed
def test_a_format_that_it_cannot_do_is_refused_by_the_solver_too() -> None:
    with pytest.raises(UserError, match=r"solver\.format.*inc/hqq.*fractions"):
        inc.hqq(normal(2, 64), weight_format(4, BLOCK, symmetric=False))


@pytest.mark.parametrize("missing", ["neural_compressor", "cpuinfo"])
def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    calls: list[Callable[[], object]] = [
        lambda: inc.rtn(normal(2, 32), weight_format(4, BLOCK)),
        lambda: inc.hqq(normal(2, 32), FLOAT_ZEROS),
        lambda: inc.gptq(normal(2, 32), weight_format(4, BLOCK), np.eye(32, dtype=np.float32)),
        lambda: inc.awq([normal(2, 32)], weight_format(4, BLOCK), np.eye(32), np.ones(32)),
    ]
    for call in calls:
        with pytest.raises(UserError, match=rf"install\.neural_compressor.*{missing}.*pip install 'hvlc\[compile\]'"):
            call()


@installed
def test_it_is_imported_when_used_and_then_says_nothing() -> None:
    code = """
import logging, sys
import numpy as np
from hvlc.solvers import neural_compressor as inc
from hvlc.weights.formats import weight_format
assert not {"torch", "neural_compressor"} & set(sys.modules)
logging.basicConfig(level="DEBUG", format="root: %(message)s")
root = (logging.root.level, list(logging.root.handlers))
weight, gram, format = np.ones((2, 32), np.float32), np.eye(32, dtype=np.float32), weight_format(4, 32)
inc.rtn(weight, format)
inc.gptq(weight, format, gram)
inc.awq([weight], format, gram, np.ones(32, np.float32))
assert root == (logging.root.level, list(logging.root.handlers))
logger = logging.getLogger("neural_compressor")
assert not logger.filters and not logger.disabled
logger.warning("as before")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if "as before" not in line] == []
    assert "as before" in done.stderr


@installed
def test_it_works_on_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ

    seen: list[int] = []

    def fail(*_: object, **__: object) -> None:
        seen.append(torch.get_num_threads())
        raise ValueError("on purpose")

    monkeypatch.setattr(GPTQ, "fasterquant", fail)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="on purpose"):
            inc.gptq(normal(2, 32), weight_format(4, BLOCK), np.eye(32, dtype=np.float32))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_only_the_working_thread_is_silenced() -> None:
    logger = logging.getLogger("neural_compressor")
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        with inc._quiet():
            logger.warning("here")
            logger.error("here, an error")
            other = threading.Thread(target=logger.warning, args=("elsewhere",))
            other.start()
            other.join()
        logger.warning("after")
    finally:
        logger.removeHandler(handler)
    assert heard == ["here, an error", "elsewhere", "after"]
