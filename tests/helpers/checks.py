"""Holds every pass to its promise: valid graphs before and after, and nothing left to do."""

import onnx
import onnx_ir as ir
import pytest

from hvlc.graphs.bundle import Bundle
from hvlc.passes.base import BundlePass, ComponentPass


def check_bundle(bundle: Bundle) -> None:
    """Hold every component against the ONNX checker (which knows no contrib operator and skips those)."""
    for component in bundle.components.values():
        check_model(component.model)


def check_model(model: ir.Model) -> None:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    _check_order(proto.graph, set())


def _check_order(graph: onnx.GraphProto, known: set[str]) -> None:
    """Names are defined once and before use, also across subgraphs."""
    known = known | {v.name for v in [*graph.initializer, *graph.input]}
    for node in graph.node:
        missing = [name for name in node.input if name and name not in known]
        assert not missing, f"{node.name} reads {missing} before anything makes them"
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _check_order(attribute.g, known)
        for name in filter(None, node.output):
            assert name not in known, f"{name} is made twice"
            known.add(name)
    assert {v.name for v in graph.output} <= known


def check_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (BundlePass, ComponentPass):
        monkeypatch.setattr(kind, "run", _checking(kind.run))


def _checking(run):
    def checked(self, bundle: Bundle) -> None:
        check_bundle(bundle)
        run(self, bundle)
        check_bundle(bundle)
        done = len(bundle.journal)
        run(self, bundle)
        repeated = {e.component: e.changed for e in bundle.journal[done:] if e.changed}
        assert not repeated, f"{self.name} changes {repeated} the second time"
        del bundle.journal[done:]

    return checked
