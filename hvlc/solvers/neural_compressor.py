"""Adapter for neural-compressor's weight-only solvers, one matrix at a time, to compare them with hvlc's own.

Recipes name them `inc/...`. What they choose is neural-compressor 3.10's own choice, with its default settings; the
levels are its integers, so they dequantize to what its layers hold. One difference: formats with float16 scales round
its float32 scale after the choice (as its own packed layers do), to no less than the smallest subnormal.

neural_compressor and torch are imported where they are used: it takes seconds.
"""

import gc
import importlib.util
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvlc.errors import UserError
from hvlc.targets import SupportAnswer
from hvlc.weights.formats import Levels, WeightFormat
from hvlc.weights.quantized import Solver

#: The solvers that can be asked for.
OFFERED = ("inc/rtn", "inc/hqq", "inc/gptq", "inc/awq")
#: neural-compressor's others, and why they are not offered.
DECLINED = {
    "inc/autoround": "neural-compressor leaves it to auto-round, which does not come with it",
    "inc/teq": "it trains the scales of a whole model, not those of one matrix",
}

_NEEDED = ("neural_compressor", "torch", "accelerate", "prettytable", "psutil", "cpuinfo")
_GPTQ_DAMPING = 0.01  # of the mean of the diagonal; these two are GPTQConfig's defaults
_GPTQ_COLUMNS = 2048  # solved before the rest of the row is corrected; a scale is found before its block is
_AWQ_BITS = 4


@dataclass(frozen=True)
class ScaledLevels:
    """Matrices that read one input, quantized after a scaling of its channels.

    Attributes:
        input_scales: float32 `[in]`, positive; the levels are of `weight * input_scales`, so whoever makes the input
            divides by them.
        levels: of each matrix, in order.
    """

    input_scales: np.ndarray
    levels: tuple[Levels, ...]


