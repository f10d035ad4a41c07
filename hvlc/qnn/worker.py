"""Open sessions with Qualcomm's execution provider in a separate process, because it can end that process.

Run as a script, `worker.py REQUEST ANSWER` (both JSON files), by `hvlc.qnn.isolation`; it imports nothing of hvlc. It
catches nothing: the caller reads its standard error.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PROVIDER = "QNNExecutionProvider"  # the library refuses to be registered under another name


def main(arguments: list[str]) -> None:
    """Do what the first file asks for and answer in the second."""
    request_file, answer_file = (Path(argument).resolve() for argument in arguments)
    request = json.loads(request_file.read_text("utf-8"))
    if request["max_memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["max_memory"],) * 2)
    # The path that a model is opened by goes into the names of the compiled graphs, so it must be the same anywhere.
    os.chdir(request["directory"])
    answer_file.write_text(json.dumps(_answer(request)), "utf-8")


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    import onnxruntime as ort
    import onnxruntime_qnn

    ort.disable_telemetry_events()
    ort.set_default_logger_severity(3)
    ort.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]
    opened, kept = [], []
    for graph in request["graphs"]:
        started = time.perf_counter()
        session = _session(ort, devices, graph["model"], request["provider_options"], graph["session_options"])
        seconds = time.perf_counter() - started
        opened.append({"seconds": seconds, "nodes": _nodes(session), "partitions": _partitions(session)})
        kept.append(session)  # graphs that share weights must be open together
    for number, feeds in enumerate(request["feeds"]):
        _run(kept[0], Path(feeds), Path(request["results"]) / f"{number}.npz")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"version": onnxruntime_qnn.__version__, "graphs": opened, "peak_bytes": peak}


def _session(
    ort: Any, devices: list[Any], model: str, provider_options: Mapping[str, str], entries: Mapping[str, str]
) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in {**entries, "session.record_ep_graph_assignment_info": "1"}.items():
        options.add_session_config_entry(key, value)
    options.add_provider_for_devices(devices, dict(provider_options))
    return ort.InferenceSession(model, options)


def _nodes(session: Any) -> list[tuple[str, str, str]]:
    """Provider, name and type of every node that reached partitioning: what the session's list of providers hides."""
    return [
        (part.ep_name, node.name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def _partitions(session: Any) -> int:
    """Pieces that the provider has."""
    return sum(part.ep_name == _PROVIDER for part in session.get_provider_graph_assignment_info())


def _run(session: Any, feeds: Path, results: Path) -> None:
    import numpy as np

    with np.load(feeds, allow_pickle=False) as arrays:
        values = session.run(None, dict(arrays))
    names = [output.name for output in session.get_outputs()]
    np.savez(results, **{f"output.{name}": value for name, value in zip(names, values, strict=True)})


if __name__ == "__main__":
    main(sys.argv[1:])
