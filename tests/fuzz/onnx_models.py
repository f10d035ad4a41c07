"""ONNX files that somebody could have made: random operators, damaged bytes, external data and functions that lie.

A case is made by a seed. Most parts of a graph are as its schema wants them, so that what is wrong lies deep.
"""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

_OPSETS = (7, 11, 12, 13, 17, 18, 20, 21, 23)
_COMMON = (TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT16, TensorProto.BOOL)
_RARE = (
    TensorProto.DOUBLE,
    TensorProto.BFLOAT16,
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.STRING,
    TensorProto.UINT64,
)
_LOCATIONS = (
    *["data.bin", "data.bin", "sub/data.bin", "../data.bin", "/etc/passwd", "", ".", "no.bin", "link.bin", "sub"],
    *["model.onnx", "*/_ORT_MEM_ADDR_/*", "a\0b", "x" * 5000, "/dev/zero", "data.bin/"],
)
_SHAPES = ([], [1], [4], [1, 4], [2, 3], [4, 4], [1, 3, 8, 8], [2, 0], [1, 1, 1, 1, 1, 1], ["n", 4])
_FLOATS = TensorProto.FLOAT, None
_CHANGES = ("none", "none", "none", "cycle", "missing", "twice", "no output", "ir", "opset", "domain", "type", "name")


def crafted(seed: int, directory: Path) -> Path:
    """One to five random operators that read each other, with one thing that may be wrong in the whole."""
    draw = random.Random(seed)
    opset = draw.choice(_OPSETS)
    names = sorted({s.name for s in defs.get_all_schemas() if not s.domain and not s.deprecated})
    values: dict[str, int] = {}
    inputs, constants, nodes = [], [], []

    def value(dtype: int) -> str:
        known = [name for name, other in values.items() if other == dtype]
        if known and draw.random() < 0.6:
            return draw.choice(known)
        name, shape = f"x{len(values)}", draw.choice(_SHAPES)
        values[name] = dtype
        if draw.random() < 0.4 and "n" not in shape and dtype not in (TensorProto.STRING, TensorProto.BFLOAT16):
            array = np.asarray(draw.choice([0, 1, 2, -1, 5]) * np.ones(shape), helper.tensor_dtype_to_np_dtype(dtype))
            constants.append(numpy_helper.from_array(array, name))
        else:
            inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    for place in range(draw.randint(1, 5)):
        name = draw.choice(names)
        if not defs.has(name, opset):
            continue
        node, made = _node(draw, defs.get_schema(name, opset), value, place)
        nodes.append(node)
        values |= made
    if not nodes:
        nodes = [helper.make_node("Relu", [value(TensorProto.FLOAT)], ["v0_0"])]
    outputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(filter(None, nodes[-1].output))]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, constants), opset_imports=[helper.make_opsetid("", opset)]
    )
    model.ir_version = 8
    _change(draw, model)
    return _saved(model, directory)


def mutated(seed: int, directory: Path) -> Path:
    """A sound model with some bytes changed, cut out, doubled or put in."""
    draw = random.Random(seed)
    data = bytearray(sound(draw).SerializeToString())
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        place = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                data[place] = draw.randrange(256)
            case 1:
                del data[place : place + draw.randint(1, 8)]
            case 2:
                data[place:place] = data[place : place + draw.randint(1, 16)]
            case _:
                data[place:place] = draw.randbytes(draw.randint(1, 8))
    path = directory / "model.onnx"
    path.write_bytes(bytes(data))
    return path


