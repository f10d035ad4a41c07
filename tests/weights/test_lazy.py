"""Lazy weights: any expression over stored tensors has the values that numpy gives, whole or box by box."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.solvers import SOLVERS
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.formats import Stream, WeightFormat, weight_format
from hvlc.weights.lazy import Computed, Constant, Expression, LazyTensor, Stored, concat, expression_of, full_box
from hvlc.weights.quantized import Quantization
from tests.helpers.solvers import FLOAT_SCALES, GENERAL

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I32": np.int32}
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (7,), (0, 3), (5, 0), (1, 9), (6, 4), (3, 33), (2, 3, 5), (2, 1, 3, 4))
FLOATS = ("F32", "F16", "BF16")


def bits(values: Any) -> np.ndarray:
    """The bytes of an array, so that NaN equals NaN and -0 differs from 0."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def assert_same(found: Any, expected: Any) -> None:
    assert (np.shape(found), found.dtype) == (np.shape(expected), expected.dtype)
    np.testing.assert_array_equal(bits(found), bits(expected))


def save(directory: Path, tensors: dict[str, np.ndarray], padding: int = 0) -> dict[str, Stored]:
    """A safetensors file; `padding` moves the data off its alignment, which the format allows."""
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    header, data = {}, b""
    for name, values in tensors.items():
        content = values.tobytes()
        place = [len(data), len(data) + len(content)]
        header[name] = {"dtype": names[values.dtype], "shape": values.shape, "data_offsets": place}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + padding)
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "any"}')
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return {name: Stored(tensor) for name, tensor in Checkpoint.open(directory).tensors.items()}


@dataclass(frozen=True)
class Pool:
    """Stored tensors and their values: every dtype in every shape, at aligned and odd places."""

    stored: dict[str, Stored]
    values: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    random = np.random.default_rng(0)
    values = {
        f"{dtype}{list(shape)}": np.asarray(random.normal(0, 3, shape)).astype(kind)
        for dtype, kind in DTYPES.items()
        for shape in SHAPES
    }
    stored = {}
    for padding in (0, 1):
        found = save(tmp_path_factory.mktemp("pool") / "checkpoint", values, padding)
        stored |= {f"{name}+{padding}": tensor for name, tensor in found.items()}
    return Pool(stored, {f"{name}+{padding}": value for name, value in values.items() for padding in (0, 1)})


@dataclass(frozen=True)
class Watched(Expression):
    """An expression that is asked for boxes inside its shape alone."""

    of: Expression

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.of.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.of.dtype

    def box(self, box: tuple[slice, ...]) -> np.ndarray:
        assert len(box) == len(self.shape)
        assert all(0 <= s.start <= s.stop <= size for s, size in zip(box, self.shape, strict=True))
        return self.of.box(box)


Pair = tuple[Expression, np.ndarray]


@st.composite
def factors(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """Any shape of `size` elements."""
    shape: list[int] = []
    rest = size
    for _ in range(draw(st.integers(0, 3))):
        divisor = draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0] or [1]))
        shape.append(divisor)
        rest = rest // divisor if divisor else rest
    position = draw(st.integers(0, len(shape)))
    return (*shape[:position], rest, *shape[position:])


@st.composite
def formats(draw: st.DrawFn) -> WeightFormat:
    return weight_format(
        bits=draw(st.sampled_from([4, 8])),
        block_size=draw(st.sampled_from([16, 32])),
        symmetric=draw(st.booleans()),
        scale_type=draw(st.sampled_from(FLOAT_SCALES)),
        negative_scales=draw(st.booleans()),
    )


def step(draw: st.DrawFn, expression: Expression, value: np.ndarray) -> Pair:
    """One more operation on an expression, and the same by numpy."""
    steps = ["cast", "transpose", "reshape", "wrap"]
    if value.ndim:
        steps += ["narrow", "concat", "mixed", "scale"]
    if value.ndim == 2 and value.dtype == np.float32 and value.shape[1] and np.isfinite(value).all():
        steps += ["quantize"] * 2
    match draw(st.sampled_from(steps)):
        case "cast":
            kind = draw(st.sampled_from([np.float32, np.float32, np.float16]))
            return expression.cast(kind), value.astype(kind)
        case "transpose":
            axes = tuple(draw(st.permutations(range(value.ndim))))
            return (expression.transpose(*axes), value.transpose(axes) if axes else value)
        case "narrow":
            axis = draw(st.integers(0, value.ndim - 1))
            start, stop = sorted(draw(st.tuples(*[st.integers(0, value.shape[axis])] * 2)))
            return expression.narrow(axis, start, stop), value.take(range(start, stop), axis)
        case "reshape":
            shape = value.shape[::-1] if value.size == 0 else draw(factors(value.size))
            return expression.reshape(*shape), np.ascontiguousarray(value).reshape(shape)
        case "concat":
            axis = draw(st.integers(0, value.ndim - 1))
            times = draw(st.integers(1, 3))
            return concat([expression] * times, axis), np.concatenate([value] * times, axis)
        case "mixed":
            axis = draw(st.integers(0, value.ndim - 1))
            middle = draw(st.integers(0, value.shape[axis]))
            halves = [expression.narrow(axis, middle, value.shape[axis]), expression.narrow(axis, 0, middle)]
            first, second = np.split(value, [middle], axis)
            return concat(halves, axis), np.concatenate([second, first], axis)
        case "scale":
            axis = draw(st.integers(0, value.ndim - 1))
            scales = np.arange(1, value.shape[axis] + 1).astype(value.dtype)
            scaled = value.copy()
            along = np.moveaxis(scaled, axis, 0)
            for position, scale in enumerate(scales):
                along[position] *= scale
            return expression.scale(Constant(scales), axis), scaled
        case "wrap":
            match draw(st.integers(0, 5)):
                case 0:
                    return Constant(value), value
                case 1 | 2 | 3:
                    return Watched(expression), value
            return Computed(lambda x: x + x, (expression,), value.shape, value.dtype), value + value
        case _:
            format, solver = draw(formats()), GENERAL[draw(st.sampled_from(sorted(GENERAL)))]
            quantization = Quantization(expression, format, solver)
            stream = draw(st.sampled_from(quantization.streams))
            return quantization.stream(stream), solver(np.ascontiguousarray(value), format).stored(stream)


