"""Data files: the layout is settled first, and the bytes are the eager ones whatever evaluates them."""

import hashlib
import json
import os
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hvlc.errors import HvlcError, UserError
from hvlc.package import streaming
from hvlc.package.streaming import Layout, QuantizedUnit, check_finite, unit_of, write_data
from hvlc.solvers import SOLVERS
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.formats import Levels, Stream, WeightFormat, weight_format
from hvlc.weights.lazy import Computed, Constant, Expression, Stored, concat
from hvlc.weights.quantized import Quantization, Solver
from hvlc.workflows.build.memory import MemoryWatch, current_memory

SYMMETRIC, ASYMMETRIC, BYTES = weight_format(4, 32), weight_format(4, 16, symmetric=False), weight_format(8, 32)
MB = 10**6


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Expression]:
    """float32 expressions over a checkpoint; `large` fills more than a page-aligned section needs."""
    random = np.random.default_rng(0)
    shapes = {"a": (33, 50), "b": (20, 50), "head": (64, 48), "norm": (300,), "large": (600, 500), "scalar": ()}
    tensors = {name: np.asarray(random.normal(0, 1, shape), np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "any"}')
    found = Checkpoint.open(tmp_path).tensors
    return {name: Stored(tensor) for name, tensor in found.items()}


def quantized(weight: Expression, format: WeightFormat = SYMMETRIC) -> list[Expression]:
    quantization = Quantization(weight, format, SOLVERS["rtn"])
    return [quantization.stream(stream) for stream in quantization.streams]


def stacked(weights: list[Expression], format: WeightFormat) -> list[Expression]:
    """The streams of several matrices, each joined along the rows and seen in one dimension."""
    joined = [concat(parts) for parts in zip(*(quantized(w, format) for w in weights), strict=True)]
    return [whole.reshape(int(np.prod(whole.shape))) for whole in joined]


def everything(stored: dict[str, Expression]) -> list[Expression]:
    """One of each kind, in the order of a graph; some twice."""
    found = [stored["norm"], stored["large"].transpose(), *stacked([stored["a"], stored["b"]], ASYMMETRIC)]
    found += [*quantized(stored["head"]), *quantized(stored["large"], BYTES), stored["scalar"], stored["norm"]]
    found += [Constant(np.arange(100, dtype=np.int64)), stored["a"].cast(np.float16).reshape(50, 33)]
    found.append(Computed(np.multiply, (stored["a"], stored["a"]), (33, 50), np.dtype(np.float32)))
    return [*found, *(part.reshape(int(np.prod(part.shape))) for part in quantized(stored["head"]))]


def laid_out(expressions: list[Expression]) -> tuple[Layout, list[tuple[int, int]]]:
    layout = Layout()
    return layout, [layout.add(expression) for expression in expressions]


def written(path: Path, layout: Layout, threads: int = 2) -> bytes:
    digest = write_data(path, layout, threads, lambda done: None)
    content = path.read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    return content


def test_every_place_is_aligned_and_overlaps_no_other(stored: dict[str, Expression]) -> None:
    layout, places = laid_out(everything(stored))
    ranges = sorted(set(places))
    assert all(offset % (4096 if length >= 1 << 20 else 64) == 0 for offset, length in ranges)
    assert any(length >= 1 << 20 for _, length in ranges)
    assert all(offset + length <= following for (offset, length), (following, _) in pairwise(ranges))
    assert sum(ranges[-1]) == layout.total


def test_the_file_holds_the_eager_bytes_in_their_places_and_zeros_between(
    stored: dict[str, Expression], tmp_path: Path
) -> None:
    expressions = everything(stored)
    layout, places = laid_out(expressions)
    content = bytearray(written(tmp_path / "data", layout))
    assert len(content) == layout.total
    for expression, (offset, length) in zip(expressions, places, strict=True):
        assert content[offset : offset + length] == np.ascontiguousarray(expression.read()).tobytes()
    for offset, length in places:
        content[offset : offset + length] = bytes(length)
    assert not any(content)


def test_equal_values_are_stored_once(stored: dict[str, Expression]) -> None:
    expressions = everything(stored)
    _, places = laid_out(expressions)
    by_value: dict[Expression, set[tuple[int, int]]] = {}
    for expression, place in zip(expressions, places, strict=True):
        by_value.setdefault(expression, set()).add(place)
    assert all(len(found) == 1 for found in by_value.values())
    assert places[0] == places[expressions.index(stored["norm"], 1)]
    assert places[-2:] == places[5:7]  # a look-up's flat view of the head's levels and scales
    assert len(set(places)) == len(expressions) - 3


def test_stacked_matrices_are_one_unit_of_levels_then_scales_then_zero_points(
    stored: dict[str, Expression], tmp_path: Path
) -> None:
    parts = stacked([stored["a"], stored["b"], stored["a"]], ASYMMETRIC)
    layout, places = laid_out([parts[1], parts[2], parts[0]])  # whichever is asked for first
    assert len(layout.units) == 1
    (unit,) = layout.units.values()
    assert isinstance(unit, QuantizedUnit)
    scales, zeros, levels = places
    assert levels < scales < zeros
    content = written(tmp_path / "data", layout)
    weights = [stored["a"].read(), stored["b"].read(), stored["a"].read()]
    solved = [SOLVERS["rtn"](np.ascontiguousarray(w), ASYMMETRIC) for w in weights]
    for (offset, length), arrays in (
        (levels, [s.stored(Stream.LEVELS) for s in solved]),
        (scales, [s.stored(Stream.SCALES) for s in solved]),
        (zeros, [s.stored(Stream.ZERO_POINTS) for s in solved]),
    ):
        assert content[offset : offset + length] == np.concatenate(arrays).tobytes()


def test_matrices_of_two_formats_do_not_share_a_unit(stored: dict[str, Expression], tmp_path: Path) -> None:
    formats = (weight_format(4, 32), weight_format(4, 32, symmetric=False))
    levels = [Quantization(stored["a"], f, SOLVERS["rtn"]).stream(Stream.LEVELS) for f in formats]
    joined = concat(levels)
    assert not isinstance(unit_of(joined)[0], QuantizedUnit)
    layout, [(offset, length)] = laid_out([joined])
    expected = np.concatenate([part.read() for part in levels]).tobytes()
    assert written(tmp_path / "data", layout)[offset : offset + length] == expected


@pytest.mark.parametrize("chunk", [1, 700, 1 << 13, 1 << 30])
def test_the_bytes_depend_on_neither_threads_nor_chunks(
    stored: dict[str, Expression], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    small = [expression for expression in everything(stored) if np.prod(expression.shape) < 20_000]
    expected = written(tmp_path / "whole", laid_out(small)[0], 1)
    monkeypatch.setattr(streaming, "CHUNK", chunk)
    for threads in (1, 2, 3):
        assert written(tmp_path / str(threads), laid_out(small)[0], threads) == expected


@settings(max_examples=25)
@given(count=st.integers(0, 30), threads=st.integers(1, 4), ahead=st.integers(1, 6), slow=st.integers(0, 30))
def test_results_come_in_order_and_no_job_starts_far_ahead(count: int, threads: int, ahead: int, slow: int) -> None:
    consumed, started = 0, []

    def job(number: int) -> list[np.ndarray]:
        started.append((number, consumed))
        time.sleep(0.002 if number == slow else 0)
        return [np.array(number)]

    with ThreadPoolExecutor(threads) as pool:
        order = []
        for (value,) in streaming._in_order(pool, (partial(job, i) for i in range(count)), ahead):
            order.append(int(value))
            consumed += 1
    assert order == list(range(count))
    assert sorted(number for number, _ in started) == order
    assert all(number < done + ahead for number, done in started)


def test_no_more_results_are_held_than_a_few_for_each_thread(
    stored: dict[str, Expression], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "CHUNK", 500)
    layout, _ = laid_out([stored["large"]])
    finished, ahead, lock = 0, [], threading.Lock()

    class Counted(streaming._Output):
        def write(self, data: bytes | np.ndarray) -> None:
            time.sleep(0.001)  # the disk is the slow part
            ahead.append(finished - self.position // 2000)
            super().write(data)

    def counted(values: np.ndarray, source: Expression) -> np.ndarray:
        nonlocal finished
        with lock:
            finished += 1
        return check_finite(values, source)

    monkeypatch.setattr(streaming, "_Output", Counted)
    monkeypatch.setattr(streaming, "check_finite", counted)
    written(tmp_path / "data", layout, threads=2)
    assert finished == 600
    assert max(ahead) == 2 * streaming.AHEAD


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_float_type_is_looked_at(dtype: Any, value: float) -> None:
    sound = np.ones((3, 2), dtype)
    assert check_finite(sound, Constant(sound)) is sound
    ill = sound.copy()
    ill[1, 1] = value
    with pytest.raises(UserError, match="not_finite"):
        check_finite(ill, Constant(ill))


@pytest.mark.parametrize("kind", ["plain", "quantized", "stacked", "computed"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named_and_stops_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, value: float
) -> None:
    monkeypatch.setattr(streaming, "CHUNK", 320)
    healthy, ill = np.ones((400, 32), np.float32), np.ones((400, 32), np.float32)
    ill[200, 7] = value
    save_file({"healthy": healthy, "ill": ill}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "any"}')
    tensors = Checkpoint.open(tmp_path).tensors
    good, bad = Stored(tensors["healthy"]), Stored(tensors["ill"])
    parts: dict[str, list[Expression]] = {
        "plain": [bad],
        "quantized": quantized(bad),
        "stacked": stacked([good, bad], ASYMMETRIC),
        "computed": [Computed(np.negative, (bad,), bad.shape, bad.dtype)],
    }
    layout, _ = laid_out([good, *parts[kind], *quantized(good)])
    before, progress = threading.active_count(), []
    with pytest.raises(UserError) as error:
        write_data(tmp_path / "data", layout, 3, progress.append)
    assert (error.value.code, error.value.exit_code) == ("checkpoint.not_finite", 2)
    assert error.value.cause.startswith("ill holds")
    assert threading.active_count() == before
    assert (tmp_path / "data").stat().st_size == max(progress) < layout.total


def test_what_the_progress_raises_stops_everything(stored: dict[str, Expression], tmp_path: Path) -> None:
    def stop(done: int) -> None:
        raise UserError("memory.exceeded", "too much", "allow more")

    before = threading.active_count()
    with pytest.raises(UserError, match="too much"):
        write_data(tmp_path / "data", laid_out(everything(stored))[0], 2, stop)
    assert threading.active_count() == before


def test_a_solver_that_gives_too_little_is_caught_before_graphs_name_the_wrong_bytes(
    stored: dict[str, Expression], tmp_path: Path
) -> None:
    def short(weight: np.ndarray, format: WeightFormat) -> Levels:
        return SOLVERS["rtn"](weight[:-1], format)

    part = Quantization(stored["head"], SYMMETRIC, Solver("short", short, 0)).stream(Stream.LEVELS)
    with pytest.raises(HvlcError, match=r"package\.layout"):
        write_data(tmp_path / "data", laid_out([part])[0], 1, lambda done: None)


def test_progress_rises_to_the_size_of_the_file(stored: dict[str, Expression], tmp_path: Path) -> None:
    layout, _ = laid_out(everything(stored))
    progress: list[int] = []
    write_data(tmp_path / "data", layout, 2, progress.append)
    assert all(before <= after for before, after in pairwise(progress))
    assert len(set(progress)) > len(layout.units)
    assert progress[-1] == layout.total


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_all_of_them(
    stored: dict[str, Expression], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [expression for expression in everything(stored) if np.prod(expression.shape) < 20_000]
    expected = written(tmp_path / "whole", laid_out(small)[0])
    opened = Path.open

    class Short:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, view: memoryview) -> int:
            return int(self._file.write(view[:1000]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    def short(path: Path, mode: str = "r", **options: Any) -> Any:
        file = opened(path, mode, **options)
        return Short(file) if mode == "wb" else file

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", short)
        digest = write_data(tmp_path / "short", laid_out(small)[0], 2, lambda done: None)
    assert (tmp_path / "short").read_bytes() == expected
    assert digest == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_write_back_that_fails_is_not_lost(
    stored: dict[str, Expression], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    calls: list[int] = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(streaming, "_FLUSHED", 1)
    monkeypatch.setattr(streaming, "CHUNK", 500)

    def waiting(done: int) -> None:
        time.sleep(0.001)  # so that every write finds the write-back before it done

    with pytest.raises(OSError, match="Input/output error"):
        write_data(tmp_path / "data", laid_out([stored["large"]])[0], 1, waiting)
    assert len(calls) >= failing


@pytest.fixture
def sparse(tmp_path: Path) -> Iterator[dict[str, Expression]]:
    """A checkpoint of 400 MB that takes no room on the disk."""
    sizes = {"wide": (8000, 8000), "tall": (200_000, 180)}
    header, end = {}, 0
    for name, shape in sizes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (tmp_path / "config.json").write_text('{"model_type": "any"}')
    yield {name: Stored(tensor) for name, tensor in Checkpoint.open(tmp_path).tensors.items()}
    (tmp_path / "model.safetensors").unlink()


def test_memory_is_that_of_the_rows_in_flight(sparse: dict[str, Expression], tmp_path: Path) -> None:
    minmax = Solver("minmax", SOLVERS["minmax"].solve, 0)
    wide = Quantization(concat([sparse["wide"], sparse["wide"].narrow(0, 0, 4000)]), BYTES, minmax)
    tall = sparse["tall"].cast(np.float16)
    warm = Quantization(sparse["wide"].narrow(0, 0, 1), BYTES, minmax)
    warm.solve(warm.weight.rows(0, 1))  # compile the kernels first: their machine code is not the weights'
    layout, _ = laid_out([*(wide.stream(stream) for stream in wide.streams), tall])
    assert layout.total > 150 * MB
    with MemoryWatch() as watch:
        before = current_memory().unshared
        write_data(tmp_path / "data", layout, 2, lambda done: watch.sample())
    (tmp_path / "data").unlink()
    scales = 2 * 12000 * 250
    assert watch.peak.unshared - before < 50 * MB + 2 * scales


def test_the_watch_sees_what_is_allocated_and_refuses_what_is_too_much() -> None:
    with MemoryWatch() as watch:
        before = current_memory().unshared
        held = np.ones(100 * MB, np.uint8)
        time.sleep(0.1)  # it looks by itself
        seen = watch.peak.unshared - before
        watch.check()  # without a limit nothing is too much
        del held
    assert 95 * MB < seen < 150 * MB
    assert watch.peak.unshared - before >= 95 * MB  # a peak stays
    with MemoryWatch(current_memory().unshared + 50 * MB) as limited:
        limited.check()
        held = np.ones(300 * MB, np.uint8)  # far more: what the system takes back meanwhile counts the other way
        limited.sample()
        with pytest.raises(UserError) as error:
            limited.check()
        del held
    assert (error.value.code, error.value.exit_code) == ("memory.exceeded", 2)
    assert "MB of memory, --max-memory allows" in error.value.cause
