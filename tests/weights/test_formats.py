"""What every format of quantized weights promises, whichever class it is."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hvlc.errors import HvlcError
from hvlc.solvers import SOLVERS
from hvlc.weights.formats import Levels, ScaleType, Stream, WeightFormat, ZeroType, stored_name, weight_format
from hvlc.weights.formats.packing import pack, packed_size, sign_mask, unpack
from hvlc.weights.lazy import Constant
from hvlc.weights.quantized import SolvedWeight

COLUMNS = 80
#: Formats by the name that plans and reports give them, with what they store beside levels and scales.
FORMATS: dict[str, tuple[WeightFormat, tuple[Stream, ...]]] = {
    "int4 b16 sym f16": (weight_format(4, 16), ()),
    "int8 b32 sym f32": (weight_format(8, 32, True, ScaleType.FLOAT32), ()),
    f"int4 b{COLUMNS} sym f16": (weight_format(4, COLUMNS, per_channel=True), ()),
    f"int8 b{COLUMNS} sym f32": (weight_format(8, COLUMNS, True, ScaleType.FLOAT32, per_channel=True), ()),
    "int4 b32 asym f16": (weight_format(4, 32, False), (Stream.ZERO_POINTS,)),
    "int8 b16 asym f32": (weight_format(8, 16, False, ScaleType.FLOAT32), (Stream.ZERO_POINTS,)),
    "int4 b32 float zero f16": (weight_format(4, 32, False, zero_type=ZeroType.FLOAT), (Stream.MIDDLES,)),
    "int8 b16 float zero f32": (
        weight_format(8, 16, False, ScaleType.FLOAT32, zero_type=ZeroType.FLOAT),
        (Stream.MIDDLES,),
    ),
    "int4 b16 sym lpbq": (weight_format(4, 16, True, ScaleType.LPBQ, False), (Stream.FACTORS,)),
}
of_every_format = pytest.mark.parametrize("name", FORMATS)


def solved(format: WeightFormat, rows: int = 7, solver: str = "hqq") -> Levels:
    weight = np.random.default_rng(3).normal(0.3, 1, (rows, COLUMNS)).astype(np.float32)
    return SOLVERS[solver](weight, format)


@of_every_format
def test_a_name_says_what_is_stored(name: str) -> None:
    format, extra = FORMATS[name]
    assert str(format) == name
    assert format.streams == (Stream.LEVELS, Stream.SCALES, *extra)
    scales = {np.float16: "float16", np.float32: "float", np.uint8: "uint8"}[format.dtype(Stream.SCALES).type]
    assert stored_name(format.bits, f"b{format.block_size}", extra, scales) == name


@of_every_format
@pytest.mark.parametrize("rows", [1, 7])
def test_what_is_stored_has_the_promised_shapes_types_and_bytes(name: str, rows: int) -> None:
    format, matrix = FORMATS[name][0], (rows, COLUMNS)
    stored = solved(format, rows).streams
    assert {s: a.shape for s, a in stored.items()} == {s: format.shape(s, matrix) for s in format.streams}
    assert {s: a.dtype for s, a in stored.items()} == {s: format.dtype(s) for s in format.streams}
    assert sum(array.nbytes for array in stored.values()) == format.bytes(*matrix)


@of_every_format
@pytest.mark.parametrize("solver", ["rtn", "hqq"])
def test_what_is_stored_dequantizes_to_the_levels_arithmetic(name: str, solver: str) -> None:
    format, _ = FORMATS[name]
    levels = solved(format, solver=solver)
    zeros = np.full(levels.scales.shape, 2 ** (format.bits - 1)) if levels.zero_points is None else levels.zero_points
    steps = levels.levels - zeros[..., None].astype(np.float64)
    expected = (steps * levels.scales[..., None]).reshape(7, -1)[:, :COLUMNS]
    found = format.dequantize(levels.streams, (7, COLUMNS))
    exact = levels.zero_points is None or levels.zero_points.dtype == np.uint8
    bound = 2 ** (format.bits - 1) * np.abs(levels.scales).max()  # of a float zero point's share, rounded by itself
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0 if exact else 1e-6 * bound)
    assert np.abs(found - 1.001 * expected).max() > 1e-6 * np.abs(expected).max()


@of_every_format
@pytest.mark.parametrize("damage", ["shape", "missing", "another"])
def test_other_streams_are_refused(name: str, damage: str) -> None:
    format, matrix = FORMATS[name][0], (7, COLUMNS)
    stored: dict[Stream, np.ndarray] = dict(solved(format).streams)
    last = format.streams[-1]
    if damage == "shape":
        stored[last] = stored[last][:-1]
    elif damage == "missing":
        del stored[last]
    else:
        stored[next(s for s in Stream if s not in stored)] = np.zeros(7, np.uint8)
    with pytest.raises(ValueError, match=f"{format} of "):
        format.dequantize(stored, matrix)
    if damage == "shape":
        with pytest.raises(ValueError, match=f"{format} of "):
            SolvedWeight(matrix, format, tuple(Constant(array) for array in stored.values()))
    with pytest.raises(ValueError, match="stores no "):
        format.shape(next(s for s in Stream if s not in format.streams), matrix)


@of_every_format
def test_a_format_is_a_value(name: str) -> None:
    format, _ = FORMATS[name]
    assert format == replace(format)
    assert hash(format) == hash(replace(format))
    assert format != format.in_blocks(64)
    assert format.in_blocks(64).streams == format.streams
    with pytest.raises(FrozenInstanceError):
        format.block_size = 64  # type: ignore[misc]


def test_no_two_formats_are_equal() -> None:
    assert len({format for format, _ in FORMATS.values()}) == len(FORMATS)


def test_a_scale_for_each_row_asks_for_rows_of_its_length() -> None:
    format, _ = FORMATS["int8 b80 sym f32"]
    with pytest.raises(ValueError, match="rows of 80, got rows of 96"):
        format.shape(Stream.LEVELS, (7, 96))
    assert format.grain(COLUMNS) == "channel"
    assert format.in_blocks(32).shape(Stream.SCALES, (7, 96)) == (7, 3)


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name][0].zero_dtype is not None])
def test_an_asymmetric_format_needs_zero_points(name: str) -> None:
    format, extra = FORMATS[name]
    with pytest.raises(HvlcError, match="no zero points"):
        replace(solved(format), zero_points=None).stored(*extra)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 41)), elements=st.integers(0, 15)),
    st.sampled_from([4, 8]),
)
def test_packing_and_back(values: np.ndarray, bits: int) -> None:
    packed = pack(values, bits)
    assert packed.shape == (len(values), packed_size(values.shape[1], bits))
    np.testing.assert_array_equal(unpack(packed, bits, values.shape[1]), values)
    flipped = unpack(packed ^ sign_mask(bits), bits, values.shape[1])
    np.testing.assert_array_equal(flipped, values ^ np.uint8(1 << (bits - 1)))


@given(arrays(np.uint8, st.integers(1, 41), elements=st.integers(0, 15)))
def test_the_low_nibble_comes_first(values: np.ndarray) -> None:
    padded = [*(int(v) for v in values), 0]
    expected = [padded[at] + 16 * padded[at + 1] for at in range(0, len(values), 2)]
    assert pack(values, 4).tolist() == expected
