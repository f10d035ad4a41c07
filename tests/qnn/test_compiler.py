"""Qualcomm's compiler and its traps (T1 to T6 of the field notes that `docs/snapdragon.md` sums up)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import TargetError, UserError
from hvlc.qnn.checking import emulate
from hvlc.qnn.compiler import (
    CompileOptions,
    compile_graph,
    compile_graphs,
    refused_nodes,
    require_npu,
    require_static,
)
from hvlc.qnn.context import read_context
from hvlc.qnn.isolation import Answer, Failure, Graph, Isolation, Request
from hvlc.targets import Compiler, load_target
from tests.qnn import graphs
from tests.qnn.conftest import CHIPS, needs_qnn, noise, options
from tests.qnn.test_context import wrapper

FALLBACK = {"session.disable_cpu_ep_fallback": "0"}


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def opened(model: Path, provider_options: dict[str, str], scratch: Path, **entries: str) -> Answer | Failure:
    """A session as anyone would open it: fallback to the CPU allowed."""
    request = Request(model.parent, [Graph(model.name, {**FALLBACK, **entries})], provider_options)
    return Isolation().run(request, scratch)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "sources").mkdir()
    return tmp_path / "sources"


@needs_qnn
@pytest.mark.parametrize("chip", CHIPS)
def test_every_chip_is_named_by_what_was_made(sources: Path, output: Path, chip: str) -> None:
    compiled = compile_graph(graphs.small_network(sources / "a.onnx"), options(chip), output)
    assert listing(output) == ["a.onnx", "a_qnn.bin"]
    record = compiled.record
    assert (record.chip, record.soc_model, record.htp_arch) == (chip, *CHIPS[chip])
    assert (record.nodes, record.operators) == (2, {"MatMul": 1, "Relu": 1})
    assert record.binary_bytes == (output / "a_qnn.bin").stat().st_size


@needs_qnn
def test_equal_graphs_give_equal_bytes_anywhere(sources: Path, output: Path, tmp_path: Path) -> None:
    other, again = tmp_path / "other", tmp_path / "again"
    other.mkdir()
    again.mkdir()
    for source, made in ((sources, output), (other, again)):
        compile_graph(graphs.small_network(source / "a.onnx"), options(), made)
    for name in listing(output):
        assert (output / name).read_bytes() == (again / name).read_bytes(), name


@needs_qnn
def test_t1_a_session_on_the_cpu_says_it_is_on_the_npu(sources: Path, output: Path, tmp_path: Path) -> None:
    model = graphs.small_network(sources / "a.onnx")
    broken = {**options().provider(3), "backend_type": "cpu"}  # a backend that is not in the wheel
    ended = opened(model, broken, tmp_path)
    assert isinstance(ended, Answer)  # the trap: nothing complains
    with pytest.raises(TargetError, match=r"compile.cpu.*2 of 2 nodes are on the CPU"):
        require_npu("a", [(node.provider, node.op_type) for node in ended.graphs[0].nodes])
    with pytest.raises(TargetError):
        compile_graph(model, options(provider_options={"backend_type": "cpu"}), output)
    assert listing(output) == []


def test_t1_one_node_on_the_cpu_is_enough() -> None:
    with pytest.raises(TargetError, match=r"1 of 2 nodes are on the CPU \(1 Gather\)"):
        require_npu("a", [("QNNExecutionProvider", "MatMul"), ("CPUExecutionProvider", "Gather")])
    with pytest.raises(TargetError, match="every node"):
        require_npu("a", [])


@needs_qnn
def test_t2_quantizing_the_ends_is_left_to_the_cpu(sources: Path, output: Path, tmp_path: Path) -> None:
    model = graphs.quantized_ends(sources / "a.onnx")
    offloaded = {**options().provider(3), "offload_graph_io_quantization": "1"}
    entries = {"ep.context_enable": "1", "ep.context_file_path": str(tmp_path / "a.onnx"), "ep.context_embed_mode": "0"}
    assert isinstance(opened(model, offloaded, tmp_path, **entries), Answer)
    with pytest.raises(TargetError, match=r"compile.partial.*QuantizeLinear"):
        read_context(tmp_path / "a.onnx")
    assert compile_graph(model, options(), output).record.operators["QuantizeLinear"] == 2


@needs_qnn
def test_t3_another_chip_runs_anyway(sources: Path, output: Path, tmp_path: Path) -> None:
    model = graphs.small_network(sources / "a.onnx")
    compiled = compile_graph(model, options("SM8550"), output)
    assert isinstance(opened(compiled.context.file, options("SM8750").running(), tmp_path), Answer)  # the trap
    with pytest.raises(TargetError, match=r"compile.device.*SM8550"):
        compiled.context.require_device(*CHIPS["SM8750"])


@needs_qnn
def test_t3_a_chip_that_does_not_exist_is_refused(sources: Path, output: Path) -> None:
    with pytest.raises(TargetError, match=r"compile.failed.*INVALID_CONFIG"):
        compile_graph(graphs.small_network(sources / "a.onnx"), CompileOptions(999, 99), output)
    assert listing(output) == []


@needs_qnn
def test_t4_shared_weights_cannot_be_emulated(sources: Path, output: Path, tmp_path: Path) -> None:
    models = [
        graphs.small_network(sources / f"{name}.onnx", size, 256) for name, size in (("prompt", 16), ("token", 1))
    ]
    prompt, token = compile_graphs(models, options(), output)
    assert listing(output) == ["prompt.onnx", "prompt_qnn.bin", "token.onnx"]
    assert (prompt.record.shared_with, token.record.shared_with) == (("token",), ("prompt",))
    weights = 2 * 256 * 256  # in half precision
    assert weights < prompt.record.binary_bytes < 2 * weights
    with pytest.raises(TargetError, match=r"check.shared.*2 graphs"):
        list(emulate(token, [noise(models[1])], tmp_path))
    ended = opened(token.context.file, options().running(), tmp_path)
    assert isinstance(ended, Failure)  # the trap: the process ends by a signal
    assert ended.how == "crash"


@needs_qnn
def test_t5_validation_is_not_compilation(sources: Path, output: Path, tmp_path: Path) -> None:
    model = graphs.unfinished_product(sources / "a.onnx")
    with pytest.raises(TargetError, match=r"compile\.finalize"):
        compile_graph(model, options(), output)
    assert listing(output) == []


@needs_qnn
@pytest.mark.slow
def test_t6_finalization_without_memory_goes_on_in_another_mode(sources: Path, output: Path) -> None:
    record = compile_graph(graphs.large_vocabulary(sources / "a.onnx"), options(modes=(1, 2)), output).record
    assert record.mode == 2
    assert [attempt.mode for attempt in record.failed_attempts] == [1]
    assert "MEM_ALLOC" in record.failed_attempts[0].error


#: Stands in for the compiler: copies what it is told to, unless the mode of finalization is below 3.
PRETENDER = """
import json, pathlib, shutil, sys
asked = json.load(open(sys.argv[1]))
if int(asked["provider_options"]["htp_graph_finalization_optimization_mode"]) < 3:
    sys.exit("Failed to finalize QNN graph. Error: QNN_COMMON_ERROR_MEM_ALLOC")
