"""Read a parameter by name from any supported checkpoint, as dequantized values or as stored levels."""

from dataclasses import dataclass

import numpy as np

from hvlc.errors import UserError
from hvlc.weights.checkpoint import Checkpoint, GgufTensor
from hvlc.weights.lazy import Computed, Expression, Stored
from hvlc.weights.prequantized.gguf import gguf_matrix
from hvlc.weights.prequantized.layers import LEVELS, read_layer

_WEIGHT = "weight"
_MATRIX = 2  # rank


def is_stored(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the checkpoint has a parameter, as numbers or as levels."""
    return name in checkpoint.tensors or _levels_name(name) in checkpoint.tensors


def _levels_name(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{LEVELS}" if leaf == _WEIGHT else ""


def read_parameter(checkpoint: Checkpoint, name: str) -> Expression | None:
    """A parameter in the dtype that it is stored in, a pre-quantized matrix as float32; None when it is missing.

    Raises:
        UserError: its levels, scales or zero points do not belong together, or nobody here reads them.
    """
    found, has_levels = checkpoint.tensors.get(name), _levels_name(name) in checkpoint.tensors
    if isinstance(found, GgufTensor):
        return _read_gguf(found)
    if found is not None and has_levels:
        cause = f"{name} and {_levels_name(name)} are both stored, and nothing says which one counts"
        raise UserError("checkpoint.quantized", cause, "remove the one that does not count")
    if found is not None:
        return Stored(found)
    stem = name.rpartition(".")[0]
    if not has_levels and f"{stem}.qzeros" in checkpoint.tensors and name == f"{stem}.{_WEIGHT}":
        cause = f"{stem}.{LEVELS} is missing, and {stem}.qzeros is stored"
        raise UserError("checkpoint.weights", cause, "save the whole model again")
    return read_layer(checkpoint, stem) if has_levels else None


def _read_gguf(tensor: GgufTensor) -> Expression:
    """Numbers, or a matrix in blocks; rows in transformers' order: a block is never split, so this is exact."""
    raw: Expression = Stored(tensor)
    if tensor.heads:
        rows, *rest = tensor.shape
        if rows % (2 * tensor.heads):
            cause = f"{tensor.name} has {rows} rows for {tensor.heads} heads"
            raise UserError("checkpoint.weights", cause, "match metadata and weights")
        split = raw.reshape(tensor.heads, rows // tensor.heads // 2, 2, *rest)
        order = (0, 2, 1, *range(3, 3 + len(rest)))
        raw = split.transpose(*order).reshape(*tensor.shape)
    if tensor.dtype != np.uint8:
        return _less(raw.cast(np.float32), tensor.added) if tensor.added and tensor.dtype.kind not in "iub" else raw
    if len(tensor.shape) != _MATRIX:
        cause = f"{tensor.name} is {tensor.kind} with {len(tensor.shape)} dimensions"
        raise UserError("checkpoint.dtype", cause, "quantize matrices only")
    return gguf_matrix(tensor.name, raw, tensor.kind, tensor.columns)


def _less(values: Expression, added: int) -> Expression:
    """Values float32 without what a converter added to each."""
    return Computed(_Less(added), (values,), values.shape, values.dtype)


@dataclass(frozen=True)
class _Less:
    added: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return values - np.float32(self.added)