def lying(seed: int, directory: Path) -> Path:
    """A model whose external data is not as it says."""
    draw = random.Random(seed)
    model = sound(draw)
    tensor = model.graph.initializer[0]
    size = len(tensor.raw_data)
    (directory / "data.bin").write_bytes(tensor.raw_data)
    (directory / "sub").mkdir(exist_ok=True)
    (directory / "sub" / "data.bin").write_bytes(tensor.raw_data)
    (directory / "link.bin").unlink(missing_ok=True)
    (directory / "link.bin").symlink_to(draw.choice(["data.bin", "/etc/passwd", "../../../etc/passwd", "link.bin"]))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {
        "location": draw.choice(_LOCATIONS),
        "offset": draw.choice(["", "0", "0", "4", "-1", str(2**62), "9" * 5000, "zero", "1.5", " 0"]),
        "length": draw.choice(["", str(size), str(size), "0", "-1", str(2**40), "9" * 5000, "all"]),
    }
    for key, text in entries.items():
        if text or key == "location":
            tensor.external_data.add(key=key, value=text)
    if draw.random() < 0.2:
        del tensor.dims[:]
        tensor.dims.extend(draw.choice([[-1], [2**62, 4], [0], [2**31, 2**31], []]))
    if draw.random() < 0.1:
        tensor.data_type = draw.choice([0, 8, 99, 21])
    return _saved(model, directory)


def called(seed: int, directory: Path) -> Path:
    """Functions that call each other, in a circle or with wrong numbers of values, of several opsets."""
    draw = random.Random(seed)
    opset = draw.choice((13, 17, 21))
    functions = []
    for place in range(draw.randint(1, 4)):
        body = [
            helper.make_node(
                draw.choice(["Relu", "Softmax", "Neg", "NoSuch"][: 3 + (draw.random() < 0.1)]), ["a"], ["t"]
            )
        ]
        target = draw.randrange(5)
        inner = helper.make_node(f"F{target}", ["t"] * draw.choice([1, 1, 1, 2]), ["b"], domain="example")
        body.append(inner if draw.random() < 0.5 else helper.make_node("Abs", ["t"], ["b"]))
        versions = [helper.make_opsetid("", draw.choice((opset, opset, 9, 11, 18)))]
        if draw.random() < 0.9:
            versions.append(helper.make_opsetid("example", 1))
        functions.append(helper.make_function("example", f"F{place}", ["a"], ["b"], body, versions))
    if draw.random() < 0.1:
        functions.append(functions[0])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("F0", ["x"], ["y"], domain="example", name="call")],
        "g",
        [value("x", TensorProto.FLOAT, [2, 4])],
        [onnx.ValueInfoProto(name="y")],
    )
    versions = [helper.make_opsetid("", opset), helper.make_opsetid("example", 1)]
    model = helper.make_model(graph, opset_imports=versions, functions=functions)
    model.ir_version = 8
    return _saved(model, directory)


KINDS: dict[str, Callable[[int, Path], Path]] = {
    "crafted": crafted,
    "mutated": mutated,
    "lying": lying,
    "called": called,
}


def sound(draw: random.Random) -> onnx.ModelProto:
    """A small model that onnxruntime loads: a product, sizes from Shape, a branch."""
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    value = helper.make_tensor_value_info
    branch = helper.make_graph([helper.make_node("Neg", ["m"], ["n"])], "then", [], [value("n", *_FLOATS)])
    other = helper.make_graph([helper.make_node("Abs", ["m"], ["o"])], "else", [], [value("o", *_FLOATS)])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
        helper.make_node("Shape", ["m"], ["s"]),
        helper.make_node("Concat", ["s", "one"], ["t"], axis=0),
        helper.make_node("Reshape", ["m", "t"], ["r"]),
        helper.make_node("Softmax", ["r"], ["y"], axis=draw.choice([0, 1, -1])),
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=other),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [2, 4]), value("c", TensorProto.BOOL, [])],
        [value("y", TensorProto.FLOAT, None), value("z", TensorProto.FLOAT, None)],
        [weight, one],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", draw.choice((13, 17, 21)))])
    model.ir_version = 8
    return model


