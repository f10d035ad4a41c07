"""Lint records: findings of a target's rules, node by node, and the compiler's answers where it was asked."""

from typing import Literal

from hvlc.results.base import Record
from hvlc.targets.rules import Severity

SCHEMA_VERSION = 1


class NodeFinding(Record):
    """A finding against one node.

    Attributes:
        node: its name, those of subgraphs behind "/"; its position where it has no name.
        operator: with the domain where it is not ai.onnx.
        rule: name of the limit in the target's file.
        weight: refusal or hazard.
        reason: what is wrong.
        fix: what to do about it; may be empty.
        evidence: how the limit is known: "run", "read" or "inferred"; None where the target does not say.
        source: from where.
    """

    node: str
    operator: str
    rule: str
    weight: Severity
    reason: str
    fix: str
    evidence: Literal["run", "read", "inferred"] | None
    source: str


class Disagreement(Record):
    """A node that rules and compiler judge differently.

    Attributes:
        node: its name.
        operator: without domain, as the compiler reports it.
        rules_take: what the rules say.
        compiler_takes: what the compiler says.
        reason: the compiler's, where it gave one.
    """

    node: str
    operator: str
    rules_take: bool
    compiler_takes: bool
    reason: str


class CompilerAnswer(Record):
    """The compiler's answer about one graph.

    Attributes:
        compiler: name and version.
        taken: whether the whole graph compiled, nothing left to the CPU.
        error: what the compiler said of the whole graph when it did not.
        partitions: into how many pieces it cut the graph; None when not even a part compiled.
        disagreements: nodes that the rules judge differently; a graph that is refused as a whole, while every node is
            taken, is one disagreement without a node.
    """

    compiler: str
    taken: bool
    error: str
    partitions: int | None
    disagreements: tuple[Disagreement, ...]


class GraphLint(Record):
    """One graph.

    Attributes:
        name: of the component, or of the file.
        file: path as given.
        role: of the component; None for a file alone.
        on_cpu: whether the target declares that components of this role run on the CPU.
        nodes: that are asked of the target, subgraphs included.
        folded: nodes that onnxruntime computes before: their inputs are constants.
        refused: nodes that the target does not take.
        hazards: nodes that are taken and may go wrong.
        partitions: pieces of taken nodes that the graph is cut into.
        unknown_shapes: nodes with an operand whose rank could not be inferred: limits of shape were not checked there.
        findings: in the order of the nodes.
        probed: what the compiler said, where it was asked.
    """

    name: str
    file: str
    role: str | None
    on_cpu: bool
    nodes: int
    folded: int
    refused: int
    hazards: int
    partitions: int
    unknown_shapes: int
    findings: tuple[NodeFinding, ...]
    probed: CompilerAnswer | None = None


class Lint(Record):
    """A model or package against a target.

    Attributes:
        schema_version: of this record.
        target: name.
        tried: how far packages for the target were tried.
        partial: whether the target means to leave nodes that it refuses to the CPU of the same session.
        graphs: in the package's order.
        fixed: how many nodes `--fix` changed, by the name of the pass; None where it was not asked for.
        declined: what `--fix` could not change, each with its reason.
    """

    schema_version: int = SCHEMA_VERSION
    target: str
    tried: str
    partial: bool = False
    graphs: tuple[GraphLint, ...]
    fixed: dict[str, int] | None = None
    declined: tuple[str, ...] = ()

    def refused(self, *, allow_hazards: bool) -> bool:
        """Whether the target cannot have the model as it is: what is declared to run on the CPU does not count, nodes
        that a partial target leaves to it included.
        """
        return any(
            (graph.refused and not self.partial)
            or (graph.hazards and not allow_hazards)
            or (graph.probed is not None and not graph.probed.taken)
            for graph in self.graphs
            if not graph.on_cpu
        )
