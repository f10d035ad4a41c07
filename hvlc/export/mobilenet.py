"""The Visual Resolution Compressor's network: MobileNetV2, attention-weighted pooling, two-layer head.

Widths are read from the stored kernels; every batch norm is folded into its convolution when the weights
are written: `w * g / sqrt(v + eps)` and `b - m * g / sqrt(v + eps)`.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder

#: Bounds of the log of the spread.
SPREADS = (-4.0, 1.0)

_STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)  # MobileNetV2 (arXiv 1801.04381, table 2)


@dataclass(frozen=True)
class _Features:
    """An activation and its number of channels."""

    value: ir.Value
    width: int


def _convolution(
    b: GraphBuilder,
    x: _Features,
    path: str,
    epsilon: float,
    *,
    kernel: int = 1,
    stride: int = 1,
    depthwise: bool = False,
    relu6: bool = True,
) -> _Features:
    """Convolution with its batch norm folded in, and ReLU6."""
    kernel_name, norm = f"{path}.convolution.weight", f"{path}.normalization"
    out = x.width if depthwise else b.stored_size(kernel_name, 0, x.width)
    shape = (out, 1 if depthwise else x.width, kernel, kernel)
    weight = b.parameter(kernel_name, shape)
    parts = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (b.parameter(f"{norm}.{part}", (out,)) for part in parts)

    def factor(gamma: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return gamma / np.sqrt(variance + np.float32(epsilon))

    def folded_weight(weight: np.ndarray, gamma: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return weight * factor(gamma, variance)[:, None, None, None]

    def folded_bias(beta: np.ndarray, mean: np.ndarray, gamma: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return beta - mean * factor(gamma, variance)

    padding = (kernel - 1) // 2
    y = b.op(
        "Conv",
        x.value,
        b.computed(kernel_name, shape, folded_weight, weight, gamma, variance),
        b.computed(f"{path}.convolution.bias", (out,), folded_bias, beta, mean, gamma, variance),
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[padding] * 4,
        group=out if depthwise else 1,
        name=path,
    )
    if relu6:
        y = b.op("Clip", y, b.constant(np.array(0, np.float32)), b.constant(np.array(6, np.float32)))
    return _Features(y, out)


def _inverted_residual(b: GraphBuilder, x: _Features, path: str, epsilon: float, stride: int) -> _Features:
    y = _convolution(b, x, f"{path}.expand_1x1", epsilon)
    y = _convolution(b, y, f"{path}.conv_3x3", epsilon, kernel=3, stride=stride, depthwise=True)
    y = _convolution(b, y, f"{path}.reduce_1x1", epsilon, relu6=False)
    if stride > 1 or x.width != y.width:
        return y
    return _Features(b.op("Add", x.value, y.value, name=f"{path}.residual"), y.width)


def _backbone(b: GraphBuilder, pixels: ir.Value, path: str, epsilon: float) -> _Features:
    """float `[1, 3, P, P]` to float `[1, width, P / 32, P / 32]`."""
    x = _convolution(b, _Features(pixels, 3), f"{path}.conv_stem.first_conv", epsilon, kernel=3, stride=2)
    x = _convolution(b, x, f"{path}.conv_stem.conv_3x3", epsilon, kernel=3, depthwise=True)
    x = _convolution(b, x, f"{path}.conv_stem.reduce_1x1", epsilon, relu6=False)
    for index, stride in enumerate(_STRIDES):
        x = _inverted_residual(b, x, f"{path}.layer.{index}", epsilon, stride)
    return _convolution(b, x, f"{path}.conv_1x1", epsilon)


@dataclass(frozen=True)
class QuestionShape:
    """Sizes of the branch that reads the question.

    Attributes:
        vocabulary: rows of its table.
        width: of the table.
        channels: of its convolutions.
        window: tokens that each spans, an odd number.
    """

    vocabulary: int
    width: int
    channels: int
    window: int


def resolution_compressor(
    b: GraphBuilder,
    path: str,
    proxy_size: int,
    epsilon: float,
    question: QuestionShape | None = None,
    *,
    graded: bool = False,
) -> ir.Model:
    """The network alone (HyperVLResolutionCompressor.forward; with a question, `hvlc.training.vrc.network`).

    Args:
        b: an empty graph.
        path: dotted name of the compressor in the checkpoint.
        proxy_size: side in pixels of its view.
        epsilon: of the batch norms.
        question: None: the network sees the image alone.
        graded: whether the network says how sure it is.

    Returns:
        Input `proxy_values` float `[1, 3, P, P]`; `question_ids` int64 `[tokens]` where it reads the question. Output
        `log_size` float `[1]`: log of (wanted longest side / P); `log_spread` float `[1]` where it says how sure it is.
    """
    proxy = b.input("proxy_values", ir.DataType.FLOAT, [1, 3, proxy_size, proxy_size])
    found = _backbone(b, proxy, f"{path}.backbone", epsilon)
    features, width = found.value, found.width
    if question is not None:
        features = _modulated(b, features, width, f"{path}.question", question)
    weight = b.weight(f"{path}.attention.weight", (1, width, 1, 1))
    scores = b.op("Conv", features, weight, b.weight(f"{path}.attention.bias", (1,)), kernel_shape=[1, 1])
    weights = b.op("Softmax", b.op("Reshape", scores, b.ints(1, 1, -1)), axis=-1)
    flat = b.op("Reshape", features, b.ints(1, width, -1))
    pooled = b.op("ReduceSum", b.op("Mul", flat, weights), b.ints(-1), keepdims=0)
    hidden = b.stored_size(f"{path}.linear_1.weight", 0, 1)
    x = b.op("Relu", b.linear(pooled, f"{path}.linear_1", width, hidden))
    predicted = b.linear(x, f"{path}.linear_2", hidden, 1)
    b.output(b.op("Reshape", predicted, b.ints(-1)), "log_size", ir.DataType.FLOAT, [1])
    if graded:
        spread = b.op("Reshape", b.linear(x, f"{path}.spread", hidden, 1), b.ints(-1))
        bounds = [b.constant(np.array(bound, np.float32)) for bound in SPREADS]
        b.output(b.op("Clip", spread, *bounds), "log_spread", ir.DataType.FLOAT, [1])
    return b.model()


def _modulated(b: GraphBuilder, features: ir.Value, width: int, path: str, question: QuestionShape) -> ir.Value:
    """Scale and shift channels by what the question says (FiLM, Perez et al., arXiv 1709.07871)."""
    ids = b.input("question_ids", ir.DataType.INT64, ["question_tokens"])
    table = b.weight(f"{path}.table.weight", (question.vocabulary, question.width))
    rows = b.op("Transpose", b.op("Gather", table, ids, axis=0), perm=[1, 0])
    # A column of zeros at the end, so that a question without tokens has one.
    end = b.constant(np.zeros((1, 1), np.float32))
    there = b.op(
        "Expand", b.constant(np.ones((1, 1), np.float32)), b.op("Concat", b.ints(1), b.op("Shape", ids), axis=0)
    )
    there = b.op("Concat", there, end, axis=1)
    blank = b.constant(np.zeros((question.width, 1), np.float32))
    found = b.op("Reshape", b.op("Concat", rows, blank, axis=1), b.ints(1, question.width, -1))
    channels = question.width
    for name in ("conv_1", "conv_2"):
        kernel = (question.channels, channels, question.window)
        weights = (b.weight(f"{path}.{name}.weight", kernel), b.weight(f"{path}.{name}.bias", (question.channels,)))
        padding = [question.window // 2] * 2
        found = b.op("Conv", found, *weights, kernel_shape=[question.window], pads=padding)
        found = b.op("Mul", b.op("Relu", found), there)
        channels = question.channels
    largest = b.op("ReduceMax", found, b.ints(2), keepdims=0)
    film = b.op("Reshape", b.linear(largest, f"{path}.film", channels, 2 * width), b.ints(1, 2 * width, 1, 1))
    gain, shift = b.ops("Split", [film], 2, axis=1, num_outputs=2)
    scaled = b.op("Add", features, b.op("Mul", features, gain))
    return b.op("Add", scaled, shift, name=f"{path}.modulated")
