"""Static activations compute what numpy computes from rounded values, operator by operator."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.calibration.ranges import RangeObserver
from hvlc.errors import UserError
from hvlc.export import export_bundle
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.plan import Action, ActivationFormat, ActivationType, Assignment, Plan
from hvlc.package.onnx_files import write_components
from hvlc.passes.fuse.fuse_skip_norm import FuseSkipNorm
from hvlc.passes.quantize.quantize_activations import QuantizeActivations, affine, calibrated_values, check_ranges
from hvlc.passes.quantize.quantize_weights import QuantizeWeights
from hvlc.passes.quantize.quantize_weights_qdq import QuantizeWeightsQDQ
from hvlc.solvers import SOLVERS
from hvlc.solvers.rtn import round_to_nearest
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.formats import weight_format
from hvlc.weights.lazy import Constant
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import save_text, save_vision
from tests.helpers.sessions import OPTIMIZATIONS, session
from tests.helpers.tolerances import QUANTIZED_ACTIVATIONS

FORMAT = weight_format(4, 16)
WIDTH, INNER = 32, 48
Ranges = dict[str, tuple[float, float]]


def gated(*, planned: bool = True, type: ActivationType = ActivationType.UINT16) -> tuple[Bundle, Plan]:
    """Norm, gated MLP and residual, between a look-up and an output."""
    random = np.random.default_rng(0)
    b = GraphBuilder("model")

    def weight(name: str, *shape: int) -> ir.Value:
        return b.constant((random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32), name)

    ids = b.input("ids", ir.DataType.INT64, ["sequence"])
    b.output(b.op("Add", ids, b.ints(1), name="count"), "counted", ir.DataType.INT64, ["sequence"])
    x = b.op("Gather", weight("table", 20, WIDTH), ids, axis=0, name="table")
    normed = b.op("RMSNormalization", x, weight("norm", WIDTH), axis=-1, epsilon=1e-6, name="norm")
    gate = b.op("MatMul", normed, weight("gate", WIDTH, INNER), name="gate")
    up = b.op("Add", b.op("MatMul", normed, weight("up", WIDTH, INNER), name="up"), weight("bias", INNER), name="bias")
    inner = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate, name="sigmoid"), name="silu"), up, name="inner")
    y = b.op("Add", x, b.op("MatMul", inner, weight("down", INNER, WIDTH), name="down"), name="residual")
    y = b.op("Reshape", y, b.ints(-1, 4, 8), name="split")
    y = b.op("Mul", b.op("Tanh", y, name="tanh"), weight("gain", 8), name="gain")
    b.output(y, "y", ir.DataType.FLOAT, ["sequence", 4, 8])
    bundle = Bundle("test")
    bundle.add(Component("model", Role.DECODER, b.model(), "model"))
    return bundle, plan_of(bundle, type=type, planned=planned)


def plan_of(bundle: Bundle, *, type: ActivationType = ActivationType.UINT16, planned: bool = True) -> Plan:
    """Every product by a matrix that is not the head of a tied table, in blocks that fit tiny matrices."""
    assignments = []
    for component in bundle.components.values():
        for node in component.graph:
            if node.op_type == "MatMul" and node.inputs[1].const_value is not None:
                into, out = node.inputs[1].const_value.shape.numpy()
                action, format = (Action.QUANTIZE, FORMAT) if planned else (Action.KEEP, None)
                names = component.name, component.role, str(node.name), str(node.inputs[1].name)
                assignments.append(Assignment(*names, out, into, action, "", format, "rtn"))
    return Plan("recipe", "npu", tuple(assignments), activations=ActivationFormat(type))


def feeds_of(component: Component, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for value in component.graph.inputs:
        shape = [size if isinstance(size, int) else {"batch": 1, "past": 0}.get(str(size), 12) for size in value.shape]
        if value.name == "attention_mask":
            found[value.name] = np.ones(shape, np.int64)
        elif value.dtype == ir.DataType.INT64:
            found[str(value.name)] = random.integers(0, 20, shape)
        else:
            found[str(value.name)] = random.normal(size=shape).astype(np.float32)
    return found


def calibrated(bundle: Bundle, plan: Plan, *, coarse: float = 1) -> dict[str, Ranges]:
    """Ranges with quantized weights, times `coarse`: levels so far apart that rounding shows."""
    (component,) = bundle.components.values()
    names = calibrated_values(component, plan)
    model = ir.from_proto(ir.to_proto(component.model))
    weights = Bundle("weights")
    weights.add(Component(component.name, component.role, model, "model"))
    QuantizeWeights(plan, SOLVERS).run(weights)
    proto = ir.to_proto(model)
    known = {value.name for value in [*proto.graph.output, *proto.graph.input]}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    run = session(ir.from_proto(proto))
    observer = RangeObserver()
    for seed in range(4):
        feeds = feeds_of(component, seed)
        values = feeds | dict(zip((o.name for o in run.get_outputs()), run.run(None, feeds), strict=True))
        for name in names:
            observer.observe(name, values[name])
    return {component.name: {n: (low * coarse, high * coarse) for n, (low, high) in observer.ranges().items()}}


def quantize(bundle: Bundle, plan: Plan, ranges: dict[str, Ranges]) -> Component:
    QuantizeWeightsQDQ(plan, SOLVERS).run(bundle)
    QuantizeActivations(plan, expressions(ranges)).run(bundle)
    return next(iter(bundle.components.values()))


def expressions(ranges: dict[str, Ranges]) -> dict[str, dict[str, Constant]]:
    """Ranges as the pass takes them."""
    return {name: {value: Constant(np.array(ends)) for value, ends in of.items()} for name, of in ranges.items()}


# The oracle: the float graph, one node at a time, with every rule of the form written out again.

INTEGER = {"RMSNormalization", "LayerNormalization", "Add", "Mul", "Sigmoid", "Tanh", "Gelu", "MatMul"}
INTEGER |= {"SkipSimplifiedLayerNormalization", "SkipLayerNormalization"}
MOVING = {"Reshape", "Transpose", "Slice", "Squeeze"}


def rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """float32 on the grid of 65,536 levels that hold 0 and span a range."""
    step = np.float32((high - low) / 65535)
    first = -np.round(-low / step)
    return (np.clip(np.rint(values / step), first, first + 65535) * step).astype(np.float32)


def symmetric(values: np.ndarray) -> np.ndarray:
    """float32 on a grid whose last level is the largest magnitude."""
    step = np.float32(np.abs(values).max() / 32767)
    return (np.rint(values / step) * step).astype(np.float32)


def simulate(component: Component, ranges: Ranges, feeds: dict[str, np.ndarray], *, rounds: bool = True) -> list:
    """Outputs of a float graph whose weights and values are rounded by numpy."""
    values: dict[str, np.ndarray] = dict(feeds)
    for name, value in component.graph.initializers.items():
        values[name] = value.const_value.numpy()
    scale_of = {name: name for name in feeds}
    integer: set[str] = set()
    for node in component.graph:
        is_float = all(values[v.name].dtype == np.float32 for v in node.inputs[:1] if v is not None)
        computes = is_float and node.op_type in INTEGER | MOVING
        inputs = []
        for position, value in enumerate(node.inputs):
            if value is None:
                inputs.append(None)
                continue
            x = values[value.name]
            if value.const_value is not None:
                if node.op_type == "MatMul":
                    x = round_to_nearest(np.ascontiguousarray(x.T), FORMAT).dequantize(x.shape[0]).T
                elif rounds and computes and node.op_type in INTEGER and x.dtype == np.float32:
                    x = symmetric(x)
            elif rounds and x.dtype == np.float32 and (value.name in integer or (computes and position < 2)):
                source = scale_of.get(value.name, value.name)
                x = values[f"rounder {source}"](x) if f"rounder {source}" in values else rounded(x, *ranges[source])
            inputs.append(x)
        for value, y in zip(node.outputs, one_node(node, inputs), strict=True):
            if not value.name or y is None:
                continue
            values[value.name] = y
            scale_of[value.name] = value.name
            if computes:
                integer.add(str(value.name))
            if node.op_type == "Sigmoid":
                values[f"rounder {value.name}"] = lambda x: (
                    np.clip(np.rint(x * 65536), 0, 65535).astype(np.float32) / 65536
                )
            if node.op_type in MOVING:
                scale_of[value.name] = scale_of.get(node.inputs[0].name, node.inputs[0].name)
    return [values[value.name] for value in component.graph.outputs]


def one_node(node: ir.Node, inputs: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """What onnxruntime computes for a single node."""
    proto = ir.to_proto(node)
    names = [f"in{i}" if x is not None else "" for i, x in enumerate(inputs)]
    outputs = [f"out{i}" if v.uses() or v.is_graph_output() else "" for i, v in enumerate(node.outputs)]
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(outputs)
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)
            for n, x in zip(names, inputs, strict=True)
            if n
        ],
        [onnx.ValueInfoProto(name=n) for n in outputs if n],
    )
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=11))
    made = iter(session(model).run(None, {n: x for n, x in zip(names, inputs, strict=True) if n}))
    return [next(made) if n else None for n in outputs]


# The tests.


def test_a_gated_block_gets_these_pairs() -> None:
    bundle, plan = gated()
    before = Counter(node.op_type for node in bundle.components["model"].graph)
    component = quantize(bundle, plan, calibrated(bundle, plan))
    after = Counter(node.op_type for node in component.graph)
    # table, norm, gate, up, bias, sigmoid, silu, inner, down, residual, split, tanh; the output y stays
    assert after - before == Counter({"QuantizeLinear": 12, "DequantizeLinear": 12 + 3 + 3, "Transpose": 3, "Cast": 3})
    (entry,) = [e for e in bundle.journal if e.step == "QuantizeActivations"]
    assert entry.changed == 12 + 3
    assert {(s.where, s.reason) for s in entry.skipped} == {
        ("table", "embeddings stay in float"),
        ("y", "outputs of the graph stay in float"),
    }
    (count,) = [node for node in component.graph if node.name == "count"]
    assert next(v.name for v in count.inputs) == "ids"  # integers are not activations
    assert {"norm", "bias"} & set(component.graph.initializers) == set()
    assert str(component.graph.initializers["norm.uint16"].dtype) == "UINT16"


def pair(component: Component, value: str) -> tuple[float, int]:
    found = component.graph.initializers
    return tuple(found[f"{value}.{part}"].const_value.numpy().item() for part in ("scale", "zero_point"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("type", "sigmoid", "middle"),
    [(ActivationType.UINT16, (1 / 65536, 0), 32768), (ActivationType.INT16, (1 / 32768, 0), 0)],
)
def test_scales_are_fixed_where_a_compiler_needs_it_and_kept_where_values_only_move(
    type: ActivationType, sigmoid: tuple[float, int], middle: int
) -> None:
    bundle, plan = gated(type=type)
    ranges = calibrated(bundle, plan)
    assert not {"sigmoid:0", "tanh:0", "split:0", "y"} & set(ranges["model"])
    component = quantize(bundle, plan, ranges)
    assert pair(component, "sigmoid:0") == sigmoid
    assert pair(component, "tanh:0") == (1 / 32768, middle)
    assert pair(component, "split:0") == pair(component, "residual:0")
    assert pair(component, "norm")[1] == pair(component, "bias")[1] == middle
    low, high = ranges["model"]["gate:0"]
    scale, zero = pair(component, "gate:0")
    assert scale == pytest.approx((high - low) / 65535)
    assert (zero - middle) == pytest.approx(-low / scale - 32768, abs=1)


@pytest.mark.parametrize("optimization", OPTIMIZATIONS)
@pytest.mark.parametrize("type", ActivationType)
@pytest.mark.usefixtures("checked")
def test_a_gated_block_computes_what_numpy_computes(type: ActivationType, optimization: str) -> None:
    bundle, plan = gated(type=type)
    original, _ = gated()
    ranges = calibrated(bundle, plan, coarse=200)
    run = session(quantize(bundle, plan, ranges).model, optimization)
    ids = np.arange(20)
    y = run.run(["y"], {"ids": ids})[0]
    table, norm, gate, up, bias, down, gain = (
        original.components["model"].graph.initializers[n].const_value.numpy()
        for n in ("table", "norm", "gate", "up", "bias", "down", "gain")
    )
    gate, up, down = (
        round_to_nearest(np.ascontiguousarray(w.T), FORMAT).dequantize(w.shape[0]).T for w in (gate, up, down)
    )
    norm, bias, gain = (symmetric(w) for w in (norm, bias, gain))
    most = 32767 / 32768 if type is ActivationType.INT16 else 65535 / 65536
    steps = 32768 if type is ActivationType.INT16 else 65536

    def at(name: str, x: np.ndarray) -> np.ndarray:
        return rounded(x, *ranges["model"][name])

    x = at("table:0", table[ids])
    h = at("norm:0", x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * norm)
    g = at("gate:0", h @ gate)
    s = np.minimum(np.rint(steps / (1 + np.exp(-g))) / steps, most)
    inner = at("inner:0", at("silu:0", g * s) * at("bias:0", at("up:0", h @ up) + bias))
    residual = at("residual:0", x + at("down:0", inner @ down))
    expected = np.clip(np.rint(np.tanh(residual) * 32768), -32768, 32767).reshape(20, 4, 8) / 32768 * gain
    exact = original_output(original, ids)
    assert np.abs(y - expected).mean() <= QUANTIZED_ACTIVATIONS * np.abs(y - exact).mean()
    assert np.abs(y - exact).mean() > 5e-4


def original_output(bundle: Bundle, ids: np.ndarray) -> np.ndarray:
    return session(bundle.components["model"].model).run(["y"], {"ids": ids})[0]


FAMILIES: dict[str, tuple[Callable, str, bool]] = {
    "llama": (save_text, "llama", False),
    "qwen2 with biases": (save_text, "qwen2", False),
    "qwen3 with head norms": (save_text, "qwen3", False),
    "qwen3, fused norms": (save_text, "qwen3", True),
    "smollm3": (save_text, "smollm3", False),
    "siglip": (save_vision, "siglip_vision_model", False),
    "siglip2, fused norms": (save_vision, "siglip2_vision_model", True),
}
#: Pairs and constants.
COUNTS = {
    "llama": (34, 5),
    "qwen2 with biases": (40, 11),
    "qwen3 with head norms": (46, 9),
    "qwen3, fused norms": (45, 9),
    "smollm3": (34, 5),
    "siglip": (55, 30),
    "siglip2, fused norms": (54, 30),  # the last sum is read by its norm alone
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Bundle, Plan]]:
    """A fresh bundle of a tiny family and its plan."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def saved(name: str) -> Path:
        save, family, _ = FAMILIES[name]
        return save(root / name, family)

    def make(name: str) -> tuple[Bundle, Plan]:
        bundle = export_bundle(Checkpoint.open(saved(name)))
        if FAMILIES[name][2]:
            FuseSkipNorm(lambda role: load_target("cpu").takes_op).run(bundle)
        return bundle, plan_of(bundle)

    return make


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.usefixtures("checked")
def test_a_whole_component_computes_what_numpy_computes(tiny: Callable[[str], tuple[Bundle, Plan]], name: str) -> None:
    original, plan = tiny(name)
    (component,) = original.components.values()
    ranges = calibrated(original, plan, coarse=64)
    feeds = feeds_of(component, 9)
    expected = simulate(component, ranges[component.name], feeds)
    unrounded = simulate(component, {}, feeds, rounds=False)
    bundle, _ = tiny(name)
    QuantizeWeightsQDQ(plan, SOLVERS).run(bundle)
    assert calibrated_values(next(iter(bundle.components.values())), plan) == calibrated_values(component, plan)
    assert calibrated_values(component, plan) == tuple(ranges[component.name])
    quantized = quantize(bundle, plan, ranges)
    rounds = Counter(n.op_type for n in quantized.graph)["QuantizeLinear"]
    assert (rounds, bundle.journal[-1].changed - rounds) == COUNTS[name]
    for optimization in OPTIMIZATIONS:
        outputs = session(quantized.model, optimization).run(None, feeds)
        for y, simulated, exact in zip(outputs, expected, unrounded, strict=True):
            assert np.abs(y - exact).mean() > 1e-3  # of order one
            assert np.abs(y - simulated).mean() <= QUANTIZED_ACTIVATIONS * np.abs(y - exact).mean()


