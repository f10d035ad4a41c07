"""Weights of packages against what onnxruntime computes with them, and against the checkpoint they came from."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hvlc.errors import UserError
from hvlc.manifest.manifest import Manifest
from hvlc.package.initializers import open_initializer
from hvlc.package.weights import StoredWeight, graph_weights, stored_weights
from hvlc.solvers.registry import SOLVERS
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.formats import Levels, ScaleType, Stream, WeightFormat, ZeroType, weight_format

MICROSOFT = "com.microsoft"
EXAMPLES = settings(max_examples=25)


def node_model(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], fed: dict[str, int]) -> onnx.ModelProto:
    """One node; `fed` are its float (or, for look-ups, int64) inputs by element type."""
    inputs = [helper.make_tensor_value_info(name, dtype, None) for name, dtype in fed.items()]
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "one", inputs, outputs, list(constants.values()))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def computed(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


def weights_in(directory: Path, model: onnx.ModelProto) -> list[StoredWeight]:
    path = directory / "g.onnx"
    onnx.save(model, path)
    return graph_weights("g", path, {"g.onnx": path.stat().st_size})


def tensor(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@EXAMPLES
@given(
    bits=st.sampled_from([4, 8]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    block=st.sampled_from([16, 32]),
    zeros=st.sampled_from(["", "integer", "float"]),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_have_the_values_of_onnxruntime(
    place: Path, bits: int, rows: int, columns: int, block: int, zeros: str, half: bool, seed: int
) -> None:
    """A product with the identity gives the matrix; sums of one value and zeros are exact."""
    random = np.random.default_rng(seed)
    blocks = -(-columns // block)
    levels = random.integers(0, 256, (rows, blocks, block * bits // 8), np.uint8)
    scales = random.normal(size=rows * blocks).astype(np.float32)
    constants = {"m.w.int4": tensor("m.w.int4", levels), "m.w.scales": tensor("m.w.scales", scales)}
    if zeros == "integer":
        packed = random.integers(0, 256, (rows, -(-blocks * bits // 8)), np.uint8)
        constants["m.w.zero_points"] = tensor("m.w.zero_points", packed)
    if zeros == "float":
        if bits == 8:
            return  # which onnxruntime's CPU provider refuses
        floats = random.uniform(0, 15, (rows, blocks)).astype(np.float32)
        constants["m.w.zero_points"] = tensor("m.w.zero_points", floats)
    settings = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["x", *constants], ["y"], domain=MICROSOFT, **settings)
    expected = computed(node_model(node, constants, {"x": TensorProto.FLOAT}), x=np.eye(columns, dtype=np.float32)).T
    model = node_model(node, constants, {"x": TensorProto.FLOAT})
    if half:  # as hvlc stores them: float16, widened by a Cast
        values = scales.astype(np.float16)
        wide = {**constants, "m.w.scales": tensor("m.w.scales", values.astype(np.float32))}
        expected = computed(node_model(node, wide, {"x": TensorProto.FLOAT}), x=np.eye(columns, dtype=np.float32)).T
        node.input[2] = "wide"
        model = node_model(node, {**constants, "m.w.scales": tensor("m.w.scales", values)}, {"x": TensorProto.FLOAT})
        model.graph.node.insert(0, helper.make_node("Cast", ["m.w.scales"], ["wide"], to=TensorProto.FLOAT))
    (weight,) = weights_in(place, model)
    assert (weight.name, weight.shape) == ("m.w", (rows, columns))
    loaded = weight.load()
    assert loaded.dtype == np.float32
    if zeros == "float":  # which the kernel folds otherwise
        np.testing.assert_allclose(loaded, expected, rtol=3e-7, atol=3e-6)
    else:
        np.testing.assert_array_equal(loaded, expected)


@EXAMPLES
@given(
    kind=st.sampled_from(["packed4", "packed8", "int4", "uint4"]),
    rows=st.integers(1, 6),
    blocks=st.integers(1, 3),
    zeros=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_tables_have_the_bits_of_onnxruntime(
    place: Path, kind: str, rows: int, blocks: int, zeros: bool, half: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    bits, block = (8 if kind == "packed8" else 4), 16
    scales = random.normal(size=(rows, blocks)).astype(np.float16 if half else np.float32)
    if kind.startswith("packed"):
        levels = tensor("t.int4_rows", random.integers(0, 256, (rows, blocks * block * bits // 8), np.uint8))
        points = tensor("t.z", random.integers(0, 256, (rows, -(-blocks * bits // 8)), np.uint8))
    else:
        dtype, low, high = (TensorProto.INT4, -8, 8) if kind == "int4" else (TensorProto.UINT4, 0, 16)
        levels = helper.make_tensor(
            "t.int4_rows", dtype, (rows, blocks * block), random.integers(low, high, rows * blocks * block).tolist()
        )
        points = helper.make_tensor("t.z", dtype, (rows, blocks), random.integers(low, high, rows * blocks).tolist())
    constants = {"t.int4_rows": levels, "t.scales": tensor("t.scales", scales)} | ({"t.z": points} if zeros else {})
    names = ["t.int4_rows", "ids", "t.scales", *(["t.z"] if zeros else [])]
    settings = {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": bits}
    node = helper.make_node("GatherBlockQuantized", names, ["y"], domain=MICROSOFT, **settings)
    model = node_model(node, constants, {"ids": TensorProto.INT64})
    if half:
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    expected = computed(model, ids=np.arange(rows))
    (weight,) = weights_in(place, model)
    assert weight.name == "t"
    np.testing.assert_array_equal(weight.load().astype(expected.dtype), expected)  # half: rounded once by the look-up


@EXAMPLES
@given(
    dtype=st.sampled_from(["INT4", "UINT4", "INT8", "UINT8"]),
    rows=st.integers(1, 7),
    blocks=st.integers(1, 3),
    form=st.sampled_from(["blocks", "rows", "whole", "columns", "turned blocks"]),
    zeros=st.booleans(),
    seed=st.integers(0, 99),
)
def test_dequantized_constants_have_the_bits_of_onnxruntime(
    place: Path, dtype: str, rows: int, blocks: int, form: str, zeros: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    code, bits = getattr(TensorProto, dtype), int(dtype[-1])
    low, high = (0, 1 << bits) if dtype.startswith("U") else (-(1 << bits - 1), 1 << bits - 1)
    columns = 16 * blocks
    if form == "turned blocks":
        rows, columns = columns, rows
    shape = {
        "blocks": (rows, blocks),
        "rows": (rows,),
        "whole": (),
        "columns": (columns,),
        "turned blocks": (blocks, columns),
    }[form]
    settings = {
        "blocks": {"axis": 1, "block_size": 16},
        "rows": {"axis": 0},
        "whole": {},
        "columns": {"axis": 1},
        "turned blocks": {"axis": 0, "block_size": 16},
    }[form]
    count = int(np.prod(shape))
    constants = {
        "w.int8": helper.make_tensor(
            "w.int8", code, (rows, columns), random.integers(low, high, rows * columns).tolist()
        ),
        "w.s": tensor("w.s", random.normal(size=shape).astype(np.float32)),
    }
    if zeros:
        constants["w.z"] = helper.make_tensor("w.z", code, shape, random.integers(low, high, count).tolist())
    node = helper.make_node("DequantizeLinear", list(constants), ["y"], **settings)
    model = node_model(node, constants, {})
    (weight,) = weights_in(place, model)
    np.testing.assert_array_equal(weight.load(), computed(model))
    model.graph.node.append(helper.make_node("MatMul", ["x", "y"], ["p"]))
    (weight,) = weights_in(place, model)
    assert weight.shape == (columns, rows)  # a product reads it [in, out]
    np.testing.assert_array_equal(weight.load(), computed(node_model(node, constants, {})).T)


FORMATS = [
    weight_format(4, 16),
    weight_format(8, 32, symmetric=False),
    weight_format(4, 32, symmetric=False, scale_type=ScaleType.FLOAT32),
    weight_format(4, 16, symmetric=False, zero_type=ZeroType.FLOAT),
]


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_formats_are_named_and_read_as_the_solver_meant_them(place: Path, format: WeightFormat) -> None:
    weight = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    levels: Levels = SOLVERS["rtn"](weight, format)
    if format.zero_dtype == np.float32 and levels.zero_points is not None:
        levels = replace(levels, zero_points=levels.zero_points.astype(np.float32) + np.float32(0.25))
    constants = {
        "w.int4": tensor("w.int4", levels.stored(Stream.LEVELS)),
        "w.scales": tensor("w.scales", levels.stored(Stream.SCALES)),
    }
    if not format.symmetric:
        constants["w.zero_points"] = tensor("w.zero_points", levels.stored(format.extra[0]))
    read = [n for n in constants if not (format.zero_dtype == np.float32 and n.endswith("points"))]
    settings = {"K": 64, "N": 6, "bits": format.bits, "block_size": format.block_size}
    node = helper.make_node("MatMulNBits", ["x", *read], ["y"], domain=MICROSOFT, **settings)
    (found,) = weights_in(place, node_model(node, constants, {"x": TensorProto.FLOAT}))
    assert found.format == str(format)
    expected = levels.dequantize(64)
    np.testing.assert_allclose(found.load(), expected, rtol=0, atol=1e-6 if format.zero_dtype == np.float32 else 0)
    assert found.bytes == format.bytes(6, 64)


def test_lpbq_scales_are_whole_numbers_times_a_float_of_their_row(place: Path) -> None:
    format = weight_format(4, 16, scale_type=ScaleType.LPBQ, negative_scales=False)
    levels = SOLVERS["rtn"](np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32), format)
    signed = (levels.levels.astype(np.int8) - 8).reshape(6, 64)
    constants = {
        "w.int4": helper.make_tensor("w.int4", TensorProto.INT4, (6, 64), signed.ravel().tolist()),
        "w.scales": tensor("w.scales", levels.stored(Stream.SCALES)),
        "w.factors": tensor("w.factors", levels.stored(Stream.FACTORS)),
    }
    node = helper.make_node("DequantizeLinear", ["w.int4", "scales"], ["y"], axis=1, block_size=16)
    model = node_model(node, constants, {})
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["w.scales", "w.factors"], ["scales"], axis=0))
    (found,) = weights_in(place, model)
    assert (found.name, found.format, found.bytes) == ("w", str(format), format.bytes(6, 64))
    np.testing.assert_array_equal(found.load(), levels.dequantize(64))
    np.testing.assert_array_equal(found.load(), computed(model))


def test_a_float_package_holds_the_checkpoint(tiny_float32: Path, tiny_checkpoint: Path) -> None:
    """Every parameter but the compressor's, which are folded into its convolutions, bit for bit."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    found = {w.name: w for w in stored_weights(tiny_float32, Manifest.load(tiny_float32))}
    seen = set()
    for weight in (w for name, w in found.items() if "resolution_compressor" not in name and "rotary" not in name):
        expected = np.concatenate([checkpoint.tensors[m].read() for m in weight.members])
        loaded = weight.load()
        assert loaded.shape == weight.shape
        np.testing.assert_array_equal(loaded, expected, err_msg=weight.name)
        seen |= set(weight.members)
    missing = {n for n in checkpoint.tensors if "resolution_compressor" not in n} - seen
    assert not missing
    assert any(len(w.members) == 3 for w in found.values())


