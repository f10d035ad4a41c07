"""Asks Qualcomm's compiler about one model, in a process of its own, because it can end that process.

Run as a script, `compiler.py REQUEST ANSWER` (both JSON files), by `hvlc.lint.probe`; it imports nothing of hvlc.
onnxruntime shows the provider in a session's list even when it took no node, so only the recorded assignment of nodes
counts; and a node that passed validation can still fail to compile, so only a session that exists counts.
"""

import json
import sys
from pathlib import Path
from typing import Any

_PROVIDER = "QNNExecutionProvider"
_TRACE = "qnn_op_trace.json"  # the provider's own report of refused nodes and reasons


def main(arguments: list[str]) -> None:
    """Answer the request in the first file in the second."""
    request, answer = (Path(argument) for argument in arguments)
    answer.write_text(json.dumps(_ask(**json.loads(request.read_text("utf-8")))), "utf-8")


def _ask(
    model: str, trace: str, provider_options: dict[str, str], session_options: dict[str, str], run: bool
) -> dict[str, Any]:
    """Compile without fallback; when that fails, compile what can be, to learn which nodes cannot."""
    import onnxruntime as ort
    import onnxruntime_qnn

    ort.disable_telemetry_events()
    ort.set_default_logger_severity(4)
    ort.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]
    report = Path(trace) / _TRACE
    options = {**provider_options, "enable_framework_op_trace": "1", "framework_op_trace_dir": trace}
    answer: dict[str, Any] = {"version": onnxruntime_qnn.__version__, "error": "", "partitions": None}
    for fallback in (False, True):
        report.unlink(missing_ok=True)
        try:
            session = _session(ort, model, devices, options, session_options, fallback=fallback)
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises is its answer
            answer |= {"error": answer["error"] or str(error), "compiled": False, "nodes": []}
        else:
            # The error of the first try stands: without fallback the graph was refused.
            nodes = _nodes(session)
            taken = not fallback and all(of_compiler for *_, of_compiler in nodes)
            answer |= {"compiled": taken, "nodes": nodes, "partitions": _partitions(session)}
            if run and not fallback:
                answer["difference"] = _difference(ort, session, model)
            break
        finally:
            answer["reasons"] = _reasons(report)
    return answer


def _session(
    ort: Any, model: str, devices: list[Any], options: dict[str, str], entries: dict[str, str], *, fallback: bool
) -> Any:
    wanted = {
        **entries,
        "session.record_ep_graph_assignment_info": "1",
        "session.disable_cpu_ep_fallback": str(int(not fallback)),
    }
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    for key, value in wanted.items():
        settings.add_session_config_entry(key, value)
    settings.add_provider_for_devices(devices, options)
    return ort.InferenceSession(model, settings)


def _nodes(session: Any) -> list[list[Any]]:
    """Name, operator, domain and whether the compiler has it, of every node that reached partitioning."""
    return [
        [node.name, node.op_type, node.domain, part.ep_name == _PROVIDER]
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def _partitions(session: Any) -> int:
    """Pieces that the compiler has."""
    return sum(part.ep_name == _PROVIDER for part in session.get_provider_graph_assignment_info())


def _reasons(report: Path) -> list[list[str]]:
    """Name, operator and reason of the nodes that the provider's report calls unsupported."""
    if not report.is_file():
        return []
    refused = json.loads(report.read_text("utf-8"))["unsupported_nodes"]
    return [[node["node_name"], node["op_type"], node.get("reason", "")] for node in refused]


def _difference(ort: Any, session: Any, model: str) -> float | None:
    """Largest difference of any output from onnxruntime's CPU provider on random inputs, over the largest value."""
    import numpy as np

    kinds = {"float": "float32", "double": "float64"}
    random = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        dtype = np.dtype(kinds.get(name := value.type[len("tensor(") : -1], name))
        floating = dtype.kind == "f"
        made = random.standard_normal(value.shape) if floating else random.integers(0, 2, value.shape)
        feeds[value.name] = made.astype(dtype)
    try:
        found = session.run(None, feeds)
        expected = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)
    except Exception:  # noqa: BLE001 - a model that cannot run has no difference
        return None
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        one, other = (np.asarray(value, np.float64) for value in (one, other))
        both = np.isfinite(one) & np.isfinite(other)
        if both.any():
            worst = max(worst, float(np.abs(one - other)[both].max() / max(1.0, np.abs(other[both]).max())))
    return worst


if __name__ == "__main__":
    main(sys.argv[1:])
