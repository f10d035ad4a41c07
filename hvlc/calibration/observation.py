"""Observe a component's values: ranges of static activations, and magnitudes of an int8 KV cache.

Calibration passes values to observers during its walk, and stores their results beside the solved matrices. The package
reads them from there when it is written, so graphs are made, and costs estimated, before anything was observed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hvlc.calibration.ranges import CacheObserver, RangeObserver
from hvlc.calibration.state import Pending, State, key_path
from hvlc.errors import UserError
from hvlc.graphs.plan import RangeMethod
from hvlc.weights.lazy import Expression

_RANGES = "ranges"


@dataclass(frozen=True)
class Observation:
    """The values of a component that are observed.

    Attributes:
        component: its name.
        activations: names of the values whose ranges are wanted.
        method: which range is chosen.
        cache: `[kv_heads, head_size]` of present keys and values, by name.
        rotated: names of those that are rotated keys.
    """

    component: str
    activations: tuple[str, ...] = ()
    method: RangeMethod = RangeMethod.MINMAX
    cache: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    rotated: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all values that are observed."""
        return (*self.activations, *self.cache)

    def ranges(self, directory: Path) -> dict[str, Expression]:
        """float32 `[2]` of every activation, its lower and upper end, from a state's directory once they are known."""
        ends = self._ends(directory)
        return {name: ends.narrow(0, i, i + 1).reshape(2) for i, name in enumerate(self.activations)}

    def magnitudes(self, directory: Path) -> dict[str, Pending]:
        """float32 `[kv_heads, head_size]` of all present keys and values, likewise."""
        path, dtype = key_path(directory, self.key), np.dtype(np.float32)
        return {name: Pending(path, name, shape, dtype) for name, shape in self.cache.items()}

    def is_known(self, directory: Path) -> bool:
        """Whether everything was observed; a damaged file counts as nothing."""
        arrays = [self._ends(directory), *self.magnitudes(directory).values()]
        return all(array.is_there() for array in arrays)

    def _ends(self, directory: Path) -> Pending:
        shape = (len(self.activations), 2)
        return Pending(key_path(directory, self.key), _RANGES, shape, np.dtype(np.float32))

    @property
    def key(self) -> str:
        """In a state; that of a matrix has its component before a dot."""
        return f"{self.component}/observed"


class Observers:
    """Observers of one component's values, sample by sample."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        self._ranges = RangeObserver(observation.method)
        self._cache = CacheObserver(observation.rotated)

    def observe(self, name: str, values: np.ndarray) -> None:
        """Take in a value of one sample, float of any shape.

        Raises:
            UserError: it holds NaN or infinity.
        """
        (self._cache if name in self._observation.cache else self._ranges).observe(name, values)

    def put(self, state: State) -> None:
        """Keep what was seen.

        Raises:
            UserError: a value was never there.
        """
        wanted, ranges, magnitudes = self._observation, self._ranges.ranges(), self._cache.magnitudes()
        unseen = [name for name in wanted.names if name not in ranges | magnitudes]
        if unseen:
            cause = f"{wanted.component}: no sample has a value of {', '.join(unseen)}"
            raise UserError("calibration.unseen", cause, "calibrate with other samples")
        ends = np.array([ranges[name] for name in wanted.activations], np.float32).reshape(-1, 2)
        state.put_arrays(wanted.key, {_RANGES: ends, **magnitudes})
