"""Grouped-query attention written out, on the compiler: taken by every chip, and the numbers of the CPU."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hvlc.errors import TargetError
from hvlc.graphs.bundle import Bundle
from hvlc.qnn.checking import Sample, check_compiled
from hvlc.qnn.compiler import compile_graph
from tests.passes.legalize.test_decompose_group_query_attention import (
    CHUNK,
    ROOM,
    attention,
    feeds,
    graph_of,
    outputs,
    shifted,
    written_out,
)
from tests.passes.quantize.test_integer_attention import integers
from tests.qnn.conftest import CHIPS, needs_qnn, options

pytestmark = needs_qnn


def saved(made: Bundle, path: Path) -> Path:
    ir.save(next(iter(made.components.values())).model, path)
    return path


def samples(made: Bundle, tokens: int) -> list[Sample]:
    """Noise at the start, in the middle and at the end of the cache."""
    return [Sample(shifted(feeds(made, first, first))) for first in (0, CHUNK, ROOM - tokens)]


@pytest.mark.parametrize("window", [-1, 5])
@pytest.mark.parametrize(("quantized", "tokens"), [(False, CHUNK), (True, CHUNK), (True, 1)])
def test_it_computes_what_the_cpu_computes(
    tmp_path: Path, output: Path, quantized: bool, tokens: int, window: int
) -> None:
    made = attention(tokens, 32, layers=2, quantized=quantized, local_window_size=window)
    given = samples(made, tokens)
    compiled = compile_graph(saved(written_out(made), tmp_path / "a.onnx"), options(), output)
    check = check_compiled(compiled, given, "noise")
    assert {o.name for o in check.outputs} == {str(v.name) for v in graph_of(made).outputs}
    levels = [o for o in check.outputs if o.name.startswith("present.") and quantized]
    assert all(o.max_error <= 1 for o in levels)  # rounded the other way, where a value is between two levels


def test_integer_products_compute_what_the_cpu_computes(tmp_path: Path, output: Path) -> None:
    made = integers(CHUNK, 32)
    compiled = compile_graph(saved(made, tmp_path / "a.onnx"), options(), output)
    check_compiled(compiled, samples(attention(CHUNK, 32, quantized=True), CHUNK), "noise")


@pytest.mark.parametrize("chip", CHIPS)
def test_every_chip_takes_it_whole(tmp_path: Path, output: Path, chip: str) -> None:
    made = written_out(attention(CHUNK, 64, quantized=True))
    record = compile_graph(saved(made, tmp_path / "a.onnx"), options(chip), output).record
    assert record.chip == chip
    assert record.operators["ScatterElements"] == 2


def test_the_check_sees_a_cache_in_other_rows(tmp_path: Path, output: Path) -> None:
    made = attention(CHUNK, 32, quantized=True)
    given = samples(made, CHUNK)
    compiled = compile_graph(saved(written_out(made), tmp_path / "a.onnx"), options(), output)
    offsets = graph_of(made).initializers[f"{CHUNK}_offsets"]
    offsets.const_value = ir.tensor(offsets.const_value.numpy() // 2, name=offsets.name)
    saved(made, tmp_path / "a.onnx")  # what the binary is held against writes other rows
    with pytest.raises(TargetError, match=r"check\.noise"):
        check_compiled(compiled, given, "noise")


def test_levels_are_moved_between_roundings_alone(tmp_path: Path, output: Path) -> None:
    """Why the cache passes DequantizeLinear, ScatterElements and QuantizeLinear: bare integers are not scattered."""
    made = attention(CHUNK, 32, quantized=True)
    given, graph = shifted(feeds(made, CHUNK)), graph_of(written_out(made))
    for node in [n for n in graph if n.op_type == "ScatterElements"]:
        for position in (0, 2):
            node.replace_input_with(position, node.inputs[position].producer().inputs[0])
        (rounding,) = node.outputs[0].consumers()
        levels = node.outputs[0]
        levels.type, name = ir.TensorType(ir.DataType.UINT8), rounding.outputs[0].name
        rounding.outputs[0].name, levels.name = None, name
        ir.convenience.replace_all_uses_with(rounding.outputs[0], levels, replace_graph_outputs=True)
        graph.remove(rounding, safe=True)
    RemoveUnusedNodesPass()(next(iter(made.components.values())).model)
    expected = outputs(written_out(attention(CHUNK, 32, quantized=True)), given)
    for one, other in zip(expected, outputs(made, given), strict=True):
        np.testing.assert_array_equal(one, other)  # to a CPU the two are the same
    with pytest.raises(TargetError, match=r"compile\.refused.*ScatterElements"):
        compile_graph(saved(made, tmp_path / "a.onnx"), options(), output)
