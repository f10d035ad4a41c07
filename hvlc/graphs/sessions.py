"""The one module that opens onnxruntime sessions in this process, with the options that they share.

`hvlc.qnn.worker` opens its own: Qualcomm's provider can end the process that it runs in.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as failures

CPU = ("CPUExecutionProvider",)
#: Least severity that onnxruntime writes to stderr: errors, or nothing but its end. What it refuses is raised too.
ERRORS, SILENT = 3, 4

#: Errors with which onnxruntime refuses a graph.
REFUSALS = (
    failures.DeviceReset,
    failures.EPFail,
    failures.EngineError,
    failures.Fail,
    failures.InvalidArgument,
    failures.InvalidGraph,
    failures.InvalidProtobuf,
    failures.ModelLoadCanceled,
    failures.ModelRequiresCompilation,
    failures.NoModel,
    failures.NoSuchFile,
    failures.NotFound,
    failures.NotImplemented,
    failures.RuntimeException,
)


def session_options(
    threads: int = 0, *, log: int = ERRORS, arena: bool = True, entries: Mapping[str, str] | None = None
) -> ort.SessionOptions:
    """Options of a session.

    Args:
        threads: that run one operator. 0: onnxruntime chooses.
        log: least severity of what is written to stderr.
        arena: whether memory that a run frees is held back for the next.
        entries: further options by onnxruntime's own names of them.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = log
    options.enable_cpu_mem_arena = arena
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    return options


def open_session(
    model: Path | bytes, options: ort.SessionOptions | None = None, providers: Sequence[Any] = CPU
) -> ort.InferenceSession:
    """A session on a graph.

    Args:
        model: path of the graph, or its bytes.
        options: of the session. None: those of `session_options`.
        providers: by priority; empty where the options name devices.

    Raises:
        REFUSALS: onnxruntime does not take the graph.
    """
    # Its fallback prints to stdout; what stands in for a provider is decided before.
    return ort.InferenceSession(
        model, options or session_options(), providers=list(providers) or None, enable_fallback=0
    )
