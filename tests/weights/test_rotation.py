"""Rotations are orthogonal, spread what they rotate, and give a value the same bits in whatever box it is asked for."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.weights.lazy import Constant
from hvlc.weights.rotation import Identity, Rotated, Rotation, hadamard_core, is_rotated
from tests.helpers.tolerances import ROTATION

#: Powers of two, Paley's first and second kind times powers of two, and sizes without a Hadamard matrix.
SIZES = (1, 2, 4, 12, 28, 36, 40, 64, 72, 3, 7, 6, 10, 52)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("order", range(1, 130))
def test_a_core_is_a_hadamard_matrix_by_definition(order: int) -> None:
    core = hadamard_core(order)
    if core is None:
        return
    assert set(np.unique(core)) <= {-1, 1}
    assert all(a @ b == (order if i == j else 0) for (i, a), (j, b) in product(enumerate(core), repeat=2))


def test_cores_are_those_of_paley() -> None:
    """Primes written down by hand: those 3 mod 4 give q + 1, those 1 mod 4 give 2 (q + 1)."""
    first = {q + 1 for q in (3, 7, 11, 19, 23, 31, 43, 47, 59, 67, 71, 79, 83)}
    second = {2 * (q + 1) for q in (5, 13, 17, 29, 37, 41)}
    assert {order for order in range(1, 90) if hadamard_core(order) is not None} == {1} | first | second


@pytest.mark.parametrize("size", SIZES)
def test_a_rotation_is_orthogonal_and_spreads_a_channel_over_all(size: int) -> None:
    matrix = Rotation(size).matrix().read().astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=ROTATION)
    flat = 1.0 if size & (size - 1) == 0 or size in (12, 28, 36, 40, 72) else np.sqrt(2)
    assert np.abs(matrix).max() <= flat * size**-0.5 + ROTATION
    np.testing.assert_array_equal(Rotation(size).inverse().read(), matrix.T.astype(np.float32))


def test_another_seed_is_another_rotation() -> None:
    first, same, other = (Rotation(12, seed).matrix().read() for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [0, 1])
def test_rotated_values_are_products_with_the_matrix(size: int, axis: int) -> None:
    shape = (2 * size, 5) if axis == 0 else (5, 2 * size)
    values = normal(*shape)
    matrix = np.kron(np.eye(2), Rotation(size).matrix().read().astype(np.float64))
    expected = matrix.T @ values if axis == 0 else values @ matrix
    found = Rotated(Constant(values), Rotation(size), axis).read()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=ROTATION * np.abs(expected).max() * size**0.5)
    vector = Rotated(Constant(values.take(0, 1 - axis)), Rotation(size), 0).read()
    np.testing.assert_array_equal(vector, found.take(0, 1 - axis))


@given(data=st.data())
def test_a_box_has_the_bits_of_the_whole(data: st.DataObject) -> None:
    size, axis = data.draw(st.sampled_from(SIZES)), data.draw(st.integers(0, 1))
    shape = [data.draw(st.integers(0, 6))] * 2
    shape[axis] = size * data.draw(st.integers(1, 3))
    rotated = Rotated(Constant(normal(*shape)), Rotation(size), axis)
    whole = rotated.read()
    box = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in shape)
    np.testing.assert_array_equal(rotated.box(box), whole[box])


def test_a_box_has_the_bits_of_the_whole_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    for axis in (0, 1):
        whole = Rotated(Constant(normal(72, 72)), Rotation(36), axis).read()
        with monkeypatch.context() as patched:
            patched.setattr("hvlc.weights.rotation._STRIP", 36 * 7)
            np.testing.assert_array_equal(Rotated(Constant(normal(72, 72)), Rotation(36), axis).read(), whole)


@pytest.mark.parametrize(
    ("values", "axis"),
    [(normal(4, 6), 1), (normal(4, 6), 2), (normal(4, 4, 4), 0), (normal(4, 4).astype(np.float16), 0), (normal(4), -1)],
)
def test_what_does_not_fit_is_refused(values: np.ndarray, axis: int) -> None:
    with pytest.raises(ValueError, match="a rotation of 4 does not fit"):
        Rotated(Constant(values), Rotation(4), axis)


def test_equal_rotations_of_equal_values_are_equal() -> None:
    values = Constant(normal(4, 4))
    assert Rotated(values, Rotation(4), 0) == Rotated(values, Rotation(4), 0)
    assert len({Rotated(values, Rotation(4, seed), axis) for seed in (0, 1) for axis in (0, 1)}) == 4


def test_a_rotation_is_found_under_what_was_done_after() -> None:
    once = Rotated(Constant(normal(4, 4)), Rotation(4), 1)
    later = Rotated(once.scale(Constant(normal(4)), 0), Rotation(2), 0)
    assert is_rotated(later, Rotation(4), 1)
    assert not any(is_rotated(later, Rotation(4, seed), axis) for seed, axis in ((0, 0), (1, 1)))


def test_an_identity_is_one() -> None:
    np.testing.assert_array_equal(Identity(5).box((slice(1, 4), slice(0, 5))), np.eye(5, dtype=np.float32)[1:4])
