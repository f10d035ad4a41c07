"""What every data-free solver promises, whatever it minimizes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.solvers import SOLVERS
from hvlc.weights.formats import ScaleType, Stream, WeightFormat, weight_format
from tests.helpers.solvers import ASYMMETRIC, FORMATS, GENERAL, SYMMETRIC, matrices, normal, squared
from tests.helpers.tolerances import SOLVER_ERROR

solvers = pytest.mark.parametrize("solver", GENERAL)
formats = pytest.mark.parametrize("format", FORMATS, ids=str)


@solvers
@given(weight=matrices, format=st.sampled_from(FORMATS))
@settings(max_examples=60)
def test_levels_are_in_range_and_padding_is_zero(solver: str, weight: np.ndarray, format: WeightFormat) -> None:
    levels = SOLVERS[solver](weight, format)
    assert levels.levels.dtype == np.uint8
    assert int(levels.levels.max()) < 2**format.bits
    assert (levels.zero_points is None) is format.symmetric
    columns = levels.levels.shape[1] * format.block_size
    padded = levels.dequantize(columns)
    assert padded.shape[1] == columns
    assert (padded[:, weight.shape[1] :] == 0).all()


@solvers
@given(weight=matrices, format=st.sampled_from(FORMATS))
@settings(max_examples=60)
def test_scales_are_those_that_are_stored_and_of_an_allowed_sign(
    solver: str, weight: np.ndarray, format: WeightFormat
) -> None:
    if not format.symmetric or (solver == "minmax" and not format.negative_scales):
        format = weight_format(format.bits, 16, format.symmetric, format.scale_type)
    levels = SOLVERS[solver](weight, format)
    np.testing.assert_array_equal(levels.stored(Stream.SCALES).astype(np.float32), levels.scales)
    if not (format.symmetric and format.negative_scales):
        assert (levels.scales >= 0).all()


@solvers
@formats
@pytest.mark.filterwarnings("error")
def test_blocks_of_zeros_stay_zero(solver: str, format: WeightFormat) -> None:
    weight = np.zeros((2, 40), np.float32)
    weight[1, :16] = normal(1, 16)
    levels = SOLVERS[solver](weight, format)
    assert (levels.dequantize(40)[weight == 0] == 0).all()
    assert np.isfinite(levels.stored(Stream.SCALES)).all()


@solvers
@formats
@pytest.mark.parametrize("value", [1.0, -1.0, 0.03, -300.0])
def test_constant_blocks_move_by_no_more_than_a_scale_is_rounded(
    solver: str, format: WeightFormat, value: float
) -> None:
    found = SOLVERS[solver](np.full((1, 32), value, np.float32), format).dequantize(32)
    rounding = 2**-11 if format.scale_type is ScaleType.FLOAT16 else 2**-22  # float32: of the sums as well
    np.testing.assert_allclose(found, value, rtol=rounding)


@solvers
@pytest.mark.parametrize("format", [f for f in FORMATS if f.scale_type is ScaleType.FLOAT16], ids=str)
@pytest.mark.parametrize("magnitude", [1e-41, 1e-30, 1e-9, 1e-7, 1e-4, 1e5, 1e8])
@pytest.mark.filterwarnings("error")
def test_float16_scales_neither_vanish_nor_overflow(solver: str, format: WeightFormat, magnitude: float) -> None:
    weight = (normal(2, 32).astype(np.float64) * magnitude).astype(np.float32)
    levels = SOLVERS[solver](weight, format)
    stored = levels.stored(Stream.SCALES)
    assert stored.dtype == np.float16
    assert np.isfinite(stored).all()
    assert (stored != 0).all()
    assert squared(weight, levels) <= float(np.square(weight.astype(np.float64)).sum()) * (1 + SOLVER_ERROR)


@solvers
@pytest.mark.parametrize("format", [f for f in FORMATS if f.scale_type is ScaleType.FLOAT32], ids=str)
@pytest.mark.parametrize("exponent", [-40, 20, 60])
def test_the_magnitude_of_weights_changes_scales_alone(solver: str, format: WeightFormat, exponent: int) -> None:
    weight = normal(3, 50)
    one, other = SOLVERS[solver](weight, format), SOLVERS[solver](np.ldexp(weight, exponent), format)
    np.testing.assert_array_equal(one.levels, other.levels)
    np.testing.assert_array_equal(np.ldexp(one.scales, exponent), other.scales)


@solvers
@formats
def test_rows_do_not_know_each_other(solver: str, format: WeightFormat) -> None:
    weight = normal(5, 50)
    together = SOLVERS[solver](weight, format).dequantize(50)
    alone = np.concatenate([SOLVERS[solver](weight[i : i + 1], format).dequantize(50) for i in range(5)])
    np.testing.assert_array_equal(together, alone)


@solvers
@pytest.mark.parametrize("columns", [32, 64, 2048])
@pytest.mark.parametrize("format", [SYMMETRIC[0], ASYMMETRIC[0]], ids=str)
def test_many_blocks_are_solved_as_few_are(solver: str, columns: int, format: WeightFormat) -> None:
    """The kernels lay blocks out in groups; a block that ends one, or is alone in one, is like any other."""
    weight = normal(2 * 4096 // columns + 3, columns)
    whole = SOLVERS[solver](weight, format)
    alone = [SOLVERS[solver](np.ascontiguousarray(row[None]), format) for row in weight]
    np.testing.assert_array_equal(whole.levels, np.concatenate([a.levels for a in alone]))
    np.testing.assert_array_equal(whole.scales, np.concatenate([a.scales for a in alone]))


def test_every_processor_gives_the_same_bytes() -> None:
    """Compiled for the plainest processor of this architecture, without its vector extensions."""
    script = (
        "import hashlib, numpy as np\n"
        "from hvlc.solvers import SOLVERS\n"
        "from hvlc.weights.formats import ScaleType, Stream, weight_format\n"
        "w = np.random.default_rng(3).normal(size=(96, 160)).astype(np.float32)\n"
        "formats = [weight_format(b, 32, s) for b in (4, 8) for s in (True, False)]\n"
        "paired = weight_format(8, 160, True, ScaleType.FLOAT32, False, per_channel=True, integer_product=True)\n"
        "for name, solver in SOLVERS.items():\n"
        "    found = [solver(w, f) for f in ([paired] if name == 'pairs' else formats)]\n"
        "    stored = b''.join(f.stored(Stream.LEVELS).tobytes() + f.scales.tobytes() for f in found)\n"
        "    print(name, hashlib.sha256(stored).hexdigest())\n"
    )
    digests = set()
    for processor in ("generic", "host"):
        settings = {} if processor == "host" else {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
        run = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **settings}, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout)
    assert len(digests) == 1