def test_the_comparison_sees_one_value_that_is_rounded_otherwise(tiny: Callable[[str], tuple[Bundle, Plan]]) -> None:
    bundle, plan = tiny("llama")
    (component,) = bundle.components.values()
    ranges, feeds = calibrated(bundle, plan, coarse=64), feeds_of(component, 9)
    exact, all_rounded = (simulate(component, ranges["model"], feeds, rounds=rounds)[0] for rounds in (False, True))
    low, high = ranges["model"]["model.layers.1.mlp.up_proj:0"]
    finer = {**ranges["model"], "model.layers.1.mlp.up_proj:0": (low / 64, high / 64)}
    change = np.abs(simulate(component, finer, feeds)[0] - all_rounded).mean()
    assert change > 3 * QUANTIZED_ACTIVATIONS * np.abs(all_rounded - exact).mean()


def test_16_bits_change_little(tiny: Callable[[str], tuple[Bundle, Plan]]) -> None:
    original, plan = tiny("llama")
    (component,) = original.components.values()
    feeds = feeds_of(component, 2)
    ranges = calibrated(original, plan)
    exact = simulate(component, {}, feeds, rounds=False)[0]
    bundle, _ = tiny("llama")
    y = session(quantize(bundle, plan, ranges).model, "optimized").run(None, feeds)[0]
    assert np.abs(y - exact).max() < 2e-3 * np.abs(exact).max()