def product_nodes(directory: Path) -> Iterator[tuple[onnx.ModelProto, onnx.NodeProto, dict[str, onnx.TensorProto]]]:
    model = onnx.load(directory / "model.onnx")
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            yield model, node, constants


def test_a_quantized_package_holds_what_its_nodes_compute_with(tiny_w4a16: Path) -> None:
    weights = {w.name: w for w in stored_weights(tiny_w4a16, Manifest.load(tiny_w4a16)) if w.component == "model"}
    count = 0
    for _, node, constants in product_nodes(tiny_w4a16):
        levels, scales = node.input[1], node.input[2].removesuffix(".float32")
        wide = numpy_helper.to_array(constants[scales]).astype(np.float32)
        alone = {levels: constants[levels], node.input[2]: tensor(node.input[2], wide)}
        size = next(a.i for a in node.attribute if a.name == "K")
        x = node_model(node, alone, {node.input[0]: TensorProto.FLOAT})
        expected = computed(x, **{node.input[0]: np.eye(size, dtype=np.float32)}).T
        np.testing.assert_array_equal(weights[levels.rpartition(".int")[0]].load(), expected)
        count += 1
    assert count == sum(w.format.startswith("int") for w in weights.values())


def test_names_are_the_checkpoints(tiny_w4a16: Path, tiny_checkpoint: Path) -> None:
    names = set(Checkpoint.open(tiny_checkpoint).tensors)
    for weight in stored_weights(tiny_w4a16, Manifest.load(tiny_w4a16)):
        if "rotary" not in weight.name and "resolution_compressor" not in weight.name:
            assert set(weight.members) <= names, weight.name


