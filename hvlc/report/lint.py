"""Lint findings as tables and as SARIF, and the limits of a target with their evidence."""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hvlc.report.sarif import SCHEMA, artifact
from hvlc.results.lint import GraphLint, Lint, NodeFinding
from hvlc.targets import Known, Severity, Target

_NAMED = 3  # nodes of a finding that are named in the table
_LEVELS = {Severity.REFUSAL: "error", Severity.HAZARD: "warning"}
_STYLES = {Severity.REFUSAL: "red", Severity.HAZARD: "yellow"}
#: Fields of a target that are not limits.
_HEAD = frozenset(
    {"schema_version", "extends", "name", "description", "evidence", "tried", "execution_provider", "sources"}
)
_GROUPS = frozenset({"operators", "rules", "products", "block_formats"})


def lint_tables(found: Lint) -> Group:
    """One line a graph, then one line a limit that it breaks; what was fixed; what the compiler said."""
    parts: list[RenderableType] = [_overview(found)]
    parts += [_findings(graph) for graph in found.graphs if graph.findings and not graph.on_cpu]
    parts += [Text(line) for line in _probe_lines(found)]
    if found.fixed is not None:
        made = ", ".join(f"{name} {count}" for name, count in found.fixed.items() if count) or "nothing"
        parts.append(Text(f"fixed: {made}"))
        parts += [Text(f"not fixed: {reason}", style="dim") for reason in found.declined]
    parts.append(Text(f"{found.target}: {found.tried}", style="dim"))
    return Group(*parts)


def _overview(found: Lint) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("graph", "nodes", "refused", "hazards", "partitions", "verdict"):
        table.add_column(title, justify="left" if title in ("graph", "verdict") else "right")
    for graph in found.graphs:
        verdict = Text("on the CPU (declared)", style="dim") if graph.on_cpu else _verdict(graph, partial=found.partial)
        counts = (graph.nodes, graph.refused, graph.hazards, graph.partitions)
        table.add_row(Text(graph.name), *(Text(str(count)) for count in counts), verdict)
    return table


def _verdict(graph: GraphLint, *, partial: bool) -> Text:
    if graph.refused and partial:
        return Text("taken in part (declared)", style="green" if not graph.hazards else "yellow")
    if graph.refused:
        return Text("refused", style="red")
    if graph.hazards:
        return Text("taken, but numbers may be wrong", style="yellow")
    return Text("taken", style="green")


def _findings(graph: GraphLint) -> Text:
    """The limits that a graph breaks: refusals before hazards, those of most nodes first."""
    lines = [Text(graph.name, style="bold")]
    for same in _by_limit(graph.findings):
        first = same[0]
        operators = ", ".join(sorted({finding.operator for finding in same}))
        named = ", ".join(finding.node for finding in same[:_NAMED]) + (", ..." if len(same) > _NAMED else "")
        known = f"{first.rule}, {first.evidence or 'not stated'}" + (f": {first.source}" if first.source else "")
        lines.append(Text.assemble((f"  {len(same)} {first.weight}", _STYLES[first.weight]), f"  {operators}"))
        lines.append(Text(f"    {first.reason}"))
        lines += [Text(f"    fix: {first.fix}", style="green")] if first.fix else []
        lines.append(Text(f"    nodes: {named}", style="dim"))
        lines.append(Text(f"    known: {known}", style="dim"))
    if graph.unknown_shapes:
        text = (
            f"  {graph.unknown_shapes} nodes have shapes that could not be inferred: limits of shape not checked there"
        )
        lines.append(Text(text, style="yellow"))
    return Text("\n").join(lines)


def _by_limit(findings: Sequence[NodeFinding]) -> list[list[NodeFinding]]:
    groups: dict[tuple[Severity, str, str], list[NodeFinding]] = {}
    for finding in findings:
        groups.setdefault((finding.weight, finding.rule, finding.reason), []).append(finding)
    return sorted(groups.values(), key=lambda same: (same[0].weight is Severity.HAZARD, -len(same)))


