"""Stages of packages with graphs of fixed shapes: windows of the prompt, then a token at a time; compiled graphs whole.

What a compiler has made of a graph cannot be cut, so a compiled graph is one stage, named after its component; its
value is that of the last of the stages that it covers.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hvlc.manifest.manifest import POSITION_TABLE, ComponentEntry
from hvlc.opening.sessions import PackageSession
from hvlc.results import trace_points
from hvlc.results.trace_points import Values
from hvlc.runtime.fixed import Cache, run_windows, stream_of
from hvlc.runtime.positions import position_table
from hvlc.runtime.providers import open_component
from hvlc.tracing.package_stages import EMBEDDINGS, SAME, Basis, Beside, Run, Stage, run_tiles
from hvlc.tracing.parts import Part, Precision


@dataclass(frozen=True)
class CompiledGraph:
    """A graph that was compiled, whole.

    Attributes:
        name: of the component.
        directory: the package.
        entry: of the component.
        covers: what is in it, e.g. "layers 0 to 3".
        precision: of what it was compiled from.
        threads: of the session; 0 lets onnxruntime choose.
    """

    name: str
    directory: Path
    entry: ComponentEntry
    covers: str
    precision: Precision
    threads: int

    @property
    def detail(self) -> str:
        """Note that it was run whole, and why."""
        chip = self.entry.compiled.chip if self.entry.compiled else "a chip"
        return f"{self.covers} at once: compiled for {chip}"

    @contextmanager
    def opened(self) -> Iterator[PackageSession]:
        """A session, for as long as it is needed."""
        yield open_component(self.directory, self.entry, self.threads)


#: Graphs that run one after another on what a stage is given: what rounds the value for a part, and the part.
Chain = Sequence[Part | CompiledGraph]


class _FixedStage(Stage):
    """A stage of a decoder of fixed shapes: one graph for windows of the prompt, another for a token."""

    steps = True

    def __init__(self, name: str, prompt: Chain, token: Chain, context: int, beside: Beside) -> None:
        self.name = name
        self._prompt, self._token, self._context, self._beside = prompt, token, context, beside
        made = prompt[-1]
        self._whole = made if isinstance(made, CompiledGraph) else None
        self.detail = self._whole.detail if self._whole else ""

    @property
    def label(self) -> str:
        """The component, where it is compiled: named after its graph for the prompt."""
        return self._whole.name if self._whole else self.name

    @property
    def precision(self) -> Precision:
        """Precision of the graph for the prompt."""
        return self._prompt[-1].precision

    @property
    def part(self) -> Part | None:
        """The part of the graph for the prompt; the other has the same weights."""
        made = self._prompt[-1]
        return made if isinstance(made, Part) else None

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Open both graphs."""
        with ExitStack() as stack:
            prompt, token = ([stack.enter_context(g.opened()) for g in chain] for chain in (self._prompt, self._token))
            yield partial(self._run, prompt, token)

    def _run(
        self,
        prompt: Sequence[PackageSession],
        token: Sequence[PackageSession],
        values: Values,
        *,
        stepwise: bool = False,
    ) -> dict[str, np.ndarray]:
        given, tokens = self._given(values), max(0, len(values[trace_points.SAMPLING]) - 1) if stepwise else 0
        at, caches = len(given) - tokens, [self._cache(session, values) for session in prompt]
        made = [_through(prompt, given[:at], caches), *([_through(token, given[at:], caches)] if tokens else [])]
        return {self.name: self._back(np.concatenate(made))}

    def _cache(self, session: PackageSession, values: Values) -> Cache:
        """An empty cache, and what the graph reads besides the stream."""
        wanted = {value.name for value in session.get_inputs()}
        whole = {}
        if POSITION_TABLE in wanted:
            whole[POSITION_TABLE] = position_table(self._beside.positions(values), self._context)
        stream = stream_of(session).name
        rows = {EMBEDDINGS: self._beside.embeddings(values)} if EMBEDDINGS in wanted - {stream} else {}
        return Cache(self._context, whole=whole, rows=rows)

    @abstractmethod
    def _given(self, values: Values) -> np.ndarray:
        """`[n, ...]`: what it is given, in the package's basis."""

    def _back(self, made: np.ndarray) -> np.ndarray:
        """Output of the stage in the checkpoint's basis."""
        return made


def _through(sessions: Sequence[PackageSession], values: np.ndarray, caches: Sequence[Cache]) -> np.ndarray:
    for session, cache in zip(sessions, caches, strict=True):
        values = run_windows(session, values, cache)
    return values


class FixedLayers(_FixedStage):
    """A layer, or all layers of a compiled part.

    Args:
        last: index of the last layer.
        source: name of the value that enters the first one.
        prompt: what runs a window of the prompt.
        token: what runs one token.
        basis: of the residual stream.
        context: positions of the cache.
        beside: what layers read besides the stream.
    """

    def __init__(
        self, last: int, source: str, prompt: Chain, token: Chain, basis: Basis, context: int, beside: Beside
    ) -> None:
        super().__init__(trace_points.decoder_layer(last), prompt, token, context, beside)
        self.before, self._basis = source, basis

    def _given(self, values: Values) -> np.ndarray:
        return self._basis.into(self.before, values[self.before])

    def _back(self, made: np.ndarray) -> np.ndarray:
        return self._basis.back(self.name, made)


class FixedHead(_FixedStage):
    """Last norm and logits.

    Args:
        source: name of the value that enters it.
        prompt: what runs a window of the prompt.
        token: what runs one token.
        basis: of the residual stream.
        context: positions of the cache, which it has none of.
        beside: what layers read besides the stream.
    """

    def __init__(self, source: str, prompt: Chain, token: Chain, basis: Basis, context: int, beside: Beside) -> None:
        super().__init__(trace_points.HEAD, prompt, token, context, beside)
        self._source, self._basis = source, basis

    def _given(self, values: Values) -> np.ndarray:
        return self._basis.into(self._source, values[self._source])[trace_points.head_start(values) :]


class HostMerge(Stage):
    """Visual tokens in the places of image placeholders, which is the host's work where a decoder runs in stages."""

    name = trace_points.MERGE
    detail = "repeated here as onnxruntime-genai does it"

    def __init__(self, image: int) -> None:
        self._image = image

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Nothing to open."""

        def run(values: Values, *, stepwise: bool = False) -> dict[str, np.ndarray]:
            merged = values[trace_points.EMBEDDING].copy()
            places = np.flatnonzero(trace_points.read_ids(values) == self._image)
            merged[places] = values[trace_points.STITCHING][: len(places)]
            return {self.name: merged}

        yield run


class CompiledEncoder(Stage):
    """A compiled vision encoder: from tiles to what its projector makes."""

    name = trace_points.PROJECTOR

    def __init__(self, whole: CompiledGraph, basis: Basis = SAME) -> None:
        self._whole, self._basis = whole, basis
        self.detail = whole.detail

    @property
    def label(self) -> str:
        """The component."""
        return self._whole.name

    @property
    def precision(self) -> Precision:
        """Precision of what it was compiled from."""
        return self._whole.precision

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Open the graph."""
        with self._whole.opened() as session:

            def run(values: Values, *, stepwise: bool = False) -> dict[str, np.ndarray]:
                return {self.name: self._basis.back(self.name, run_tiles(session, values[trace_points.PREPROCESSING]))}

            yield run
