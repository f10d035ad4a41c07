"""The Visual Resolution Compressor's network: MobileNetV2, attention-weighted pooling, two-layer head.

Widths are read from the stored weights; every batch norm is folded into its convolution when the weights
are written: `w * g / sqrt(v + eps)` and `b - m * g / sqrt(v + eps)`.
"""

import numpy as np
import onnx_ir as ir

from hvlc.graph import GraphBuilder

_STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)  # MobileNetV2 (arXiv 1801.04381, table 2)


def _convolution(
    b: GraphBuilder, x: ir.Value, path: str, epsilon: float, *, stride: int = 1, relu6: bool = True
) -> ir.Value:
    """Convolution with its batch norm folded in, and ReLU6; depthwise where the stored kernel says so."""
    kernel_name, norm = f"{path}.convolution.weight", f"{path}.normalization"
    shape = b.parameter(kernel_name).shape
    out, per_group, kernel, _ = shape

    def factor(gamma: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return gamma / np.sqrt(variance + np.float32(epsilon))

    def folded_weight(weight: np.ndarray, gamma: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return weight * factor(gamma, variance)[:, None, None, None]

    def folded_bias(beta: np.ndarray, mean: np.ndarray, gamma: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return beta - mean * factor(gamma, variance)

    scaling = (f"{norm}.weight", f"{norm}.running_var")
    padding = (kernel - 1) // 2
    x = b.op(
        "Conv",
        x,
        b.computed(kernel_name, shape, folded_weight, kernel_name, *scaling),
        b.computed(f"{path}.convolution.bias", (out,), folded_bias, f"{norm}.bias", f"{norm}.running_mean", *scaling),
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[padding] * 4,
        group=out if per_group == 1 and kernel > 1 else 1,
        name=path,
    )
    if not relu6:
        return x
    return b.op("Clip", x, b.constant(np.array(0, np.float32)), b.constant(np.array(6, np.float32)))


def _inverted_residual(b: GraphBuilder, x: ir.Value, path: str, epsilon: float, stride: int) -> ir.Value:
    y = _convolution(b, x, f"{path}.expand_1x1", epsilon)
    y = _convolution(b, y, f"{path}.conv_3x3", epsilon, stride=stride)
    y = _convolution(b, y, f"{path}.reduce_1x1", epsilon, relu6=False)
    into = b.parameter(f"{path}.expand_1x1.convolution.weight").shape[1]
    out = b.parameter(f"{path}.reduce_1x1.convolution.weight").shape[0]
    return b.op("Add", x, y, name=f"{path}.residual") if stride == 1 and into == out else y


def _backbone(b: GraphBuilder, x: ir.Value, path: str, epsilon: float) -> ir.Value:
    """float `[1, 3, P, P]` to float `[1, width, P / 32, P / 32]`."""
    x = _convolution(b, x, f"{path}.conv_stem.first_conv", epsilon, stride=2)
    x = _convolution(b, x, f"{path}.conv_stem.conv_3x3", epsilon)
    x = _convolution(b, x, f"{path}.conv_stem.reduce_1x1", epsilon, relu6=False)
    for index, stride in enumerate(_STRIDES):
        x = _inverted_residual(b, x, f"{path}.layer.{index}", epsilon, stride)
    return _convolution(b, x, f"{path}.conv_1x1", epsilon)


def resolution_compressor(b: GraphBuilder, path: str, proxy_size: int, epsilon: float) -> ir.Model:
    """The network alone (HyperVLResolutionCompressor.forward).

    Args:
        b: an empty graph.
        path: dotted name of the compressor in the checkpoint.
        proxy_size: side in pixels of its view.
        epsilon: of the batch norms.

    Returns:
        Input `proxy_values` float `[1, 3, P, P]`, output `log_size` float `[1]`: log of (wanted longest side / P).
    """
    proxy = b.input("proxy_values", ir.DataType.FLOAT, [1, 3, proxy_size, proxy_size])
    features = _backbone(b, proxy, f"{path}.backbone", epsilon)
    width = b.parameter(f"{path}.backbone.conv_1x1.convolution.weight").shape[0]
    weight = b.weight(f"{path}.attention.weight", (1, width, 1, 1))
    scores = b.op("Conv", features, weight, b.weight(f"{path}.attention.bias", (1,)), kernel_shape=[1, 1])
    weights = b.op("Softmax", b.op("Reshape", scores, b.ints(1, 1, -1)), axis=-1)
    flat = b.op("Reshape", features, b.ints(1, width, -1))
    pooled = b.op("ReduceSum", b.op("Mul", flat, weights), b.ints(-1), keepdims=0)
    hidden = b.parameter(f"{path}.linear_1.weight").shape[0]
    x = b.op("Relu", b.linear(pooled, f"{path}.linear_1", width, hidden))
    x = b.linear(x, f"{path}.linear_2", hidden, 1)
    b.output(b.op("Reshape", x, b.ints(-1)), "log_size", ir.DataType.FLOAT, [1])
    return b.model()
