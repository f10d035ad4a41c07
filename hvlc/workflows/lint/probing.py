"""Rules held against the compiler: a linted graph is compiled, and each node that is judged otherwise is named."""

from pathlib import Path

from hvlc.errors import UserError
from hvlc.qnn.compiler import CompileOptions
from hvlc.qnn.isolation import is_installed
from hvlc.qnn.probing import Probe, probe_graph
from hvlc.results.lint import CompilerAnswer, Disagreement, GraphLint
from hvlc.targets import Compiler, Severity, Target


def require_compiler(target: Target) -> None:
    """Refuse a probe before the work.

    Raises:
        UserError: the compiler is not installed, or the target has none that runs here, or names no chip.
    """
    if target.compiler is Compiler.NONE:
        cause = f"{target.name} has no compiler that runs on this host"
        raise UserError("lint.probe", cause, "leave --probe out: its rules need no compiler")
    if not is_installed():
        cause = "Qualcomm's compiler (onnxruntime-qnn) is not installed"
        raise UserError("lint.probe", cause, "pip install 'hvlc[qnn]' on x86-64 Linux, or leave --probe out")
    CompileOptions.of(target)


def probed(graph: GraphLint, target: Target) -> GraphLint:
    """A linted graph with what the compiler says of it; `require_compiler` has been asked."""
    said = probe_graph(Path(graph.file), CompileOptions.of(target))
    return graph.model_copy(update={"probed": disagreements(graph, said)})


def disagreements(graph: GraphLint, said: Probe) -> CompilerAnswer:
    """Answer of the compiler, with its disagreements with the rules."""
    refused = {finding.node for finding in graph.findings if finding.weight is Severity.REFUSAL}
    found = [
        Disagreement(
            node=name,
            operator=op_type,
            rules_take=name not in refused,
            compiler_takes=taken,
            reason=said.reasons.get(name, ""),
        )
        for name, op_type, taken in said.nodes
        if name and taken is (name in refused)
    ]
    if not found and said.taken is bool(graph.refused):
        found = [
            Disagreement(
                node="", operator="", rules_take=not graph.refused, compiler_takes=said.taken, reason=said.error
            )
        ]
    return CompilerAnswer(
        compiler=f"onnxruntime-qnn {said.version}".strip(),
        taken=said.taken,
        error=said.error,
        partitions=said.partitions,
        disagreements=tuple(found),
    )
