"""Run the compiler in separate processes and report how they ended."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvlc.errors import UserError

_SCRIPT = Path(__file__).with_name("worker.py")
_LINES = 3  # of what a process said last
#: Lines of Qualcomm's libraries on every start, and Python's own around an error.
_NOISE = re.compile(r"LIBNATIVE|sysfs|libcdsprpc|^Traceback|^ {2,}")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
#: Time and place of a line of onnxruntime's log, and the class of an error.
_LAYOUT = re.compile(r"^[\d :.-]+\[\w:onnxruntime:[^]]*\] |^onnxruntime\.[\w.]+: |\[ONNXRuntimeError\] : \d+ : \w+ : ")


@dataclass(frozen=True)
class Graph:
    """A session that a process opens.

    Attributes:
        model: name of the ONNX file within the request's directory.
        session_options: of onnxruntime.
    """

    model: str
    session_options: Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """Request to a process.

    Attributes:
        directory: of the models.
        graphs: sessions, opened one after another and kept open together.
        provider_options: of the execution provider, the same for all.
        feeds: .npz files of inputs for the first session.
        results: directory that takes `0.npz`, `1.npz` and so on, with arrays "output.NAME".
    """

    directory: Path
    graphs: Sequence[Graph]
    provider_options: Mapping[str, str]
    feeds: Sequence[Path] = ()
    results: Path | None = None


@dataclass(frozen=True)
class Node:
    """A node, and the execution provider that it was given to."""

    provider: str
    name: str
    op_type: str


@dataclass(frozen=True)
class OpenedSession:
    """A session that opened.

    Attributes:
        nodes: after onnxruntime's own rewrites.
        seconds: that it took.
        partitions: pieces of the graph that Qualcomm's provider has; None where the process did not say.
    """

    nodes: tuple[Node, ...]
    seconds: float
    partitions: int | None = None


@dataclass(frozen=True)
class Answer:
    """Result of a process that succeeded.

    Attributes:
        version: of onnxruntime-qnn.
        graphs: one for each of the request's.
        peak_bytes: most resident memory.
    """

    version: str
    graphs: tuple[OpenedSession, ...]
    peak_bytes: int


@dataclass(frozen=True)
class Failure:
    """Result of a process that failed.

    Attributes:
        how: "error" where it said what is wrong, "crash" after a signal, "timeout".
        last_words: the last lines that it wrote, or the signal's name.
    """

    how: str
    last_words: str


@dataclass(frozen=True)
class Isolation:
    """Script and limits of the processes that are started.

    Attributes:
        seconds: that one may take.
        max_memory: bytes of address space that one may take; None: no limit.
        script: what is run.
    """

    seconds: float = 3600
    max_memory: int | None = None
    script: Path = field(default=_SCRIPT)

    def run(self, request: Request, scratch: Path) -> Answer | Failure:
        """Run one process to its end.

        Args:
            request: what to do.
            scratch: an existing directory for messages.
        """
        # Absolute: the process runs in the scratch directory.
        asked, answer, said = (scratch.resolve() / name for name in ("request.json", "answer.json", "stderr.txt"))
        asked.write_text(json.dumps(self._message(request)), "utf-8")
        answer.unlink(missing_ok=True)
        with said.open("wb") as stderr:
            try:
                ended = subprocess.run(
                    # -P: a script's directory must not come before the libraries.
                    [sys.executable, "-P", str(self.script), str(asked), str(answer)],
                    cwd=scratch,
                    env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    timeout=self.seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return Failure("timeout", f"it did not end within {self.seconds:g} s")
        if ended.returncode < 0:
            name = signal.Signals(-ended.returncode).name
            return Failure("crash", f"{name}; {last_words(said)}".removesuffix("; "))
        if ended.returncode or not answer.is_file():
            return Failure("error", last_words(said) or f"it ended with code {ended.returncode} and no answer")
        return _parsed(json.loads(answer.read_text("utf-8")))

    def _message(self, request: Request) -> dict[str, Any]:
        return {
            "directory": str(request.directory.resolve()),
            "graphs": [{"model": g.model, "session_options": dict(g.session_options)} for g in request.graphs],
            "provider_options": dict(request.provider_options),
            "feeds": [str(path.resolve()) for path in request.feeds],
            "results": str(request.results.resolve()) if request.results else "",
            "max_memory": self.max_memory,
        }


def is_installed() -> bool:
    """Whether the compiler is there to be asked."""
    return importlib.util.find_spec("onnxruntime_qnn") is not None


def require_qnn() -> None:
    """Refuse work that needs Qualcomm's compiler where it is not installed.

    Raises:
        UserError: it is not.
    """
    if not is_installed():
        cause = "compiling for a Snapdragon needs onnxruntime-qnn, which is not installed"
        raise UserError("install.qnn", cause, "pip install 'hvlc[qnn]' on x86-64 Linux (mind its licence)")


def last_words(path: Path) -> str:
    """The last lines of a log that say something."""
    said = path.read_text("utf-8", "replace").splitlines()
    lines = [_LAYOUT.sub("", _COLOURS.sub("", line)).rstrip() for line in said]
    return "; ".join([*dict.fromkeys(line for line in lines if line and not _NOISE.search(line))][-_LINES:])


def _parsed(answer: Mapping[str, Any]) -> Answer:
    graphs = tuple(
        OpenedSession(tuple(Node(*node) for node in graph["nodes"]), graph["seconds"], graph.get("partitions"))
        for graph in answer["graphs"]
    )
    return Answer(answer["version"], graphs, answer["peak_bytes"])
