"""Tables that stay in float: the checkpoint's own type on disk, the same numbers after the look-up."""

import struct
from json import dumps
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.passes.quantize.keep_stored_embedding_type import KeepStoredEmbeddingType
from hvlc.targets import Target, load_target, target_for
from hvlc.weights.checkpoint import Checkpoint
from tests.helpers.sessions import OPTIMIZATIONS, session

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
CPU = load_target("cpu")


def lookup(directory: Path, kind: str, *, twice: bool = False) -> tuple[Bundle, np.ndarray]:
    """A table in a checkpoint of one element type, and a graph that looks rows up in it."""
    table = np.random.default_rng(0).normal(size=(10, 8)).astype(DTYPES[kind])
    header = dumps({"table": {"dtype": kind, "shape": [10, 8], "data_offsets": [0, table.nbytes]}}).encode()
    (directory / "config.json").write_text('{"model_type": "x"}')
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + table.tobytes())
    b = GraphBuilder("graph", Checkpoint.open(directory))
    weight = b.weight("table", (10, 8))
    rows = b.op("Gather", weight, b.input("ids", ir.DataType.INT64, ["n"]), axis=0, name="embed_tokens")
    b.output(rows, "y", ir.DataType.FLOAT, ["n", 8])
    if twice:
        b.output(b.op("Identity", weight), "whole", ir.DataType.FLOAT, [10, 8])
    bundle = Bundle("test")
    bundle.add(Component("graph", Role.EMBEDDING, b.model(), "graph"))
    return bundle, table.astype(np.float32)


def without_lookups() -> Target:
    return Target.model_validate(CPU.model_dump() | {"lookup_dtypes": ("float32",)})


@pytest.mark.parametrize("optimization", OPTIMIZATIONS)
@pytest.mark.parametrize("kind", ["F16", "BF16"])
@pytest.mark.usefixtures("checked")
def test_rows_are_the_same_to_the_bit(tmp_path: Path, kind: str, optimization: str) -> None:
    bundle, table = lookup(tmp_path, kind)
    KeepStoredEmbeddingType(lambda role, dtype: target_for(role, CPU).takes_lookup(dtype)).run(bundle)
    assert bundle.journal[-1].changed == 1
    graph = bundle.components["graph"].graph
    assert [node.op_type for node in graph] == ["Gather", "Cast"]
    assert graph.initializers["table"].const_value.nbytes == 10 * 8 * 2
    ids = np.array([0, 9, 3, 3])
    (rows,) = session(bundle.components["graph"].model, optimization).run(None, {"ids": ids})
    np.testing.assert_array_equal(rows, table[ids])


@pytest.mark.parametrize(
    ("kind", "twice", "target", "reason"),
    [
        ("F32", False, CPU, "the checkpoint stores it in float32"),
        ("BF16", True, CPU, "other nodes read it too"),
        ("BF16", False, without_lookups(), "cpu looks up no bfloat16"),
    ],
)
def test_what_stays_is_journalled(tmp_path: Path, kind: str, twice: bool, target: Target, reason: str) -> None:
    bundle, _ = lookup(tmp_path, kind, twice=twice)
    KeepStoredEmbeddingType(lambda role, dtype: target_for(role, target).takes_lookup(dtype)).run(bundle)
    assert bundle.journal[-1].changed == 0
    assert [skip.reason for skip in bundle.journal[-1].skipped] == [reason]
    assert "Cast" not in [node.op_type for node in bundle.components["graph"].graph]
