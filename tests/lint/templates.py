"""Operators whose constants depend on each other: templates of the corpus."""

import numpy as np

from tests.lint.tape import LEVELS, MICROSOFT, NARROW, Case, H, K, N, S, Tape, X


def blockwise(
    name: str,
    bits: int,
    block: int,
    dtype: str = "float32",
    zero: int | None = None,
    bias: bool = False,
    activation: str = "",
    negative: bool = False,
    features: int = K,
) -> Case:
    """A product by com.microsoft's MatMulNBits.

    Args:
        name: of the case.
        bits: of a weight.
        block: weights that share a scale.
        dtype: of input, scales and output.
        zero: byte that zero points consist of, None for no zero points.
        bias: whether there is one.
        activation: integer type of quantized activations, "" for float ones.
        negative: whether every other scale is.
        features: of the input.
    """
    tape, blocks = Tape(), -(-features // block)
    x = tape.input("x", (1, S, features), dtype)
    x = tape.quantized(x, activation) if activation else x
    levels = tape.constant(tape.random.integers(0, 256, (N, blocks, block * bits // 8)), np.uint8)
    scales = tape.random.random(N * blocks) * 0.02 + 0.01
    scales[::2] *= -1 if negative else 1
    given = [x, levels, tape.constant(scales, dtype)]
    if zero is not None:
        given.append(tape.constant(np.full(N * ((blocks * bits + 7) // 8), zero), np.uint8))
    if bias:
        given += [""] * (5 - len(given)) + [tape.normal(N, dtype=dtype)]
    y = tape.op("MatMulNBits", *given, domain=MICROSOFT, K=features, N=N, bits=bits, block_size=block)
    tape.output(tape.quantized(y, activation, 20) if activation else y, (1, S, N), dtype)
    return tape.case(name)


def grouped(
    name: str, dtype: str, length: int = 1, rotary: int = 1, lengths: tuple[int, ...] = (1,), **attributes: object
) -> Case:
    """Attention with a cache of 16 tokens by com.microsoft's GroupQueryAttention.

    Args:
        name: of the case.
        dtype: of keys, values and queries.
        length: of the tokens that are new.
        rotary: 1 if it turns queries and keys.
        lengths: dims of `seqlens_k` and of the total length.
        attributes: further ones of the node.
    """
    tape, heads, shared, width, past = Tape(), 4, 2, 16, 16
    query = tape.input("q", (1, length, heads * width), dtype)
    keys = [tape.input(n, (1, length, shared * width), dtype) for n in "kv"]
    cache = [tape.input(n, (1, shared, past, width), dtype) for n in ("past_k", "past_v")]
    counts = [tape.input(n, lengths, "int32") for n in ("seqlens_k", "total_sequence_length")]
    tables = [tape.normal(past, width // 2, dtype=dtype) for _ in range(2)] if rotary else []
    made = tape.op(
        "GroupQueryAttention",
        *[query, *keys, *cache, *counts, *tables],
        domain=MICROSOFT,
        outputs=3,
        num_heads=heads,
        kv_num_heads=shared,
        do_rotary=rotary,
        **attributes,
    )
    tape.output(made, (1, length, heads * width), dtype)
    for place in (1, 2):
        tape.output(f"{made}_{place}", (1, shared, past, width), dtype)
    return tape.case(name)


def dequantized(
    tape: Tape, dims: tuple[int, int], dtype: str, grain: str, axis: int, *, negative: bool = False, bare: bool = False
) -> str:
    """A dequantized constant `dims`, channels along `axis`, blocks along the other one.

    Args:
        tape: takes it.
        dims: of the constant.
        dtype: of the integers.
        grain: "tensor", "channel", "blockN" or "lpbqN".
        axis: of the channels.
        negative: whether some scales are.
        bare: whether the zero point, which is 0, is left out.
    """
    kind, size = (grain[:5], int(grain[5:])) if grain.startswith("block") else (grain, 0)
    if grain.startswith("lpbq"):
        kind, size = "lpbq", int(grain[4:])
    channels, along = dims[axis], 1 - axis
    wide = dtype in LEVELS
    middle = 0 if bare else LEVELS[dtype][2] if wide else (8 if dtype == "uint4" else 0)
    element = np.dtype(dtype) if wide else NARROW[dtype]
    reach = {"int16": 8000, "uint16": 8000}.get(dtype, 100 if wide else 7)
    levels = tape.constant(tape.random.integers(-reach, reach, dims) + middle, element)
    step = 0.05 / reach
    blocks = tuple(d // size if a == along else d for a, d in enumerate(dims)) if size else ()

    def sized(*dims: int) -> str:
        made = (tape.random.random(dims) + 0.5) * step
        return tape.constant(np.where(np.arange(made.size).reshape(dims) % 3 == 0, -made, made) if negative else made)

    def zeros(*dims: int) -> list[str]:
        return [] if bare else [tape.constant(np.full(dims, middle), element)]

    if kind == "tensor":
        scale = tape.constant(-step if negative else step)
        return tape.op("DequantizeLinear", levels, scale, *zeros())
    if kind == "channel":
        return tape.op("DequantizeLinear", levels, sized(channels), *zeros(channels), axis=axis)
    if kind == "block":
        scales = sized(*blocks)
    else:  # LPBQ: the scales of blocks are small integers times a float per channel
        step /= 8
        per_channel = sized(channels)
        whole = tape.constant(tape.random.integers(1, 16, blocks), np.uint8)
        scales = tape.op("DequantizeLinear", whole, per_channel, tape.constant(np.zeros(channels), np.uint8), axis=axis)
    return tape.op("DequantizeLinear", levels, scales, *zeros(*blocks), axis=along, block_size=size)


def product(
    name: str,
    activation: str,
    weight: str,
    grain: str,
    op: str = "MatMul",
    transposed: int = 0,
    bias: str = "none",
    **form: bool,
) -> Case:
    """A product with a quantized weight; `convolution` has the same parameters.

    Args:
        name: of the case.
        activation: integer type of quantized activations, "" for float ones.
        weight: type of the weight.
        grain: see `dequantized`.
        op: MatMul or Gemm.
        transposed: Gemm's `transB`.
        bias: "none", "float" or "quantized".
        form: `negative` or `bare`, see `dequantized`.
    """
    tape = Tape()
    rows = (1, S) if op == "MatMul" else (S,)
    x = tape.input("x", (*rows, K))
    x = tape.quantized(x, activation) if activation else x
    given = [x, dequantized(tape, (N, K) if transposed else (K, N), weight, grain, 0 if transposed else 1, **form)]
    if bias == "float":
        given.append(tape.constant(np.linspace(-1, 1, N)))
    elif bias == "quantized":
        step = tape.constant(1e-6)
        given.append(
            tape.op("DequantizeLinear", tape.constant(np.zeros(N), np.int32), step, tape.constant(0, np.int32))
        )
    y = tape.op(op, *given, **({"transB": transposed} if op == "Gemm" else {}))
    tape.output(tape.quantized(y, activation, 8) if activation else y, (*rows, N))
    return tape.case(name)


def convolution(
    name: str, activation: str, weight: str, grain: str, *, negative: bool = False, bare: bool = False
) -> Case:
    """A convolution with windows of 1 and a quantized weight."""
    tape = Tape()
    x = tape.input("x", (1, H, 1, S))
    x = tape.quantized(x, activation) if activation else x
    step = -0.02 if negative else 0.02
    element = np.dtype(weight) if weight in LEVELS else NARROW[weight]
    levels = tape.constant(tape.random.integers(-7, 8, (32, H, 1, 1)), element)
    size = int(grain[5:]) if grain.startswith("block") else 1
    dims = {"tensor": (), "channel": (32,)}.get(grain, (32, H // size, 1, 1))
    axes = {"tensor": {}, "channel": {"axis": 0}}.get(grain, {"axis": 1, "block_size": size})
    scales = tape.constant((tape.random.random(dims) + 0.5) * step if dims else step)
    zeros = [] if bare else [tape.constant(np.zeros(dims), element)]
    y = tape.op("Conv", x, tape.op("DequantizeLinear", levels, scales, *zeros, **axes))
    tape.output(tape.quantized(y, activation, 20) if activation else y, (1, 32, 1, S))
    return tape.case(name)


def dequantized_operand(
    name: str, op: str, weight: str, grain: str = "tensor", rows: int = S, *, negative: bool = False, bare: bool = False
) -> Case:
    """A dequantized constant that is not a weight of a product."""
    tape = Tape()
    constant = dequantized(tape, (rows, H), weight, grain, 1, negative=negative, bare=bare)
    if op == "Gather":
        tape.output(tape.op(op, constant, tape.input("x", (1, S), "int32")), X)
    else:
        made = tape.op(op, tape.input("x", (rows, H)), constant, **({"axis": 0} if op == "Concat" else {}))
        tape.output(made, (2 * rows, H) if op == "Concat" else (rows, H))
    return tape.case(name)


def transposed_weight(name: str, activation: str, weight: str, grain: str) -> Case:
    """A product whose dequantized weight is transposed before it."""
    tape = Tape()
    x = tape.input("x", (1, S, K))
    x = tape.quantized(x, activation) if activation else x
    turned = tape.op("Transpose", dequantized(tape, (N, K), weight, grain, 0), perm=[1, 0])
    y = tape.op("MatMul", x, turned)
    tape.output(tape.quantized(y, activation) if activation else y, (1, S, N))
    return tape.case(name)


def normalization(name: str, op: str, activation: str, gamma: str, zero: int) -> Case:
    """A norm with quantized activations and a quantized scale.

    Args:
        name: of the case.
        op: the norm's operator.
        activation: type of the activations.
        gamma: type of the scale.
        zero: zero point of the scale.
    """
    tape = Tape(23 if op == "RMSNormalization" else 21)
    low, high, _ = LEVELS[gamma]
    levels = tape.constant(np.linspace(max(low, zero), high, H).round(), gamma)
    weight = tape.op("DequantizeLinear", levels, tape.constant(2 / (high - zero)), tape.constant(zero, gamma))
    x = tape.quantized(tape.input("x", X), activation)
    tape.output(tape.quantized(tape.op(op, x, weight, axis=-1), activation, 16), X)
    return tape.case(name)


def convolution_over(name: str, op: str, axes: int, group: int = 1, stride: int = 1, dilation: int = 1) -> Case:
    """A convolution with windows of 3 over some axes of 9."""
    tape = Tape()
    x, w = tape.input("x", (1, 8, *[9] * axes)), tape.normal(8, 8 // group, *[3] * axes)
    reach = 2 * dilation + 1
    side = (9 - reach) // stride + 1 if op == "Conv" else 8 * stride + reach
    made = tape.op(op, x, w, group=group, strides=[stride] * axes, dilations=[dilation] * axes)
    tape.output(made, (1, 8, *[side] * axes))
    return tape.case(name)
