"""Raise the opset of a model whose operators have the same semantics in the later one.

From opset 21 to 23 ONNX only let most operators take more types; the test is made on ONNX's own schemas: the same
inputs, outputs and attributes, and no type less. Any other difference keeps the model at its opset.
"""

from dataclasses import dataclass

from onnx import defs

from hvlc.graphs.bundle import Component, Skip
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait

_SINCE = 21  # before that some operators changed their meaning under the same signature (Resize, Reshape, Split)


@dataclass(frozen=True)
class RaiseOpset(ComponentPass):
    """Raise the opset of a model where that changes no operator's semantics.

    Attributes:
        opset: that a later pass needs.
    """

    opset: int
    promises = frozenset({Trait.LATE_OPSET})

    def transform(self, component: Component) -> Outcome:
        """Raise the opset when every operator means the same there."""
        imports = component.model.opset_imports
        now = imports.get("", 0)
        if now >= self.opset:
            return Outcome()
        if now < _SINCE:
            return Outcome(0, (Skip(component.name, f"opset {now} is older than {_SINCE}: export the model again"),))
        kinds = {node.op_type for node in component.graph.all_nodes() if not node.domain}
        changed = sorted(kind for kind in kinds if not _means_the_same(kind, now, self.opset))
        if changed:
            return Outcome(0, (Skip(component.name, f"opset {self.opset} changes {', '.join(changed)}"),))
        imports[""] = self.opset
        component.graph.opset_imports[""] = self.opset
        return Outcome(1)


def _means_the_same(op_type: str, now: int, later: int) -> bool:
    """Whether an operator of one opset is, in a later one, the same or the same with more types."""
    if not (defs.has(op_type, now) and defs.has(op_type, later)):
        return not defs.has(op_type)  # onnxruntime's own in the standard domain have no versions
    old, new = defs.get_schema(op_type, now), defs.get_schema(op_type, later)
    if old.since_version == new.since_version:
        return True
    return (
        [(p.name, p.type_str) for p in (*old.inputs, *old.outputs)]
        == [(p.name, p.type_str) for p in (*new.inputs, *new.outputs)]
        and set(old.attributes) == set(new.attributes)
        and all(new.attributes[a].default_value == old.attributes[a].default_value for a in old.attributes)
        and all(_types(old, name) <= _types(new, name) for name in _variables(old))
    )


def _variables(schema: defs.OpSchema) -> list[str]:
    return [constraint.type_param_str for constraint in schema.type_constraints]


def _types(schema: defs.OpSchema, variable: str) -> set[str]:
    found = [c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == variable]
    return set(found[0]) if found else set()