graph = asked["graphs"][0]
made = pathlib.Path(graph["session_options"]["ep.context_file_path"])
for file in ("a.onnx", "a_qnn.bin"):
    shutil.copy(pathlib.Path(asked["directory"]) / "made" / file, made.with_name(file))
nodes = [["PROVIDER", "y", "Relu"]]
answer = {"version": "2.7.0", "graphs": [{"nodes": nodes, "seconds": 1}], "peak_bytes": 1}
json.dump(answer, open(sys.argv[2], "w"))
"""


@pytest.fixture
def pretend(sources: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Isolation]:
    """Makes a compiler that is none; what it answers is as given."""
    monkeypatch.setattr("hvlc.qnn.compiler.require_qnn", lambda: None)

    def made(provider: str = "QNNExecutionProvider", **damage: Any) -> Isolation:
        (sources / "made").mkdir()
        wrapper(sources / "made", **damage)
        (sources / "script.py").write_text(PRETENDER.replace("PROVIDER", provider), "utf-8")
        return Isolation(seconds=30, script=sources / "script.py")

    return made


def test_another_mode_follows_one_without_memory(
    sources: Path, output: Path, pretend: Callable[..., Isolation]
) -> None:
    model = graphs.small_network(sources / "a.onnx")
    record = compile_graph(model, options(modes=(1, 3)), output, pretend()).record
    assert (record.mode, [attempt.mode for attempt in record.failed_attempts]) == (3, [1])
    assert listing(output) == ["a.onnx", "a_qnn.bin"]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ({"provider": "CPUExecutionProvider"}, "compile.cpu"),
        ({"compatibility": "v2:6:2.51.0:5.51.0:73:43:0:0", "text": b"soc_type=SM8550;arch=73;"}, "compile.device"),
        ({"more": ("DequantizeLinear",)}, "compile.partial"),
        ({"text": b""}, "compile.context"),
    ],
)
def test_what_was_made_is_not_believed(
    sources: Path, output: Path, pretend: Callable[..., Isolation], damage: dict[str, Any], code: str
) -> None:
    with pytest.raises(TargetError, match=code):
        compile_graph(graphs.small_network(sources / "a.onnx"), options(), output, pretend(**damage))
    assert listing(output) == []


@needs_qnn
def test_attention_needs_its_affinity(sources: Path, output: Path) -> None:
    model = graphs.attention(sources / "a.onnx")
    with pytest.raises(TargetError, match=r"compile\.refused.*GroupQueryAttention"):
        compile_graph(model, options(affinity={}), output)
    assert compile_graph(model, options(), output).record.operators == {"GroupQueryAttention": 1}


@needs_qnn
def test_a_refused_node_is_named_with_the_reason(sources: Path, output: Path) -> None:
    with pytest.raises(TargetError, match=r"SkipSimplifiedLayerNormalization 'refused': .*not supported") as raised:
        compile_graph(graphs.refused_node(sources / "a.onnx"), options(), output)
    assert [problem.code for problem in raised.value.problems] == ["compile.refused"]
    assert listing(output) == []


@needs_qnn
def test_memory_is_bounded(sources: Path, output: Path) -> None:
    model = graphs.small_network(sources / "a.onnx")
    with pytest.raises(TargetError, match=r"compile\.(failed|crashed)"):
        compile_graph(model, options(), output, Isolation(max_memory=200 << 20))
    assert listing(output) == []


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "compile.crashed"),
        ("import time; time.sleep(60)", "compile.timeout"),
        ("raise SystemExit('out of order')", "compile.failed"),
    ],
)
def test_nothing_is_left_of_a_failure(
    sources: Path, output: Path, script: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvlc.qnn.compiler.require_qnn", lambda: None)
    model = graphs.small_network(sources / "a.onnx")
    (sources / "script.py").write_text(script, "utf-8")
    with pytest.raises(TargetError, match=code):
        compile_graph(model, options(), output, Isolation(seconds=1, script=sources / "script.py"))
    assert listing(output) == []


def test_a_dynamic_shape_is_named(tmp_path: Path) -> None:
    require_static(graphs.small_network(tmp_path / "a.onnx"))
    with pytest.raises(TargetError, match=r"compile.dynamic.*'x'.*'tiles'"):
        require_static(graphs.small_network(tmp_path / "b.onnx", "tiles"))


def test_refused_nodes_without_a_trace_are_read_from_the_log(tmp_path: Path) -> None:
    said = "Unsupported nodes in QNN EP: { name: a/b:0, type: Erf }{ name: c, type: Trilu }; FAIL"
    found = refused_nodes(tmp_path / "trace.json", said)
    assert [(node.name, node.op_type) for node in found] == [("a/b:0", "Erf"), ("c", "Trilu")]
    assert refused_nodes(tmp_path / "trace.json", "it went wrong") == ()


def test_a_target_of_another_compiler_or_without_a_chip_is_refused() -> None:
    with pytest.raises(UserError, match=r"target\.chip.*`compiler` is 'none'"):
        CompileOptions.of(load_target("cpu"))
    snapdragon = load_target("qnn-sm8750")
    assert CompileOptions.of(snapdragon).soc_model == 69
    with pytest.raises(UserError, match=r"target\.chip.*names no soc_model"):
        CompileOptions.of(snapdragon.model_copy(update={"htp_arch": None}))
    with pytest.raises(UserError, match="`compiler` is 'none'"):  # what else it says of Qualcomm does not count
        CompileOptions.of(snapdragon.model_copy(update={"compiler": Compiler.NONE}))
