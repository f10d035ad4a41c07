"""What was observed of a component is kept whole, and read back as it was seen."""

from pathlib import Path

import numpy as np
import pytest

from hvlc.calibration.observation import Observation, Observers
from hvlc.calibration.state import State, key_path
from hvlc.errors import UserError
from hvlc.graphs.plan import RangeMethod

WANTED = Observation("model", ("a", "b"), RangeMethod.MINMAX, {"key": (2, 4), "value": (2, 4)}, frozenset({"key"}))


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State.open(tmp_path / "state", {})


def shown(*, names: tuple[str, ...] = WANTED.names) -> tuple[Observers, dict[str, list[np.ndarray]]]:
    """Observers that have seen three samples, and the samples."""
    random, observers = np.random.default_rng(0), Observers(WANTED)
    samples: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for _ in range(3):
        for name, values in samples.items():
            values.append(random.normal(size=(1, 2, 5, 4) if name in WANTED.cache else (1, 5, 7)).astype(np.float32))
            observers.observe(name, values[-1])
    return observers, samples


def test_what_was_seen_is_read_back(state: State) -> None:
    observers, samples = shown()
    assert not WANTED.is_known(state.directory)
    observers.put(state)
    assert WANTED.is_known(state.directory)
    for name, ends in WANTED.ranges(state.directory).items():
        assert (ends.shape, ends.dtype) == ((2,), np.float32)
        assert ends.read().tolist() == [min(v.min() for v in samples[name]), max(v.max() for v in samples[name])]
    magnitudes = WANTED.magnitudes(state.directory)
    for head in range(2):
        for i in range(4):
            value = max(abs(x) for sample in samples["value"] for x in sample[0, head, :, i])
            pairs = [pair for sample in samples["key"] for pair in sample[0, head][:, [i % 2, i % 2 + 2]]]
            assert magnitudes["value"].read()[head, i] == value
            assert magnitudes["key"].read()[head, i] == pytest.approx(max(map(np.linalg.norm, pairs)), rel=1e-6)


def test_expressions_are_made_before_anything_is_known(state: State) -> None:
    before = WANTED.ranges(state.directory)["b"]
    observers, samples = shown()
    observers.put(state)
    assert before == WANTED.ranges(state.directory)["b"]
    assert before != WANTED.ranges(state.directory)["a"]
    assert before.read()[1] == max(v.max() for v in samples["b"])


@pytest.mark.parametrize("damage", ["missing", "cut", "of other values"])
def test_a_damaged_record_counts_as_none(state: State, damage: str) -> None:
    observers, _ = shown()
    observers.put(state)
    path = key_path(state.directory, WANTED.key)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    other = Observation("model", ("a", "b", "c") if damage == "of other values" else ("a", "b"), cache=WANTED.cache)
    assert not other.is_known(state.directory)


def test_a_value_that_no_sample_has_is_named(state: State) -> None:
    observers, _ = shown(names=("a", "key"))
    with pytest.raises(UserError, match=r"calibration\.unseen.*value of b, value"):
        observers.put(state)
    assert not WANTED.is_known(state.directory)


@pytest.mark.parametrize("name", ["a", "value"])
def test_no_number_is_refused_where_it_is_seen(name: str) -> None:
    with pytest.raises(UserError, match=rf"calibration\.not_finite.*{name}"):
        Observers(WANTED).observe(name, np.full((1, 2, 3, 4), np.nan, np.float32))