def _probe_lines(found: Lint) -> Iterator[str]:
    for graph in found.graphs:
        probed = graph.probed
        if probed is None:
            continue
        verdict = "takes the whole graph" if probed.taken else f"refuses it: {probed.error}"
        count = probed.partitions
        pieces = "" if count is None else f", in {count} partition{'' if count == 1 else 's'}"
        yield f"{graph.name}: {probed.compiler} {verdict}{pieces}"
        for one in probed.disagreements:
            node = f"{one.node} ({one.operator})" if one.node else "the whole graph"
            sides = "rules take it, the compiler does not" if one.rules_take else "the compiler takes it, rules do not"
            yield f"  disagreement: {node}: {sides}" + (f": {one.reason}" if one.reason else "")


def lint_sarif(found: Lint) -> dict[str, Any]:
    """The findings as a SARIF 2.1.0 log: a rule is a limit of the target, a result a node."""
    findings = [(graph, finding) for graph in found.graphs if not graph.on_cpu for finding in graph.findings]
    rules = {finding.rule: finding for _, finding in findings}
    places = {rule: place for place, rule in enumerate(rules)}
    driver = {"name": "hvlc lint", "version": version("hvlc"), "rules": [_rule(found, f) for f in rules.values()]}
    results = [_result(found, graph, finding, places[finding.rule]) for graph, finding in findings]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(found: Lint, finding: NodeFinding) -> dict[str, Any]:
    return {
        "id": f"{found.target}/{finding.rule}",
        "shortDescription": {"text": finding.reason},
        "help": {"text": finding.fix or "no rewrite is known: change the model or the target"},
        "defaultConfiguration": {"level": _LEVELS[finding.weight]},
        "properties": {"evidence": finding.evidence or "not stated", "source": finding.source},
    }


def _result(found: Lint, graph: GraphLint, finding: NodeFinding, place: int) -> dict[str, Any]:
    name = f"{graph.name}/{finding.node}"
    return {
        "ruleId": f"{found.target}/{finding.rule}",
        "ruleIndex": place,
        "level": _LEVELS[finding.weight],
        "message": {"text": f"{finding.node} ({finding.operator}): {finding.reason}"},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": artifact(graph.file)},
                "logicalLocations": [{"name": finding.node, "fullyQualifiedName": name, "kind": "member"}],
            }
        ],
        "partialFingerprints": {"node/v1": f"{found.target}/{finding.rule}/{name}"},
    }


def targets_table(targets: Sequence[Target]) -> Table:
    """The targets, a line each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("target", "tried", ""):
        table.add_column(title)
    for target in targets:
        table.add_row(Text(target.name, style="bold"), Text(target.tried.value), Text(target.description))
    return table


def target_table(target: Target) -> Group:
    """Everything that a target's file and what it extends say, each limit with how it is known."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("limit", "value", "known", "source"):
        table.add_column(title, overflow="fold")
    for name, value, known in _limits(target):
        evidence, source = (known.evidence.value, known.source) if known else ("not stated", "")
        table.add_row(Text(name, style="bold"), Text(value), Text(evidence), Text(source, style="dim"))
    head = Text.assemble((target.name, "bold"), f": {target.description}; {target.tried.value}")
    return Group(head, table)


def _limits(target: Target) -> Iterator[tuple[str, str, Known | None]]:
    """Name, value and source of every limit."""
    for field in sorted(target.model_fields_set - _HEAD - _GROUPS):
        yield field, _text(getattr(target, field)), target.sources.get(field)
    for block in target.block_formats:
        sizes = f"{block.bits} bits, blocks of {_text(block.block_sizes)}"
        text = sizes + (", zero points" if block.zero_points else "")
        yield "block_formats", text, Known(evidence=block.evidence, source=block.source)
    for name, group in target.operators.items():
        verb = "takes" if group.taken else "refuses"
        text = f"{verb} {_text(group.names)}" + (f": {group.reason}" if group.reason else "")
        yield f"operators.{name}", text, group
    for name, product in target.products.items():
        text = f"{_text(product.activations)} x {_text(product.weights)} per {_text(product.grains)}"
        yield f"products.{name}", f"{_text(product.operators)}: {text}", product
    for name, rule in target.rules.items():
        yield f"rules.{name}", f"{rule.severity}: {_text(rule.operators)}: {rule.reason}", rule


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)
