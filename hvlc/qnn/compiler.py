"""Compile static graphs for one chip. Either every node runs on the NPU, which is checked, or an error says why not."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import onnx

from hvlc.errors import TargetError, UserError
from hvlc.files.scratch import scratch_directory
from hvlc.qnn.context import Context, read_context
from hvlc.qnn.isolation import Answer, Failure, Graph, Isolation, Request, require_qnn
from hvlc.results.compilation import CompiledGraph, FailedAttempt
from hvlc.targets import Compiler, Target

PROVIDER = "QNNExecutionProvider"
_MODE = "htp_graph_finalization_optimization_mode"
_BACKEND = {"backend_type": "htp"}
#: Options of the provider that a binary has been made with.
_COMPILING = (_MODE, "soc_model", "htp_arch", "offload_graph_io_quantization", "vtcm_mb")
_NO_FALLBACK = ("session.disable_cpu_ep_fallback", "1")
TRACE = "qnn_op_trace.json"  # the provider's own account of nodes that it refused
_SILENT = "no reason given"
_SHOWN = 5  # refused nodes, in the text of an error
#: Nodes as the provider's log names them, which is all there is where it took none.
_UNSUPPORTED = re.compile(r"\{ name: (?P<name>[^{}]*), type: (?P<op_type>\w+) \}")
#: Said where finalization ran out of its own memory; another mode may get through (QAIRT 2.51).
_OUT_OF_MEMORY = "QNN_COMMON_ERROR_MEM_ALLOC"


@dataclass(frozen=True)
class CompileOptions:
    """Chip and options of a compilation.

    Attributes:
        soc_model: Qualcomm's number of the chip.
        htp_arch: generation of its NPU.
        provider_options: of the execution provider, besides the chip.
        session_options: of onnxruntime.
        affinity: processor of operator types that the provider takes only when told to.
        modes: of graph finalization, tried one after another where one runs out of the compiler's own memory.
        target: name of the target that says so; empty where none does.
    """

    soc_model: int
    htp_arch: int
    provider_options: Mapping[str, str] = field(default_factory=dict)
    session_options: Mapping[str, str] = field(default_factory=dict)
    affinity: Mapping[str, str] = field(default_factory=lambda: {"GroupQueryAttention": "HTP"})
    modes: tuple[int, ...] = (3, 2)
    target: str = ""

    @classmethod
    def of(cls, target: Target) -> Self:
        """Options of a target's file.

        Raises:
            UserError: its compiler is another one, or it names no chip.
        """
        if target.compiler is not Compiler.QNN:
            cause = f"{target.name} is not a target of Qualcomm's compiler: its `compiler` is {target.compiler.value!r}"
            raise UserError("target.chip", cause, "choose one of qnn-*, or extend one")
        if target.soc_model is None or target.htp_arch is None:
            cause = f"{target.name} names no soc_model and htp_arch, which Qualcomm's compiler needs"
            raise UserError("target.chip", cause, 'name both in the target\'s file, or set compiler = "none"')
        asked = int(target.provider_options.get(_MODE, cls.modes[0]))
        return cls(
            target.soc_model,
            target.htp_arch,
            target.provider_options,
            target.session_options,
            target.affinity,
            tuple(dict.fromkeys((asked, *cls.modes))),
            target.name,
        )

    def running(self) -> dict[str, str]:
        """Options of the provider for a session that runs a binary: what concerns the compiler left out."""
        return {**_BACKEND, **{key: value for key, value in self.provider_options.items() if key not in _COMPILING}}

    def provider(self, mode: int) -> dict[str, str]:
        """Options of the provider for a session that compiles.

        Args:
            mode: of graph finalization.
        """
        return {
            **_BACKEND,
            # Otherwise quantizing inputs and dequantizing outputs is left to the CPU, as graphs around the context.
            "offload_graph_io_quantization": "0",
            **{key: value for key, value in self.provider_options.items() if key != _MODE},
            "soc_model": str(self.soc_model),
            "htp_arch": str(self.htp_arch),
            _MODE: str(mode),
        }


@dataclass(frozen=True)
class Compiled:
    """A compiled graph.

    Attributes:
        record: what it is.
        source: the graph that it was made of.
        context: its files.
        options: what it was compiled with.
        compiler: version of onnxruntime-qnn.
        seconds: of the compilation, for all graphs that share the binary.
        peak_bytes: most resident memory of the compiler.
    """

    record: CompiledGraph
    source: Path
    context: Context
    options: CompileOptions
    compiler: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class RefusedNode:
    """A node that the compiler left out, and its reason."""

    name: str
    op_type: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op_type} {self.name!r}: {self.reason}"


def compile_graph(model: Path, options: CompileOptions, output: Path, isolation: Isolation | None = None) -> Compiled:
    """Compile one graph; see `compile_graphs`."""
    return compile_graphs([model], options, output, isolation)[0]


def compile_graphs(
    models: Sequence[Path], options: CompileOptions, output: Path, isolation: Isolation | None = None
) -> tuple[Compiled, ...]:
    """Compile graphs of one directory into one context binary; several graphs share the weights that are equal.

    For each `NAME.onnx` there is a `NAME.onnx` in `output`, with the same inputs and outputs; the binary is named
    after the first, `NAME_qnn.bin`. They appear when all of them are proved, or not at all. Equal files, by name and
    content, give equal binaries.

    Args:
        models: ONNX files without dynamic dimensions; external data beside them.
        options: what to compile for.
        output: an existing directory, not that of the models.
        isolation: bounds of time and memory.

    Raises:
        UserError: the compiler is not installed.
        TargetError: a graph has a dynamic dimension, or the compiler refused a node, failed, crashed or took too long,
            or what it made is for another chip or not wholly on the NPU.
    """
    require_qnn()
    for model in models:
        require_static(model)
    with scratch_directory(output, ".compile-") as scratch:
        mode, answer, failed = _attempts(models, options, scratch, isolation or Isolation())
        made = scratch / str(mode)
        for model, opened in zip(models, answer.graphs, strict=True):
            require_npu(model.name, [(node.provider, node.op_type) for node in opened.nodes])
        contexts = [read_context(made / model.name) for model in models]
        for context in contexts:
            context.require_device(options.soc_model, options.htp_arch)
        for path in [*{context.binary for context in contexts}, *(context.file for context in contexts)]:
            path.replace(output / path.name)
    names = tuple(model.stem for model in models)
    return tuple(
        Compiled(
            _record(model.stem, names, read_context(output / model.name), answer, index, mode, failed),
            model,
            read_context(output / model.name),
            options,
            answer.version,
            sum(opened.seconds for opened in answer.graphs),
            answer.peak_bytes,
        )
        for index, model in enumerate(models)
    )


def require_static(model: Path) -> None:
    """Refuse a graph whose inputs or outputs have a dimension without a number.

    Raises:
        TargetError: there is one.
    """
    graph = onnx.load(model, load_external_data=False).graph
    for value in (*graph.input, *graph.output):
        dims = [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]
        if not all(isinstance(dim, int) and dim > 0 for dim in dims):
            cause = f"{model.name}: {value.name!r} has the dynamic shape {dims}, and an NPU needs every number"
            raise TargetError("compile.dynamic", cause, "build for the target, which makes a graph for each size")


def require_npu(name: str, nodes: Sequence[tuple[str, str]]) -> None:
    """Refuse a session that left nodes to the CPU, whatever its list of providers says.

    Args:
        name: of the graph.
        nodes: provider and type of every node of the session.

    Raises:
        TargetError: one is not on the NPU, or there is none at all.
    """
    elsewhere = Counter(op_type for provider, op_type in nodes if provider != PROVIDER)
    if elsewhere or not nodes:
        left = ", ".join(f"{count} {op_type}" for op_type, count in elsewhere.most_common(_SHOWN)) or "every node"
        cause = f"{name}: {sum(elsewhere.values())} of {len(nodes)} nodes are on the CPU ({left})"
        raise TargetError("compile.cpu", cause, "run `hvlc lint` to see what the target does not take")


def refused_nodes(trace: Path, last_words: str) -> tuple[RefusedNode, ...]:
    """The nodes that the provider calls unsupported.

    Args:
        trace: its own account, which has reasons; absent where it took no node at all.
        last_words: of the process.
    """
    if trace.is_file():
        nodes = json.loads(trace.read_text("utf-8"))["unsupported_nodes"]
        return tuple(RefusedNode(node["node_name"], node["op_type"], node.get("reason") or _SILENT) for node in nodes)
    return tuple(RefusedNode(found["name"], found["op_type"], _SILENT) for found in _UNSUPPORTED.finditer(last_words))


def _attempts(
    models: Sequence[Path], options: CompileOptions, scratch: Path, isolation: Isolation
) -> tuple[int, Answer, tuple[FailedAttempt, ...]]:
    """The first mode of finalization that gets through; files are in a directory of `scratch` of its name."""
    failed: list[FailedAttempt] = []
    for mode in options.modes:
        made = scratch / str(mode)
        made.mkdir()
        ended = isolation.run(_request(models, options, mode, scratch, made), scratch)
        if isinstance(ended, Answer):
            return mode, ended, tuple(failed)
        refused = refused_nodes(scratch / TRACE, ended.last_words)
        if refused:
            raise _refusal(models, refused)
        failed.append(FailedAttempt(mode=mode, error=ended.last_words))
        if _OUT_OF_MEMORY not in ended.last_words:
            raise _failure(models, ended)
    said = "; ".join(f"mode {attempt.mode}: {attempt.error}" for attempt in failed)
    fix = "split the graph into smaller parts, or leave its largest matrix to the CPU"
    raise TargetError("compile.finalize", f"{_names(models)}: no mode of finalization gets through: {said}", fix)


def _request(models: Sequence[Path], options: CompileOptions, mode: int, scratch: Path, made: Path) -> Request:
    graphs = [Graph(model.name, entries) for model, entries in zip(models, _entries(models, made), strict=True)]
    graphs = [Graph(g.model, {**options.session_options, **g.session_options}) for g in graphs]
    return Request(models[0].parent, graphs, traced(options, mode, scratch))


def traced(options: CompileOptions, mode: int, scratch: Path) -> dict[str, str]:
    """Options of the provider for a session that compiles and leaves its account of refused nodes in `scratch`."""
    affinity = scratch / "affinity.json"
    affinity.write_text(json.dumps({"op_type": dict(options.affinity)}), "utf-8")
    return {
        **options.provider(mode),
        **({"op_affinity": str(affinity)} if options.affinity else {}),
        "enable_framework_op_trace": "1",
        "framework_op_trace_dir": str(scratch),
    }


def _entries(models: Sequence[Path], made: Path) -> Iterator[dict[str, str]]:
    """Session options of each graph: where it goes, and whether it shares the binary of the one before."""
    for model in models:
        shared = {"ep.share_ep_contexts": "1"} if len(models) > 1 else {}
        last = {"ep.stop_share_ep_contexts": "1"} if shared and model is models[-1] else {}
        yield {
            "ep.context_enable": "1",
            "ep.context_file_path": str(made.resolve() / model.name),
            "ep.context_embed_mode": "0",
            **dict([_NO_FALLBACK]),
            **shared,
            **last,
        }


def _refusal(models: Sequence[Path], refused: Sequence[RefusedNode]) -> TargetError:
    more = f", and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    cause = f"{_names(models)}: the compiler refuses {'; '.join(map(str, refused[:_SHOWN]))}{more}"
    error = TargetError("compile.refused", cause, "`hvlc lint` says what each node needs")
    error.problems = tuple(TargetError("compile.refused", str(node), "see hvlc lint") for node in refused)
    return error


def _failure(models: Sequence[Path], ended: Failure) -> TargetError:
    code, happened, fix = {
        "error": ("compile.failed", "the compiler failed", "`hvlc lint` knows what it cannot finish"),
        "crash": ("compile.crashed", "the compiler crashed", "split the graph, or leave this component to the CPU"),
        "timeout": ("compile.timeout", "the compiler was stopped", "allow it more time, or split the graph"),
    }[ended.how]
    return TargetError(code, f"{_names(models)}: {happened}: {ended.last_words}", fix)


def _names(models: Sequence[Path]) -> str:
    return " and ".join(model.name for model in models)


def _record(
    name: str,
    names: Sequence[str],
    context: Context,
    answer: Answer,
    index: int,
    mode: int,
    failed: tuple[FailedAttempt, ...],
) -> CompiledGraph:
    nodes = answer.graphs[index].nodes
    return CompiledGraph(
        component=name,
        nodes=len(nodes),
        operators=dict(Counter(node.op_type for node in nodes).most_common()),
        binary=context.binary.name,
        binary_bytes=context.binary.stat().st_size,
        shared_with=tuple(other for other in names if other != name),
        soc_model=context.soc_model,
        htp_arch=context.htp_arch,
        chip=context.chip,
        sdk=context.sdk,
        mode=mode,
        failed_attempts=failed,
    )
