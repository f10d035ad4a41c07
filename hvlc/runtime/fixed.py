"""Graphs of fixed shapes over sequences of any length: window by window, the last one padded, with a static KV cache.

What runs a window is asked how long it is and what its cache holds, so a graph may be cut, compiled, or keep its cache
in integers. Padding stands after what it pads, where attention does not look.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

from hvlc.errors import UserError
from hvlc.graphs.builder import LAST_INDEX, LAST_ROW, MOST_TOKENS
from hvlc.graphs.placement import Phase
from hvlc.graphs.states import PAST, PRESENT
from hvlc.manifest.manifest import ComponentEntry, Manifest
from hvlc.opening.sessions import PackageSession
from hvlc.runtime.providers import open_component, register_providers

#: numpy's types of what onnxruntime's sessions take.
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
LOGITS = "logits"


@dataclass
class Cache:
    """Keys and values of a sequence that runs piece by piece.

    Attributes:
        context: positions that there is room for.
        used: positions that ran.
        past: keys and values, by the name of the input that takes them.
        whole: other inputs, the same for every window.
        rows: other inputs `[n, ...]`, of which each window takes those of its positions.
    """

    context: int
    used: int = 0
    past: dict[str, np.ndarray] = field(default_factory=dict)
    whole: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)


def stream_of(session: PackageSession) -> ort.NodeArg:
    """The input that takes the sequence: neither a cache nor a length."""
    return next(v for v in session.get_inputs() if not v.name.startswith((PAST, LAST_INDEX, MOST_TOKENS)))


def picks_row(session: PackageSession) -> bool:
    """Whether a graph gives one row of a window, and is told which (`hvlc.passes.static.gather_last_token`)."""
    return any(value.name == LAST_ROW for value in session.get_inputs())


def run_windows(session: PackageSession, values: np.ndarray, cache: Cache) -> np.ndarray:
    """A graph over what follows the positions that its cache has seen.

    Args:
        session: of a graph of fixed shapes `[1, window, ...]`. One that gives a single row has no cache, and is run
            once for each row; rows are at the end of its window, so that a graph which takes the first is found out.
        values: `[n, ...]`, floats or integers as the graph takes, of any width.
        cache: filled on the way.

    Returns:
        `[n, ...]` in the dtype of the graph's first output.

    Raises:
        UserError: the cache has no room for a window.
        ValueError: floats where the graph takes integers, or the reverse.
    """
    stream = stream_of(session)
    dtype, size = np.dtype(DTYPES[stream.type]), int(stream.shape[1])
    if (dtype.kind == "f") != (values.dtype.kind == "f"):
        raise ValueError(f"{stream.name} takes {dtype}, not {values.dtype}")
    made = []
    for start in range(0, len(values), size):
        rows = values[start : start + size]
        window = np.zeros((1, size, *values.shape[1:]), dtype)
        if picks_row(session):
            first = size - len(rows)
            window[0, first:] = rows
            made += [_run_window(session, stream.name, window, cache, row) for row in range(first, size)]
        else:
            window[0, : len(rows)] = rows
            made.append(_run_window(session, stream.name, window, cache)[: len(rows)])
        cache.used += len(rows)
    return np.concatenate(made)


def _run_window(session: PackageSession, stream: str, window: np.ndarray, cache: Cache, row: int = 0) -> np.ndarray:
    total = cache.used + window.shape[1]
    if total > cache.context:
        cause = f"{total} positions, padding included, exceed the context of {cache.context}"
        raise UserError("request.too_long", cause, "shorten the text")
    given = {
        stream: window,
        LAST_INDEX: np.array([[total - 1]], np.int32),
        MOST_TOKENS: np.array([cache.context], np.int32),
        LAST_ROW: np.array([row], np.int32),
        **cache.whole,
        **{name: _window_of(rows, cache.used, window.shape[1]) for name, rows in cache.rows.items()},
    }
    feeds = {v.name: given[v.name] if v.name in given else _past(v, cache) for v in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    made: np.ndarray | None = None
    for name, value in zip(names, session.run(names, feeds), strict=True):
        if name.startswith(PRESENT):
            cache.past[PAST + name.removeprefix(PRESENT)] = value
        elif made is None:
            made = value[0]
    if made is None:
        raise ValueError(f"the graph of {stream} gives nothing but its cache")
    return made


def _window_of(rows: np.ndarray, start: int, size: int) -> np.ndarray:
    """`[1, size, ...]` of rows `[n, ...]`, zeros behind the last."""
    found = rows[start : start + size]
    return np.pad(found, ((0, size - len(found)), *[(0, 0)] * (rows.ndim - 1)))[None]


def _past(wanted: ort.NodeArg, cache: Cache) -> np.ndarray:
    """Content of a cache; where nothing was written yet, its values are not looked at."""
    found = cache.past.get(wanted.name)
    return np.zeros(wanted.shape, DTYPES[wanted.type]) if found is None else found


class StagedDecoder:
    """A decoder in stages at every position of a sequence: one stage after another, each over all windows.

    Args:
        directory: the package.
        manifest: of it.
        threads: of sessions; 0 lets onnxruntime choose.

    Raises:
        UserError: it has compiled graphs, and their provider is not installed.
    """

    def __init__(self, directory: Path, manifest: Manifest, threads: int = 0) -> None:
        register_providers(manifest)
        self._directory, self._threads = directory, threads
        self._context = int(manifest.context_length or 0)  # every package with a decoder has one
        entries = manifest.components.items()
        self._embedding = manifest.components["embedding"]
        self._prompt = [(name, entry) for name, entry in entries if entry.phase is Phase.PROMPT]
        self._token = {name: entry for name, entry in entries if entry.phase is Phase.TOKEN}
        self._sessions: dict[str, PackageSession] = {}

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """float32 `[n, vocabulary]`: what the decoder says after each token of int64 `[n]`."""
        session = self._session("embedding", self._embedding)
        (taken,) = session.get_inputs()
        values: np.ndarray = session.run(None, {taken.name: ids[None].astype(DTYPES[taken.type])})[0][0]
        for name, entry in self._prompt:
            session = self._session(name, entry)
            if picks_row(session):  # a window for each position is more than a token for each
                other = f"{name.removesuffix(Phase.PROMPT)}{Phase.TOKEN}"
                session = self._session(other, self._token[other])
            values = run_windows(session, values, Cache(self._context))
        return values

    def _session(self, name: str, entry: ComponentEntry) -> PackageSession:
        if name not in self._sessions:
            self._sessions[name] = open_component(self._directory, entry, self._threads)
        return self._sessions[name]