def require(solver: str) -> None:
    """Refuse a solver where neural-compressor is not installed.

    Args:
        solver: as the recipe names it.

    Raises:
        UserError: it, or what it imports without declaring it, is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        cause = f"solver {solver!r} needs {', '.join(missing)}"
        raise UserError("install.neural_compressor", cause, "pip install 'hvlc[compile]'")


def supports(solver: str, format: WeightFormat, in_features: int) -> SupportAnswer:
    """Whether a solver can choose levels of a format, known before any work.

    Args:
        solver: as the recipe names it, `inc/...`.
        format: what is asked for.
        in_features: columns of the matrix.
    """
    if solver not in OFFERED:
        return SupportAnswer(False, DECLINED.get(solver, "neural-compressor has no such solver"))
    if format.searched is not format:
        return SupportAnswer(False, f"it knows no {format.peculiarity}")
    if solver == "inc/awq" and format.bits != _AWQ_BITS:
        # quant_tensor takes `bits`; the search passes `num_bits`, which it ignores.
        return SupportAnswer(False, f"it searches scales for {_AWQ_BITS} bits whatever is asked for")
    if solver == "inc/hqq" and format.zero_dtype != np.float32:
        # Rounded to integers, 99.8 % and more are those of inc/rtn: nothing of HQQ would be left.
        return SupportAnswer(False, f"its zero points are fractions, and {format} stores none")
    if solver in ("inc/awq", "inc/hqq") and in_features % format.block_size:
        return SupportAnswer(False, f"rows of {in_features} are not a whole number of blocks of {format.block_size}")
    return SupportAnswer(True)


def check(solver: str, format: WeightFormat, in_features: int) -> None:
    """Refuse what a solver cannot do.

    Args:
        solver: as the recipe names it, `inc/...`.
        format: what is asked for.
        in_features: columns of the matrix.

    Raises:
        UserError: neural-compressor is not installed, or the solver does not do this format.
    """
    require(solver)
    verdict = supports(solver, format, in_features)
    if not verdict:
        raise UserError("solver.format", f"solver {solver!r}: {verdict.reason}", "choose another solver or format")


def rtn(weight: np.ndarray, format: WeightFormat) -> Levels:
    """Round to nearest, no data: `inc/rtn`.

    A symmetric block's scale is its largest magnitude over `2 ** (bits - 1) - 1` (the lowest level stays unused); an
    asymmetric block spans its range, which always holds zero. What is left of a row after whole blocks is a block.

    Args:
        weight: float32 `[out, in]`.
        format: bits, block size, symmetry and scale type.

    Returns:
        Levels of `[out, ceil(in / block_size), block_size]`; the same for a row whatever rows come with it.

    Raises:
        UserError: neural-compressor is not installed.
    """
    require("inc/rtn")
    with _quiet():
        return _rounded(_tensor(weight), format)


def hqq(weight: np.ndarray, format: WeightFormat) -> Levels:
    """HQQ (Badri and Shaji, 2023), no data: `inc/hqq`. It moves the zero points and leaves the scales.

    Two things differ from a model converted by neural-compressor. Its blocks run down the output channels, those of
    the format along the input channels. And it stops when the mean error of a matrix no longer falls; here that is
    asked of every row by itself, because rows are solved some at a time.

    Args:
        weight: float32 `[out, in]`.
        format: one with float zero points; whole blocks.

    Returns:
        Levels of `[out, in / block_size, block_size]`, with zero points float32; the same for a row whatever rows
        come with it.

    Raises:
        UserError: neural-compressor is not installed, or does not do this format.
    """
    check("inc/hqq", format, weight.shape[1])
    with _quiet(), _one_thread(), _little_garbage():
        from neural_compressor.torch.algorithms.weight_only.hqq.config import QTensorConfig
        from neural_compressor.torch.algorithms.weight_only.hqq.core import HQQTensorHandle

        settings = QTensorConfig(format.bits, group_size=format.block_size, round_zero=format.bits == 4, pack=False)
        levels = np.empty((weight.shape[0], weight.shape[1] // format.block_size, format.block_size), np.uint8)
        scales, zeros = (np.empty(levels.shape[:2], np.float32) for _ in range(2))
        for row, values in enumerate(weight):
            columns = _tensor(values.reshape(-1, format.block_size).T)  # a block each: what it wants
            solved = HQQTensorHandle.quantize(columns, settings)
            levels[row] = solved.val.numpy().T
            scales[row], zeros[row] = solved.scale.numpy()[0], solved.zero.numpy()[0]
        return Levels(levels, format.held(scales), zeros, format)


def gptq(weight: np.ndarray, format: WeightFormat, gram: np.ndarray) -> Levels:
    """GPTQ (arXiv 2210.17323) as neural-compressor's layers do it: `inc/gptq`.

    A symmetric scale is twice the largest magnitude over `2 ** bits - 1`, which misses that magnitude by half a step;
    in a block without a negative value it is half of that, and all above the middle of the range is cut off.

    Args:
        weight: float32 `[out, in]`.
        format: bits, block size, symmetry and scale type.
        gram: `[in, in]`, the mean of `x x^T` over the inputs; any positive factor gives the same levels, up to float32.

    Raises:
        UserError: neural-compressor is not installed, or the Gram matrix holds NaN or infinity.
    """
    require("inc/gptq")
    _check_finite(gram)
    with _quiet(), _one_thread():
        import torch
        from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ
        from neural_compressor.torch.algorithms.weight_only.utility import quant_weight_w_scale

        values = _tensor(weight)
        solver = GPTQ(torch.nn.Linear(values.shape[1], values.shape[0], bias=False, device="meta"), values)
        solver.quantizer.configure(
            {
                "dtype": "int",
                "bits": format.bits,
                "sym": format.symmetric,
                "perchannel": True,
                "mse": False,
                "use_double_quant": False,
                "double_quant_sym": False,
            }
        )
        solver.H = _tensor(gram)
        scales, _, zeros, fake = solver.fasterquant(
            values, blocksize=_GPTQ_COLUMNS, percdamp=_GPTQ_DAMPING, groupsize=format.block_size
        )
        integers = quant_weight_w_scale(fake, scales, None, None if format.symmetric else zeros, format.block_size)
        return _levels(integers, scales, None if format.symmetric else zeros, format)


def awq(weights: Sequence[np.ndarray], format: WeightFormat, gram: np.ndarray, mean_abs: np.ndarray) -> ScaledLevels:
    """AWQ (arXiv 2306.00978) with neural-compressor's searches: `inc/awq`.

    One scaling of the input's channels for all the matrices, of twenty, then for each one clipping of its range, of
    ten. neural-compressor judges by the outputs of a whole decoder layer where several matrices read the input; here,
    as with one, by the error of the products themselves, which the Gram matrix tells exactly.

    Args:
        weights: float32 `[out, in]` each, of all matrices that read the input.
        format: 4 bits, whole blocks.
        gram: `[in, in]`, the mean of `x x^T` over the inputs.
        mean_abs: `[in]`, the mean of `|x|`.

    Raises:
        UserError: neural-compressor is not installed or cannot do the format, the Gram matrix holds NaN or infinity,
            or a block or column is all zeros, by which it divides.
    """
    check("inc/awq", format, weights[0].shape[1])
    _check_finite(gram)
    _check_no_zeros(weights, format)
    with _quiet(), _one_thread():
        import torch

        names = [f"linear{number}" for number in range(len(weights))]
        block = torch.nn.ModuleDict({name: _linear(weight) for name, weight in zip(names, weights, strict=True)})
        search = _layer_search(block, format, _root(gram))
        modules = tuple(f"blocks.0.{name}" for name in names)
        inputs = {name: {"input": [_tensor(mean_abs[None])]} for name in names}
        scales = search.search_scale(block, "blocks.0", [modules], inputs)[modules]
        for linear in block.values():
            linear.weight.mul_(scales)
        search.root /= scales
        search.search_clip("blocks.0", [modules], inputs)
        kept = [search.weight_config[module]["quantile"] for module in modules]
        levels = [_rounded(block[name].weight, format, keep) for name, keep in zip(names, kept, strict=True)]
        return ScaledLevels(scales.numpy(), tuple(levels))


#: Solvers that need no data, as recipes name them.
DATA_FREE = {solver.name: solver for solver in (Solver("inc/rtn", rtn, 1e-8), Solver("inc/hqq", hqq, 8e-7))}


def _tensor(values: np.ndarray) -> Any:
    """A float32 copy, row-major: what gets it may overwrite it, and minds the strides of a single row."""
    import torch

    return torch.from_numpy(np.array(values, np.float32, order="C"))


def _rounded(weight: Any, format: WeightFormat, keep: float = 1.0) -> Levels:
    """neural-compressor's rounding of a tensor, which it overwrites; `keep` is what clipping leaves of a range."""
    from neural_compressor.torch.algorithms.weight_only.utility import quant_tensor

    integers, scales, zeros = quant_tensor(
        weight,
        bits=format.bits,
        group_size=format.block_size,
        scheme="sym" if format.symmetric else "asym",
        quantile=keep,
        return_int=True,
    )
    return _levels(integers, scales, zeros, format)


