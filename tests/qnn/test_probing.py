"""The compiler's word on a graph, taken from processes of its own."""

from pathlib import Path

import pytest

from hvlc.qnn.compiler import CompileOptions
from hvlc.qnn.isolation import Isolation
from hvlc.qnn.probing import Probe, probe_graph
from tests.qnn import graphs
from tests.qnn.conftest import CHIPS, needs_qnn, options


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise SystemExit('out of licences')", "out of licences"),
        ("", "it ended with code 0 and no answer"),
        ("import time; time.sleep(60)", "it did not end within 1 s"),
    ],
)
def test_a_compiler_that_dies_is_an_answer(tmp_path: Path, body: str, error: str) -> None:
    (tmp_path / "script.py").write_text(body, "utf-8")
    model = graphs.small_network(tmp_path / "a.onnx")
    found = probe_graph(model, options(), Isolation(seconds=1, script=tmp_path / "script.py"))
    assert found == Probe(False, error, (), {}, None, "")


#: Refuses what may not fall back to the CPU; else one node is there.
PRETENDER = """
import json, pathlib, sys
asked = json.load(open(sys.argv[1]))
trace = {"unsupported_nodes": [{"node_name": "y", "op_type": "Relu", "reason": "out of order"}]}
pathlib.Path(asked["provider_options"]["framework_op_trace_dir"], "qnn_op_trace.json").write_text(json.dumps(trace))
if asked["graphs"][0]["session_options"]["session.disable_cpu_ep_fallback"] == "1":
    sys.exit("nodes would run on the CPU")
nodes = [["QNNExecutionProvider", "product", "MatMul"], ["CPUExecutionProvider", "y", "Relu"]]
graphs = [{"nodes": nodes, "seconds": 1, "partitions": 1}]
json.dump({"version": "2.7.0", "graphs": graphs, "peak_bytes": 1}, open(sys.argv[2], "w"))
"""


def test_what_was_refused_is_compiled_with_fallback_to_learn_which_nodes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PRETENDER, "utf-8")
    model = graphs.small_network(tmp_path / "a.onnx")
    found = probe_graph(model, options(), Isolation(seconds=30, script=tmp_path / "script.py"))
    assert found == Probe(
        taken=False,
        error="nodes would run on the CPU",
        nodes=(("product", "MatMul", True), ("y", "Relu", False)),
        reasons={"y": "out of order"},
        partitions=1,
        version="2.7.0",
    )


@needs_qnn
@pytest.mark.parametrize("chip", CHIPS)
def test_a_graph_is_taken(tmp_path: Path, chip: str) -> None:
    found = probe_graph(graphs.small_network(tmp_path / "a.onnx"), options(chip))
    assert (found.taken, found.error, found.partitions) == (True, "", 1)
    assert found.nodes == (("product", "MatMul", True), ("y", "Relu", True))
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@needs_qnn
def test_what_is_refused_is_named_and_the_rest_is_taken(tmp_path: Path) -> None:
    found = probe_graph(graphs.refused_node(tmp_path / "a.onnx"), options())
    assert not found.taken
    assert "fallback" in found.error
    assert [name for name, _, taken in found.nodes if not taken] == ["refused"]
    assert "not supported" in found.reasons["refused"]
    assert found.partitions == 2


@needs_qnn
def test_a_graph_that_passes_validation_and_does_not_finalize_is_refused(tmp_path: Path) -> None:
    found = probe_graph(graphs.unfinished_product(tmp_path / "a.onnx"), options())
    assert (found.taken, bool(found.error)) == (False, True)


@needs_qnn
def test_a_chip_that_does_not_exist_is_refused_and_nothing_runs_on_the_cpu_instead(tmp_path: Path) -> None:
    found = probe_graph(graphs.small_network(tmp_path / "a.onnx"), CompileOptions(999, 99))
    assert not found.taken
    assert not any(taken for *_, taken in found.nodes)