def test_packed_names_have_members() -> None:
    weight = StoredWeight("m", "a.0.q_proj+k_proj.weight", (2, 2), "float32", 16, values=None)  # type: ignore[arg-type]
    assert weight.members == ("a.0.q_proj.weight", "a.0.k_proj.weight")


Damage = Callable[[onnx.ModelProto], None]


def shortened(model: onnx.ModelProto) -> None:
    scales = next(t for t in model.graph.initializer if t.name.endswith(".scales"))
    scales.CopyFrom(tensor(scales.name, numpy_helper.to_array(scales)[:-1]))


def wider(model: onnx.ModelProto) -> None:
    next(a for a in model.graph.node[0].attribute if a.name == "N").i = 1000


def three_bits(model: onnx.ModelProto) -> None:
    next(a for a in model.graph.node[0].attribute if a.name == "bits").i = 3


def ordered(model: onnx.ModelProto) -> None:
    model.graph.node[0].input.extend(["", "order"])


def unknown_scales(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[2] = "x"


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (shortened, "package.graph"),
        (wider, "package.graph"),
        (three_bits, "package.weight"),
        (ordered, "package.weight"),
        (unknown_scales, "package.weight"),
    ],
)
def test_what_cannot_be_read_is_an_error(place: Path, damage: Damage, code: str) -> None:
    levels = SOLVERS["rtn"](np.ones((4, 32), np.float32), weight_format(4, 16))
    constants = {
        "w.int4": tensor("w.int4", levels.stored(Stream.LEVELS)),
        "w.scales": tensor("w.scales", levels.stored(Stream.SCALES)),
    }
    settings = {"K": 32, "N": 4, "bits": 4, "block_size": 16}
    node = helper.make_node("MatMulNBits", ["x", *constants], ["y"], domain=MICROSOFT, **settings)
    model = node_model(node, constants, {"x": TensorProto.FLOAT})
    assert weights_in(place, model)
    damage(model)
    with pytest.raises(UserError) as caught:
        weights_in(place, model)
    assert caught.value.code == code


