"""Sessions of onnxruntime on the graphs of a package: what it refuses is the package's fault, and is said so."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from hvlc.errors import UserError
from hvlc.graphs import sessions
from hvlc.manifest.manifest import FLOAT_PRODUCTS

#: Errors of onnxruntime: its own, and Python's where it is given other types than it takes.
_FAILURES = (*sessions.REFUSALS, RuntimeError, TypeError, ValueError)

_FIX = "build or copy the package again"


class SessionError(UserError):
    """A graph of a package cannot be opened, or cannot be run on what it is given."""


def lying(file: str, cause: str) -> SessionError:
    """The error of a graph that ran and gave what it does not state."""
    return SessionError("package.graph", f"{file}: {cause}", _FIX)


@contextmanager
def running(file: str) -> Iterator[None]:
    """A block that opens or runs a graph.

    Args:
        file: of the graph.

    Raises:
        SessionError: onnxruntime refused.
    """
    try:
        yield
    except MemoryError as error:
        raise SessionError("package.graph", f"{file}: it needs more memory than there is", _FIX) from error
    except _FAILURES as error:
        raise SessionError("package.graph", f"{file}: onnxruntime refuses it: {said(error)}", _FIX) from error


class PackageSession:
    """A session on a graph of a package.

    Args:
        file: of the graph, for messages.
        model: path of the graph, or its bytes.
        options: of the session.
        providers: by priority; empty where the options name devices.

    Raises:
        SessionError: onnxruntime refuses the graph.
    """

    def __init__(
        self, file: str, model: Path | bytes, options: ort.SessionOptions, providers: Sequence[Any] = ()
    ) -> None:
        self.file = file
        with running(file):
            self._session = found = sessions.open_session(model, options, providers)
            self._inputs, self._outputs = found.get_inputs(), found.get_outputs()

    def get_inputs(self) -> list[ort.NodeArg]:
        """Inputs of the graph, in order."""
        return self._inputs

    def get_outputs(self) -> list[ort.NodeArg]:
        """Outputs of the graph, in order."""
        return self._outputs

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the graph; its outputs have the ranks and sizes that it states.

        Args:
            names: of outputs; None asks for all.
            feeds: inputs by name.

        Raises:
            SessionError: onnxruntime refuses the inputs, or an output is not what the graph states.
        """
        with running(self.file):
            made: list[np.ndarray] = self._session.run(names, dict(feeds))
        stated = {value.name: value.shape for value in self._outputs}
        for name, value in zip(names or stated, made, strict=True):
            if not _fits(value, stated[name]):
                shape = list(np.shape(value))
                raise lying(self.file, f"it gives {name} as {shape}, not {stated[name]}")
        return made


def session_options(threads: int = 0) -> ort.SessionOptions:
    """Options of every session on a package's graph.

    Args:
        threads: of the session; 0 lets onnxruntime choose.
    """
    return sessions.session_options(threads, log=sessions.SILENT, entries=dict([FLOAT_PRODUCTS]))


def _fits(value: Any, stated: Sequence[Any] | None) -> bool:
    """Whether a result has the rank and the fixed sizes that its graph states."""
    if not stated:  # values inside a graph need not state a shape
        return True
    found = np.shape(value)
    return len(found) == len(stated) and all(
        not isinstance(size, int) or size == here for size, here in zip(stated, found, strict=True)
    )


def said(error: Exception) -> str:
    """The first line of an error, without onnxruntime's own prefix."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.rpartition("[ONNXRuntimeError] : ")[2][:300]