@st.composite
def pairs(draw: st.DrawFn, pool: Pool) -> Pair:
    """An expression of up to six operations over a stored tensor, and its eager value."""
    name = draw(st.sampled_from(sorted(pool.stored)))
    expression: Expression = pool.stored[name]
    value = pool.values[name]
    for _ in range(draw(st.integers(0, 6))):
        expression, value = step(draw, expression, value)
    return expression, value


def test_a_reshape_asks_for_the_rows_that_it_needs(pool: Pool) -> None:
    asked: list[tuple[slice, ...]] = []

    class Noted(Watched):
        def box(self, box: tuple[slice, ...]) -> np.ndarray:
            asked.append(box)
            return super().box(box)

    noted = Noted(pool.stored["F32[3, 33]+0"])
    value = pool.values["F32[3, 33]+0"].reshape(9, 11)
    for start, stop, first, last in ((0, 3, 0, 1), (2, 4, 0, 2), (3, 6, 1, 2), (6, 9, 2, 3), (4, 5, 1, 2)):
        asked.clear()
        assert_same(noted.reshape(9, 11).rows(start, stop), value[start:stop])
        assert asked == [(slice(first, last), slice(0, 33))]


@settings(max_examples=400)
@given(data=st.data())
def test_an_expression_has_the_eager_values_whole_in_any_box_and_in_any_rows(pool: Pool, data: st.DataObject) -> None:
    expression, value = data.draw(pairs(pool))
    assert (expression.shape, expression.dtype) == (value.shape, value.dtype)
    assert_same(expression.read(), value)
    ranges = [sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in value.shape]
    box = tuple(slice(start, stop) for start, stop in ranges)
    assert_same(expression.box(box), value[box])
    start, stop = ranges[0] if ranges else (0, 0)
    assert_same(expression.rows(start, stop), value[start:stop] if value.ndim else value)


@settings(max_examples=100)
@given(data=st.data())
def test_an_initializer_has_the_eager_values(pool: Pool, data: st.DataObject) -> None:
    expression, value = data.draw(pairs(pool))
    flat = (*value.shape, 1)
    tensor = LazyTensor("w", expression, flat)
    assert (tensor.name, tensor.shape.numpy(), tensor.nbytes) == ("w", flat, value.nbytes)
    assert_same(tensor.numpy(), value.reshape(flat))
    assert tensor.tobytes() == value.tobytes()
    assert expression_of(tensor) is expression


def chain(stored: Stored) -> Expression:
    """Every kind of node but Computed and Constant."""
    rows = concat([stored.cast(np.float32).transpose().narrow(0, 0, 3), stored.cast(np.float32).transpose()])
    return Quantization(rows.reshape(6, 7), weight_format(4, 16), SOLVERS["rtn"]).stream(Stream.SCALES)


def test_equal_expressions_are_equal_and_hash_equal_and_others_are_not(pool: Pool) -> None:
    stored = pool.stored["F16[6, 4]+0"]
    first, second = chain(stored), chain(Stored(stored.tensor))
    assert first is not second
    assert (first, hash(first)) == (second, hash(second))
    others = [chain(pool.stored["F16[6, 4]+1"]), stored, stored.cast(np.float32), stored.transpose()]
    others += [stored.narrow(0, 0, 3), stored.narrow(1, 0, 3), stored.narrow(0, 1, 4), stored.reshape(4, 6)]
    others += [concat([stored, stored]), concat([stored, stored], 1), first]
    assert len(set(others)) == len(others)


def test_a_constant_and_a_function_equal_themselves_alone() -> None:
    values = np.zeros(3, np.float32)
    assert Constant(values) != Constant(values)
    same = Constant(values)
    assert {same: 1}[same] == 1
    computed = [Computed(lambda: values, (), (3,), values.dtype) for _ in range(2)]
    assert computed[0] != computed[1]