def external(**place: Any) -> onnx.TensorProto:
    found = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in place.items():
        found.external_data.add(key=key, value=str(value))
    return found


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ({"location": "../secret", "length": 8}, "package.escape"),
        ({"location": "absent.data", "length": 8}, "package.incomplete"),
        ({"location": "d", "offset": 12, "length": 8}, "package.graph"),
        ({"location": "d", "offset": 0, "length": 4}, "package.graph"),
        ({"location": "d"}, "package.graph"),
    ],
)
def test_data_is_read_from_inside_the_package_alone(tmp_path: Path, where: dict[str, Any], code: str) -> None:
    (tmp_path / "d").write_bytes(bytes(16))
    with pytest.raises(UserError) as caught:
        open_initializer(tmp_path / "g.onnx", external(**where), {"d": 16})
    assert caught.value.code == code
    good = open_initializer(tmp_path / "g.onnx", external(location="d", offset=8, length=8), {"d": 16})
    np.testing.assert_array_equal(good.read(), np.zeros(2, np.float32))


def test_a_package_without_a_file_is_an_error(tiny_w4a16: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_w4a16, tmp_path / "package"))
    (copy / "model.onnx.data").unlink()
    with pytest.raises(UserError, match="missing"):
        stored_weights(copy, Manifest.parse(json.loads((copy / "hvlc.json").read_text()), "hvlc.json"))
