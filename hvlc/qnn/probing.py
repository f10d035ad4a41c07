"""Ask Qualcomm's compiler which nodes of a graph it supports, and whether it takes the graph as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvlc.files.scratch import temporary_directory
from hvlc.qnn.compiler import PROVIDER, TRACE, CompileOptions, refused_nodes, traced
from hvlc.qnn.isolation import Answer, Graph, Isolation, Request


@dataclass(frozen=True)
class Probe:
    """The compiler's answer.

    Attributes:
        taken: whether the whole graph compiled, nothing left to the CPU.
        error: what it said of the whole graph when it did not.
        nodes: name, operator and whether it was taken, of every node that reached the compiler; onnxruntime's own
            rewrites come first, so a node of the file may be gone. Empty when not even a part compiled.
        reasons: by the name of a refused node.
        partitions: into how many pieces it cut the graph; None when not even a part compiled.
        version: of onnxruntime-qnn.
    """

    taken: bool
    error: str
    nodes: tuple[tuple[str, str, bool], ...]
    reasons: Mapping[str, str]
    partitions: int | None
    version: str


def probe_graph(model: Path, options: CompileOptions, isolation: Isolation | None = None) -> Probe:
    """Compile a graph without fallback to the CPU; when that fails, with it, to learn which nodes it needs that for.

    A node that passed validation can still fail to compile, so only a session that exists counts.

    Args:
        model: ONNX file.
        options: what to compile for.
        isolation: bounds of time and memory.
    """
    error = ""
    reasons: dict[str, str] = {}
    for fallback in (False, True):
        with temporary_directory("probe") as work:
            entries = {**options.session_options, "session.disable_cpu_ep_fallback": str(int(not fallback))}
            request = Request(model.parent, [Graph(model.name, entries)], traced(options, options.modes[0], work))
            ended = (isolation or Isolation()).run(request, work)
            reasons = {node.name: node.reason for node in refused_nodes(work / TRACE, "")}
        if isinstance(ended, Answer):
            (session,) = ended.graphs
            nodes = tuple((node.name, node.op_type, node.provider == PROVIDER) for node in session.nodes)
            # The error of the first try stands: without fallback the graph was refused.
            taken = not fallback and all(of_compiler for *_, of_compiler in nodes)
            return Probe(taken, error, nodes, reasons, session.partitions, ended.version)
        error = error or ended.last_words
    return Probe(False, error, (), reasons, None, "")