def _node(
    draw: random.Random, schema: defs.OpSchema, value: Callable[[int], str], place: int
) -> tuple[onnx.NodeProto, dict[str, int]]:
    """A node of an operator, and the element types of what it writes, guessed."""
    wrong = draw.random() < 0.15
    main = draw.choice(_COMMON if draw.random() < 0.7 else _RARE)
    bound: dict[str, int] = {}
    names = []
    for formal in schema.inputs:
        option = formal.option.name
        if option == "Optional" and draw.random() < 0.6:
            names.append("")
            continue
        count = draw.randint(1, 3) if option == "Variadic" else 1
        for _ in range(count):
            names.append(value(bound.setdefault(formal.type_str, _type_of(draw, formal, main))))
    if wrong:
        names = draw.choice([[], names[:-1], [*names, value(main)], ["", *names[1:]]])
    while names and not names[-1]:
        names.pop()
    least, most = max(1, schema.min_output), max(1, min(3, schema.max_output))
    outputs = [f"v{place}_{number}" for number in range(draw.randint(least, max(least, most)))]
    node = helper.make_node(schema.name, names, outputs)
    for name, attribute in schema.attributes.items():
        if attribute.required or draw.random() < 0.2:
            _attribute(draw, node, name, attribute.type.name, 0.1)
    if draw.random() < 0.03:
        node.attribute.append(helper.make_attribute("surplus", 1))
    kinds = [formal.type_str for formal in schema.outputs] or [""]
    made = {name: bound.get(kinds[min(i, len(kinds) - 1)], TensorProto.FLOAT) for i, name in enumerate(outputs)}
    return node, made


def _type_of(draw: random.Random, formal: defs.OpSchema.FormalParameter, main: int) -> int:
    """An element type that a formal input takes, mostly."""
    names = {TensorProto.DataType.Name(one).lower(): one for one in (*_COMMON, *_RARE)}
    taken = [one for name, one in names.items() if f"tensor({name})" in formal.types]
    if main in taken or not taken or draw.random() < 0.05:
        return main
    return draw.choice(sorted(taken))


def _attribute(draw: random.Random, node: onnx.NodeProto, name: str, kind: str, wrong: float) -> None:
    number = draw.choice([0, 1, 1, 2, -1, 3, 7, -(2**31), 2**62])
    usual = {
        "INT": number,
        "INTS": [draw.choice([0, 1, 2, -1])] * draw.randint(0, 4),
        "FLOAT": draw.choice([0.0, 1.0, -1.0, float("nan")]),
        "FLOATS": [1.0] * draw.randint(0, 3),
        "STRING": draw.choice(["", "constant", "nearest", "linear", "\N{SNOWMAN}", "ij,jk->ik"]),
        "STRINGS": ["a"],
        "TENSOR": numpy_helper.from_array(np.array([draw.choice([0, 1, 2**40])], np.int64), "t"),
        "GRAPH": helper.make_graph([], "inner", [], []),
    }
    if name == "to":
        usual["INT"] = draw.choice([*_COMMON, *_RARE, 0, 99])
    given = draw.choice(sorted(usual)) if draw.random() < wrong else kind
    made = usual.get(given)
    if made is not None:
        node.attribute.append(helper.make_attribute(name, made, attr_type=getattr(onnx.AttributeProto, given)))


def _change(draw: random.Random, model: onnx.ModelProto) -> None:
    """Break one thing, or nothing."""
    node = draw.choice(model.graph.node)
    match draw.choice(_CHANGES):
        case "cycle" if node.input and node.output:
            node.input[0] = node.output[0]
        case "missing" if node.input:
            node.input[draw.randrange(len(node.input))] = "nowhere"
        case "twice" if node.output:
            model.graph.node.append(node)
        case "no output":
            model.graph.output.append(onnx.ValueInfoProto(name="nothing"))
        case "ir":
            model.ir_version = draw.choice([0, -1, 1, 3, 13, 14, 2**40])
        case "opset":
            model.opset_import[0].version = draw.choice([0, -1, 1, 5, 26, 27, 99, 2**40])
        case "domain":
            node.domain = draw.choice(["com.microsoft", "ai.onnx", "nobody", "ai.onnx.ml"])
        case "type" if model.graph.input:
            model.graph.input[0].type.tensor_type.elem_type = draw.choice([0, 1, 7, 99, 14])
        case "name":
            node.op_type = draw.choice(["", "NoSuch", "Relu", "Add", "\N{SNOWMAN}"])
        case _:
            return


def _saved(model: onnx.ModelProto, directory: Path) -> Path:
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
