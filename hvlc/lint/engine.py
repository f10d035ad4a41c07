"""Check the nodes of a graph against the rules of a target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvlc.lint import operators
from hvlc.lint.graphs import Node, read_graph
from hvlc.lint.partitions import count_partitions
from hvlc.results.lint import GraphLint, NodeFinding
from hvlc.targets import Evidence, Finding, Severity, Target


@dataclass(frozen=True)
class JudgedNode:
    """A node and what the target has against it; nothing against one that is computed before."""

    node: Node
    findings: tuple[Finding, ...]

    @property
    def severities(self) -> set[Severity]:
        """Severities of the findings."""
        return {finding.severity for finding in self.findings}

    @property
    def taken(self) -> bool:
        """Whether the target takes the node, right numbers or not."""
        return Severity.REFUSAL not in self.severities


def judge(nodes: Sequence[Node], target: Target) -> tuple[JudgedNode, ...]:
    """Every node with what speaks against it."""
    return tuple(JudgedNode(node, _findings(node, target)) for node in nodes)


def _findings(node: Node, target: Target) -> tuple[Finding, ...]:
    """Objections of the target and onnxruntime to a node, or to computing it where that is done before."""
    said = () if node.folded else target.findings(node.operation)
    if any(finding.severity is Severity.REFUSAL for finding in said):
        return said  # with a reason and a way out of its own
    if node.invalid:
        return (_refusal("onnxruntime.load", f"onnxruntime cannot load it: {node.invalid}"), *said)
    if node.kernel and target.uses_cpu_kernels:
        return (_refusal("onnxruntime.kernels", f"{node.operation.operator} {node.kernel}"), *said)
    return said


def _refusal(rule: str, reason: str) -> Finding:
    source = f"{operators.version()}: its own lists of operators and kernels, ONNX's inference of shapes"
    return Finding(rule, Severity.REFUSAL, reason, "", Evidence.RUN, source)


def lint_graph(
    path: Path,
    target: Target,
    *,
    name: str = "",
    role: str | None = None,
    dims: Mapping[str, int] | None = None,
) -> GraphLint:
    """Hold one ONNX file against a target; needs neither the target nor its compiler.

    Args:
        path: the file; its external data is not loaded.
        target: asked about every node.
        name: of the component; the file's stem where it is none.
        role: of the component.
        dims: sizes of symbolic dimensions, as if they were fixed.

    Raises:
        UserError: the file is not an ONNX model.
    """
    judged = judge(read_graph(path, dims), target)
    asked = [one for one in judged if one.findings or not one.node.folded]
    outer = [one for one in asked if one.node.depth == 0]
    return GraphLint(
        name=name or path.stem,
        file=str(path),
        role=role,
        on_cpu=role is not None and bool(target.leaves_to_cpu(role)),
        nodes=len(asked),
        folded=len(judged) - len(asked),
        refused=sum(not one.taken for one in asked),
        hazards=sum(one.taken and Severity.HAZARD in one.severities for one in asked),
        partitions=count_partitions([one.node for one in outer], [one.taken for one in outer]),
        unknown_shapes=sum(any(o.shape is None for o in one.node.operation.operands) for one in asked),
        findings=tuple(_record(one.node, finding) for one in asked for finding in one.findings),
    )


def _record(node: Node, finding: Finding) -> NodeFinding:
    return NodeFinding(
        node=node.name,
        operator=node.operation.operator,
        rule=finding.rule,
        weight=finding.severity,
        reason=finding.reason,
        fix=finding.fix,
        evidence=finding.evidence.value if finding.evidence else None,
        source=finding.source,
    )
