"""Rotations that spread outliers: randomized Hadamard transforms, applied to lazy weights.

A rotation is `R = diag(signs) @ H / sqrt(n)` with `H` of Hadamard type (QuaRot, arXiv 2404.00456; QuIP#, arXiv
2402.04396): Sylvester's doubling as often as the size can be halved, around a core of Paley's. Sizes for which that
gives no Hadamard matrix take a Hartley matrix of their odd part as the core, which is orthogonal in every size and has
entries that are at most sqrt(2) times as large.

Sums are made of elementwise float64 operations in an order that does not depend on the box that was asked for: a
BLAS product may round an element differently in another shape, this may not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import isqrt, sqrt

import numpy as np

from hvlc.weights.lazy import Box, Expression, Scaled

_STRIP = 1 << 18  # elements that are transformed at once: more leave the cache
_FLOAT32 = np.dtype(np.float32)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def _jacobsthal(prime: int) -> np.ndarray:
    """float64 `[q, q]`: the quadratic character of `row - column` (1, -1, and 0 on the diagonal)."""
    character = np.full(prime, -1.0)
    character[np.arange(prime) ** 2 % prime] = 1
    character[0] = 0
    index = np.arange(prime)
    return character[(index[:, None] - index) % prime]


def _bordered(inner: np.ndarray, corner: float) -> np.ndarray:
    """Jacobsthal's matrix with a row of ones above and a column of `corner` before."""
    return np.block([[np.zeros((1, 1)), np.ones((1, len(inner)))], [np.full((len(inner), 1), corner), inner]])


def hadamard_core(order: int) -> np.ndarray | None:
    """A matrix of ones and minus ones with orthogonal rows that is not a smaller one doubled, where Paley has one.

    Paley (J. Math. Phys. 12, 1933): order `q + 1` for primes `q = 3 mod 4`, order `2 (q + 1)` for primes `q = 1 mod 4`.

    Returns:
        float64 `[order, order]`, or None.
    """
    if order == 1:
        return np.ones((1, 1))
    if order % 4 == 0 and _is_prime(order - 1):
        return np.eye(order) + _bordered(_jacobsthal(order - 1), -1)
    half = order // 2
    if order % 2 == 0 and half % 4 == 2 and _is_prime(half - 1):
        symmetric = _bordered(_jacobsthal(half - 1), 1)
        return np.kron(symmetric, np.array([[1, 1], [1, -1]])) + np.kron(np.eye(half), np.array([[1, -1], [-1, -1]]))
    return None


@cache
def _core(size: int) -> np.ndarray:
    """float64 `[m, m]`, rows orthogonal and of squared length m, where `size` is m times a power of two."""
    odd = size // (size & -size)
    order = odd
    while order <= size:
        core = hadamard_core(order)
        if core is not None:
            return core
        order *= 2
    angles = 2 * np.pi / odd * (np.outer(np.arange(odd), np.arange(odd)) % odd)
    hartley: np.ndarray = np.cos(angles) + np.sin(angles)
    return hartley


def _transform(values: np.ndarray, core: np.ndarray, start: int, stop: int, out: np.ndarray) -> None:
    """Positions `start` to `stop` of `H.T @ values`; halves that nobody asked for are not computed."""
    half = len(values) // 2
    if len(values) == len(core) or stop - start == len(values):
        _transform_whole(values, core[:, start:stop] if len(values) == len(core) else core, out)
        return
    middle = min(max(half - start, 0), stop - start)
    if middle:
        _transform(values[:half] + values[half:], core, start, min(stop, half), out[:middle])
    if stop > half:
        _transform(values[:half] - values[half:], core, max(start - half, 0), stop - half, out[middle:])


