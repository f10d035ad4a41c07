"""Blocks of models in several types, and graphs within graphs: templates of the corpus."""

import numpy as np
from onnx import TensorProto, helper

from tests.lint.notation import graph, plain
from tests.lint.tape import Case, Tape


def branch(name: str) -> Case:
    """If, with one operator on either side."""
    tape = Tape()
    condition = tape.input("c", (), "bool")
    tape.input("x", (1, 4))
    bodies = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node(op, ["x"], [side], name=side)],
            side,
            [],
            [helper.make_tensor_value_info(side, TensorProto.FLOAT, [1, 4])],
        )
        for side, op in (("then", "Relu"), ("else", "Neg"))
    }
    tape.output(tape.op("If", condition, **bodies), (1, 4))
    return tape.case(name)


def loop(name: str) -> Case:
    """Three steps of a Loop."""
    tape = Tape()
    count = tape.constant(3, np.int64)
    start = tape.input("x", (1, 4))
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "state"], ["next"]), helper.make_node("Identity", ["go_on"], ["still"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go_on", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, [1, 4]),
        ],
        [value("still", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [1, 4])],
    )
    tape.output(tape.op("Loop", count, "", start, body=body), (1, 4))
    return tape.case(name)


def vision(name: str, kind: str) -> Case:
    """A vision layer, attention written out, the second operand of its products in 8 bits."""
    narrow = "q_uint8" if kind.startswith("q_") else kind
    scale = "q_uint8(normal[48], 4.0)" if kind == "q_uint8" else f"{plain(kind)}(standard[48])"
    lines = [f"x, scale, bias = {kind}[1,12,48], {scale}, {scale}"]
    lines += [f"normed = {kind}(LayerNormalization(x, scale, bias, epsilon=1e-6), 16)"]
    for part, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        split = f"{kind}(Reshape({_linear('normed', 48, 48, kind)}, heads), 16)"
        lines += ["heads = int64([1, 12, 4, 12])", f"{part} = {kind}(Transpose({split}, perm={perm}), 16)"]
    lines += [
        f"scores = {kind}(MatMul(query, {narrow}(key, 16)), 16)",
        f"shares = {kind}(Softmax(scores, axis=-1), 16)",
        f"mixed = {kind}(MatMul(shares, {narrow}(value, 16)), 16)",
        f"joined = {kind}(Reshape(Transpose(mixed, perm=[0, 2, 1, 3]), int64([1, 12, 48])), 16)",
        f"{plain(kind)}[1,12,48] = {kind}(Add(x, {_linear('joined', 48, 48, kind)}), 16)",
    ]
    return graph(name, "\n".join(lines), 23)


def mobile(name: str, kind: str) -> Case:
    """A convolution, a depth-wise one and a gate of squeeze and excitation."""

    def conv(value: str, outputs: int, inputs: int, kernel: int, group: int = 1) -> str:
        dims = f"[{outputs},{inputs // group},{kernel},{kernel}]"
        weight = f"{kind}(normal{dims})"
        if kind.startswith("q_"):
            weight = f"DequantizeLinear(int8(levels{dims}), float32(0.004), int8(0))"
        return f"{kind}(Conv({value}, {weight}, group={group}, pads={[kernel // 2] * 4}), 16)"

    lines = (
        f"x = {kind}[1,8,14,14]",
        f"wide = {kind}(HardSwish({conv('x', 16, 8, 1)}), 16)",
        f"deep = {kind}(Relu({conv('wide', 16, 16, 3, 16)}), 16)",
        f"pooled = {kind}(ReduceMean(deep, int64([2, 3])), 16)",
        f"gate = {kind}(HardSigmoid({conv('pooled', 16, 16, 1)}), 16)",
        f"gated = {kind}(Mul(deep, gate), 16)",
        f"{plain(kind)}[1,8,14,14] = {kind}(Add(x, {conv('gated', 8, 16, 1)}), 16)",
    )
    return graph(name, "\n".join(lines))


def decoder(name: str, kind: str) -> Case:
    """A gated unit after a norm that is written out, as exporters leave it."""
    two, epsilon = (f"{kind}(normal[()], 4.0)" if kind.startswith("q_") else f"{kind}({value})" for value in (2, 1e-3))
    lines = (
        f"x, two, epsilon = {kind}[1,6,64], {two}, {epsilon}",
        f"squared = {kind}(Pow(x, two), 16)",
        f"mean = {kind}(ReduceMean(squared, int64([-1])), 16)",
        f"root = {kind}(Sqrt({kind}(Add(mean, epsilon), 16)), 16)",
        f"normed = {kind}(Mul(x, {kind}(Reciprocal(root), 16)), 16)",
        f"gate = {_linear('normed', 64, 96, kind)}",
        f"opened = {kind}(Mul(gate, {kind}(Sigmoid(gate), 16)), 16)",
        f"gated = {kind}(Mul(opened, {_linear('normed', 64, 96, kind)}), 16)",
        f"{plain(kind)}[1,6,64] = {kind}(Add(x, {_linear('gated', 96, 64, kind)}), 16)",
    )
    return graph(name, "\n".join(lines))


def _linear(value: str, inputs: int, outputs: int, kind: str) -> str:
    """Text of a product and a bias; quantized weights are int8 per channel."""
    if not kind.startswith("q_"):
        return f"Add(MatMul({value}, {kind}(normal[{inputs},{outputs}])), {kind}(normal[{outputs}]))"
    scales, zeros = f"float32([0.002] * {outputs})", f"int8([0] * {outputs})"
    weight = f"DequantizeLinear(int8(levels[{inputs},{outputs}]), {scales}, {zeros}, axis=1)"
    return f"{kind}(Add({kind}(MatMul({value}, {weight}), 16), {kind}(normal[{outputs}])), 16)"