def test_an_operation_that_changes_nothing_adds_nothing(pool: Pool) -> None:
    stored = pool.stored["F32[6, 4]+0"]
    assert stored.cast(np.float32) is stored
    assert stored.transpose(0, 1) is stored
    assert stored.transpose().transpose() is stored
    assert stored.narrow(1, 0, 4) is stored
    assert stored.reshape(6, 4) is stored
    assert stored.reshape(3, 8).reshape(24).reshape(6, 4) == stored
    assert concat([stored]) is stored


def test_every_stored_tensor_is_found_once_for_each_place(pool: Pool) -> None:
    a, b = pool.stored["F32[6, 4]+0"], pool.stored["BF16[6, 4]+0"]
    folded = Computed(lambda x, y: x + y, (a, b.cast(np.float32)), (6, 4), np.dtype(np.float32))
    whole = concat([folded, a.transpose().transpose(), b.cast(np.float32).reshape(2, 12).reshape(6, 4)])
    parts = Quantization(whole, weight_format(8, 32), SOLVERS["rtn"]).stream(Stream.LEVELS)
    assert [tensor.name for tensor in parts.stored()] == [t.tensor.name for t in (a, b, a, b)]
    assert list(parts.parts()) == [whole]
    assert list(folded.parts()) == [a, b.cast(np.float32)]
    assert list(a.parts()) == list(Constant(np.zeros(1)).parts()) == []


def test_only_a_function_of_whole_tensors_is_read_at_once(pool: Pool) -> None:
    stored = pool.stored["F32[6, 4]+0"]
    folded = Computed(np.negative, (stored,), (6, 4), np.dtype(np.float32))
    assert not concat([stored, stored.narrow(0, 1, 2)]).whole
    assert folded.whole
    assert concat([stored, folded]).transpose().whole


BAD = {
    "a transpose that repeats an axis": lambda w: w.transpose(0, 0),
    "a transpose of another rank": lambda w: w.transpose(0),
    "a range that ends outside": lambda w: w.narrow(0, 0, 7),
    "a range before the start": lambda w: w.narrow(0, -1, 2),
    "a range that runs backwards": lambda w: w.narrow(0, 3, 2),
    "a range of a negative axis": lambda w: w.narrow(-1, 0, 2),
    "a range of an axis that is not there": lambda w: w.narrow(2, 0, 1),
    "a reshape to another size": lambda w: w.reshape(5, 5),
    "a reshape with a guess": lambda w: w.reshape(-1, 4),
    "a reshape to two negative sides": lambda w: w.reshape(-6, -4),
    "factors of another length": lambda w: w.scale(Constant(np.ones(5, np.float32)), 0),
    "factors of another rank": lambda w: w.scale(Constant(np.ones((6, 1), np.float32)), 0),
    "factors of another dtype": lambda w: w.scale(Constant(np.ones(6, np.float16)), 0),
    "factors for an axis that is not there": lambda w: w.scale(Constant(np.ones(6, np.float32)), 2),
    "a join of other columns": lambda w: concat([w, w.transpose()]),
    "a join of other dtypes": lambda w: concat([w, w.cast(np.float16)]),
    "a join of other ranks": lambda w: concat([w, w.reshape(24)]),
    "a join along a negative axis": lambda w: concat([w, w], -1),
    "a join along an axis that is not there": lambda w: concat([w, w], 2),
    "a join of nothing": lambda _: concat([]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_argument_is_refused_at_once(pool: Pool, case: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        BAD[case](pool.stored["F32[6, 4]+0"])


def test_every_bfloat16_widens_to_the_float32_with_the_same_upper_half(tmp_path: Path) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)  # NaN payloads, infinities, subnormals and both zeros too
    stored = save(tmp_path, {"w": patterns.view(ml_dtypes.bfloat16).reshape(256, 256)}, padding=1)["w"]
    expected = (patterns.astype(np.uint32) << 16).reshape(256, 256)
    wide = stored.cast(np.float32)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide.read().view(np.uint32), expected)
    turned = stored.transpose().cast(np.float32).narrow(1, 3, 200)
    np.testing.assert_array_equal(np.ascontiguousarray(turned.rows(5, 9)).view(np.uint32), expected.T[5:9, 3:200])
    numbers = ~np.isnan(expected.view(np.float32))
    eager = stored.read().astype(np.float32)
    np.testing.assert_array_equal(wide.read()[numbers].view(np.uint32), eager[numbers].view(np.uint32))


def test_a_scalar_reads_as_itself(tmp_path: Path) -> None:
    for position, dtype in enumerate(FLOATS):
        stored = save(tmp_path / str(position), {"w": np.array(-1.5, DTYPES[dtype])})["w"]
        wide = stored.cast(np.float32)
        assert wide.shape == ()
        assert (float(wide.read()), float(wide.rows(0, 1)), float(wide.box(full_box(())))) == (-1.5, -1.5, -1.5)
        assert LazyTensor("w", wide).tobytes() == struct.pack("<f", -1.5)
        assert wide.reshape(1, 1).read().tolist() == [[-1.5]]