def _transform_whole(values: np.ndarray, core: np.ndarray, out: np.ndarray) -> None:
    """All positions, every step for all halves at once: the same sums in the same order."""
    columns, half = values.shape[1], len(values) // 2
    while half >= len(core):
        pairs = values.reshape(-1, 2, half, columns)
        values = np.empty_like(pairs)
        np.add(pairs[:, 0], pairs[:, 1], out=values[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=values[:, 1])
        half //= 2
    blocks, sums = values.reshape(-1, len(core), columns), out.reshape(-1, core.shape[1], columns)
    sums[:] = 0
    for position, row in enumerate(core):
        sums += row[:, None] * blocks[:, position, None]


@dataclass(frozen=True)
class Rotation:
    """A random orthogonal matrix, the same for the same seed.

    Attributes:
        size: of the vectors that it rotates; at least 1.
        seed: of its signs.
    """

    size: int
    seed: int = 0

    @property
    def signs(self) -> np.ndarray:
        """float64 `[size]`, ones and minus ones."""
        return np.random.default_rng((self.seed, self.size)).choice([-1.0, 1.0], self.size)

    def apply(self, columns: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Positions `start` to `stop` of `R.T @ columns`, a column's result the same whatever columns come with it.

        Args:
            columns: `[size, n]`.
            start: first position of the result.
            stop: behind the last one.

        Returns:
            float64 `[stop - start, n]`.
        """
        out = np.empty((stop - start, columns.shape[1]))
        signed = np.multiply(columns, self.signs[:, None], order="C")
        _transform(signed, _core(self.size), start, stop, out)
        out *= 1 / sqrt(self.size)
        return out

    def matrix(self) -> Expression:
        """float32 `[size, size]`: R, for products with row vectors, `x @ R`."""
        return Rotated(Identity(self.size), self, 1)

    def inverse(self) -> Expression:
        """float32 `[size, size]`: R transposed."""
        return Rotated(Identity(self.size), self, 0)


@dataclass(frozen=True)
class Identity(Expression):
    """The identity matrix, float32."""

    size: int
    dtype = _FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Square."""
        return self.size, self.size

    def box(self, box: Box) -> np.ndarray:
        """Ones where row and column meet."""
        rows, columns = (np.arange(s.start, s.stop) for s in box)
        return (rows[:, None] == columns).astype(self.dtype)


@dataclass(frozen=True)
class Rotated(Expression):
    """A vector or matrix, rotated along an axis: `out[j] = sum(of[i] * R[i, j])` for each block of the rotation's size.

    That is what a reader of rotated vectors needs along its input features, and a writer along its output features. A
    box that is narrow along the axis costs up to as much as all positions of its blocks; memory is bounded all the
    same.

    Attributes:
        of: float32, rank 1 or 2.
        rotation: its size divides the axis.
        axis: 0 or 1.
    """

    of: Expression
    rotation: Rotation
    axis: int
    dtype = _FLOAT32

    def __post_init__(self) -> None:
        shape, size = self.of.shape, self.rotation.size
        if self.of.dtype != _FLOAT32 or not 0 <= self.axis < len(shape) <= 2 or shape[self.axis] % size:
            raise ValueError(f"a rotation of {size} does not fit axis {self.axis} of {shape} {self.of.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the source."""
        return self.of.shape

    def parts(self) -> Iterator[Expression]:
        """The source."""
        yield self.of

    def box(self, box: Box) -> np.ndarray:
        """Rotated values; the source is read block by block, some positions of the other axis at a time."""
        out = np.empty([max(s.stop - s.start, 0) for s in box], self.dtype)
        target = np.moveaxis(out.reshape(-1, 1) if len(box) == 1 else out, self.axis, 0)
        along, size = box[self.axis], self.rotation.size
        for block in range(along.start // size, -(-along.stop // size)) if out.size else ():
            start, stop = max(along.start - block * size, 0), min(along.stop - block * size, size)
            place = block * size + start - along.start
            for first, strip in self._strips(box, slice(block * size, (block + 1) * size)):
                rotated = self.rotation.apply(strip, start, stop)
                target[place : place + stop - start, first : first + strip.shape[1]] = rotated
        return out

    def _strips(self, box: Box, block: slice) -> Iterator[tuple[int, np.ndarray]]:
        """One block of the source as columns, some at a time, and where they begin inside the box."""
        if len(box) == 1:
            yield 0, self.of.box((block,))[:, None]
            return
        other = box[1 - self.axis]
        step = max(1, _STRIP // self.rotation.size)
        for start in range(other.start, other.stop, step):
            strip = slice(start, min(start + step, other.stop))
            values = self.of.box((block, strip) if self.axis == 0 else (strip, block))
            yield start - other.start, values if self.axis == 0 else values.T


def is_rotated(expression: Expression, rotation: Rotation, axis: int) -> bool:
    """Whether values were rotated so already, whatever was scaled or rotated after."""
    while isinstance(expression, Rotated | Scaled):
        if isinstance(expression, Rotated) and (expression.rotation, expression.axis) == (rotation, axis):
            return True
        expression = expression.of
    return False