def test_what_no_product_is_planned_for_stays_float() -> None:
    bundle, plan = gated(planned=False)
    before = str(bundle.components["model"].graph)
    QuantizeActivations(plan, {}).run(bundle)
    assert str(bundle.components["model"].graph) == before
    assert bundle.journal[-1].changed == 0


def test_a_plan_without_static_activations_says_so() -> None:
    bundle, plan = gated()
    plan = replace(plan, activations=None)
    QuantizeActivations(plan, {}).run(bundle)
    assert [s.reason for s in bundle.journal[-1].skipped] == ["the plan asks for no static activations"]
    assert calibrated_values(bundle.components["model"], plan) == ()


WRONG: dict[str, tuple[tuple[float, float] | None, str]] = {
    "missing": (None, "no range was calibrated"),
    "not a number": ((np.nan, 1), "is not finite"),
    "infinite": ((0, np.inf), "is not finite"),
    "empty": ((0, 0), "is empty"),
    "reversed": ((1, -1), "is empty"),
    "below float32": ((0, 1e-40), "is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_range_is_refused_before_anything_changes(case: str) -> None:
    wrong, complaint = WRONG[case]
    bundle, plan = gated()
    ranges = calibrated(bundle, plan)
    del ranges["model"]["gate:0"]
    if wrong is not None:
        ranges["model"]["gate:0"] = wrong
    before = str(bundle.components["model"].graph)

    def perform() -> None:
        check_ranges(expressions(ranges))
        QuantizeActivations(plan, expressions(ranges)).run(bundle)

    with pytest.raises(UserError, match=r"calibration\.range.*gate:0") as error:
        perform()
    assert complaint in error.value.cause
    assert str(bundle.components["model"].graph) == before


def test_a_wrong_range_that_nobody_checked_is_found_when_it_is_written() -> None:
    bundle, plan = gated()
    ranges = calibrated(bundle, plan)
    ranges["model"]["gate:0"] = (0, np.inf)
    component = quantize(bundle, plan, ranges)
    with pytest.raises(UserError, match=r"calibration\.range.*gate:0"):
        pair(component, "gate:0")


def test_every_range_that_no_scale_fits_is_named_at_once() -> None:
    wrong = expressions({"a": {"x": (0, 0), "y": (-1, 1)}, "b": {"z": (np.nan, 1)}})
    with pytest.raises(UserError) as error:
        check_ranges(wrong)
    assert [p.cause.partition(":")[0] for p in error.value.problems] == ["x", "z"]


def test_a_constant_that_is_not_finite_is_found_when_it_is_written(tmp_path: Path) -> None:
    bundle, plan = gated()
    ranges = calibrated(bundle, plan)
    bundle.components["model"].graph.initializers["norm"].const_value.numpy()[3] = np.nan
    quantize(bundle, plan, ranges)
    with pytest.raises(UserError, match=r"checkpoint\.not_finite"):
        write_components(bundle, tmp_path, 1, lambda done: None)


def test_every_wrong_range_is_named_once_and_at_once() -> None:
    bundle, plan = gated()
    with pytest.raises(UserError) as error:
        QuantizeActivations(plan, {}).run(bundle)
    assert len(error.value.problems) == len(calibrated_values(bundle.components["model"], plan)) == 9


@given(st.floats(-1e4, 0), st.floats(0, 1e4), st.sampled_from(ActivationType))
def test_levels_span_the_range_and_hold_zero(low: float, high: float, type: ActivationType) -> None:
    if high - low < 1e-6:
        return
    scale, zero = affine(low, high, type)
    info = np.iinfo(type.value)
    assert info.min <= zero <= info.max
    assert (info.min - zero) * scale == pytest.approx(low, abs=1.01 * scale)
    assert (info.max - zero) * scale == pytest.approx(high, abs=1.01 * scale)


def test_a_constant_that_two_operators_read_is_rounded_once() -> None:
    bundle, plan = gated()
    graph = bundle.components["model"].graph
    nodes = {node.name: node for node in graph}
    doubled = ir.node("Add", [nodes["inner"].outputs[0], nodes["bias"].inputs[1]], name="doubled")
    doubled.outputs[0].name = "doubled:0"
    graph.insert_after(nodes["inner"], doubled)
    nodes["down"].replace_input_with(0, doubled.outputs[0])
    quantize(bundle, plan, calibrated(bundle, plan))
    assert sum(node.name == "bias.dequantize" for node in graph) == 1
    assert sum("bias" in name for name in graph.initializers) == 3 + 2  # of the constant, and of the value bias:0


def test_a_package_in_qdq_form_generates(tmp_path: Path) -> None:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og

    checkpoint = save_text(tmp_path / "checkpoint", "llama")
    package = build(open_request(checkpoint, "cpu", "float32", tmp_path / "package")).output
    bundle = export_bundle(Checkpoint.open(checkpoint))
    plan = plan_of(bundle)
    component = quantize(bundle, plan, calibrated(bundle, plan))
    copied = shutil.copytree(package, tmp_path / "static")
    onnx.save_model(ir.to_proto(component.model), copied / "model.onnx")
    ids = np.random.default_rng(0).integers(0, 20, 12)
    model = og.Model(str(copied))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=40, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(ids.astype(np.int32)[None])
    tokens = []
    for _ in range(8):
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    run = session(component.model)
    for step in range(8):
        feeds = feeds_of(component) | {
            "input_ids": np.array([[*ids, *tokens[:step]]]),
            "attention_mask": np.ones((1, 12 + step), np.int64),
        }
        assert int(run.run(["logits"], feeds)[0].argmax()) == tokens[step]


def products_that_end_a_graph(*, rounded: bool) -> Component:
    """A head alone, its range known, quantized as a plan asks."""
    b = GraphBuilder("model")
    weight = np.random.default_rng(0).normal(size=(WIDTH, INNER)).astype(np.float32)
    x = b.input("x", ir.DataType.FLOAT, ["n", WIDTH])
    b.output(b.op("MatMul", x, b.constant(weight, "w"), name="head"), "logits", ir.DataType.FLOAT, ["n", INNER])
    bundle = Bundle("test")
    bundle.add(Component("model", Role.DECODER, b.model(), "model"))
    plan = plan_of(bundle)
    plan = replace(plan, activations=replace(plan.activations, products=rounded))
    names = calibrated_values(bundle.components["model"], plan)
    assert names == (("x", "logits") if rounded else ("x",))
    QuantizeWeightsQDQ(plan, SOLVERS).run(bundle)
    ranges = {name: Constant(np.array([-1, 1], np.float32)) for name in names}
    for _ in range(2):  # the second time changes nothing
        QuantizeActivations(plan, {"model": ranges}).run(bundle)
    return bundle.components["model"]


def test_a_product_that_ends_a_graph_is_rounded_where_compilers_ask_for_it() -> None:
    plain, rounded = (products_that_end_a_graph(rounded=r) for r in (False, True))
    assert [v.name for v in rounded.graph.outputs] == ["logits"]
    assert [node.op_type for node in rounded.graph][-3:] == ["MatMul", "QuantizeLinear", "DequantizeLinear"]
    assert plain.graph[-1].op_type == "MatMul"
    x = 0.05 * np.random.default_rng(1).normal(size=(4, WIDTH)).astype(np.float32)
    one, other = (session(c.model).run(None, {"x": x})[0] for c in (plain, rounded))
    step = 4 / 65535  # of the range -2 to 2: there is room for logits that calibration did not see
    assert np.abs(one).max() < 2
    assert 0 < np.abs(one - other).max() <= 0.51 * step


def test_logits_beyond_the_calibrated_range_keep_their_order() -> None:
    """Why there is room: where two logits are cut to the same number, the larger one is not an answer any more."""
    rounded = products_that_end_a_graph(rounded=True)
    x = np.random.default_rng(1).normal(size=(1, WIDTH)).astype(np.float32)
    plain = session(products_that_end_a_graph(rounded=False).model)
    x *= 1.8 / np.abs(plain.run(None, {"x": 0.1 * x})[0]).max() * 0.1
    expected, found = plain.run(None, {"x": x})[0], session(rounded.model).run(None, {"x": x})[0]
    assert np.abs(expected).max() > 1.5
    np.testing.assert_allclose(found, expected, atol=1e-3)