def _levels(integers: Any, scales: Any, zeros: Any | None, format: WeightFormat) -> Levels:
    """Levels of neural-compressor's tensors: integers `[out, in]`, around zero where there are no zero points.

    The padding of the last block dequantizes to zero.
    """
    rows, columns = integers.shape
    middle = 2 ** (format.bits - 1)
    zero_points = None if zeros is None else zeros.numpy().astype(format.zero_dtype)
    unsigned = integers.numpy() + (middle if zeros is None else 0)
    blocks = scales.shape[1]
    padded = np.empty((rows, blocks * format.block_size), np.uint8)
    padded[:, :columns] = unsigned
    padded[:, columns:] = middle if zero_points is None else zero_points[:, -1:]
    return Levels(padded.reshape(rows, blocks, format.block_size), format.held(scales.numpy()), zero_points, format)


def _linear(weight: np.ndarray) -> Any:
    import torch

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(_tensor(weight), requires_grad=False)
    return linear


def _layer_search(block: Any, format: WeightFormat, root: np.ndarray) -> Any:
    """neural-compressor's AWQ over a model of one block; `root` `[in, in]` stands for the inputs.

    `|root W^T|^2` is the mean of `|x W^T|^2` over the inputs whose Gram matrix is `root^T root`.
    """
    import torch
    from neural_compressor.torch.algorithms.weight_only.awq import ActAwareWeightQuant

    class LayerSearch(ActAwareWeightQuant):
        def module_inference(self, model: Any, inputs: Any) -> list[Any]:
            return [model(self.root)]

        def block_inference(self, model: Any) -> list[Any]:
            return [torch.cat([linear(self.root) for linear in model.values()], dim=1)]

    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([block])
    scheme = "sym" if format.symmetric else "asym"
    search = LayerSearch(
        model,
        example_inputs=torch.empty(0),
        bits=format.bits,
        group_size=format.block_size,
        scheme=scheme,
        weight_config={},
        device="cpu",
    )
    search.root = _tensor(root)
    return search


def _root(gram: np.ndarray) -> np.ndarray:
    """float32 `R` with `R^T R = gram`; a Gram matrix of few inputs has no Cholesky factor."""
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    return (np.sqrt(np.maximum(values, 0))[:, None] * vectors.T).astype(np.float32)


def _check_finite(gram: np.ndarray) -> None:
    if not np.isfinite(gram).all():
        cause = "the inputs seen in calibration hold NaN or infinity"
        raise UserError("calibration.finite", cause, "calibrate with other data, or keep these weights in float")


def _check_no_zeros(weights: Sequence[np.ndarray], format: WeightFormat) -> None:
    together = np.concatenate(weights)
    blocks = together.reshape(len(together), -1, format.block_size)
    if together.any(axis=0).all() and blocks.any(axis=2).all():
        return
    cause = "solver 'inc/awq' divides by the largest value of a block and of a column, and here one is all zeros"
    raise UserError("solver.zeros", cause, "choose another solver for these weights")


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what neural-compressor logs in this thread while it works and is imported; errors come through."""
    thread, logger = threading.get_ident(), logging.getLogger("neural_compressor")

    def errors(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    logger.addFilter(errors)
    try:
        yield
    finally:
        logger.removeFilter(errors)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch add up in one order, whatever threads it may take: the same levels on every machine of a kind."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Set aside the objects that there are: HQQ collects garbage twice a call, 0.4 s where torch is loaded."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
