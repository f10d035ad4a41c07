"""Parameters of a checkpoint, as numbers or as levels: what a name stands for, whatever tool has stored it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hvlc.checkpoint import Checkpoint, GgufTensor, StoredTensor
from hvlc.errors import UserError
from hvlc.lazy import Expression, Stored
from hvlc.prequantized.gguf import gguf_matrix
from hvlc.prequantized.grouped import GroupedMatrix, all_middle

SUPPORTED = "gptq (2, 4 and 8 bits), awq (4 bits, gemm) and GGUF files"

_WEIGHT, _LEVELS = "weight", "qweight"
_GPTQ_BITS, _AWQ_BITS = (2, 4, 8), (4,)
_MATRIX = 2  # rank


@dataclass(frozen=True)
class Grouping:
    """What `quantization_config` says of GPTQ or AWQ weights.

    Attributes:
        method: "GPTQ" or "AWQ".
        bits: of a level.
        group: input channels of a group; -1 for whole rows.
        decremented: whether zero points are stored less one.
    """

    method: str
    bits: int
    group: int
    decremented: bool


def read_grouping(checkpoint: Checkpoint) -> Grouping | None:
    """How the checkpoint's matrices are quantized, or None when its configuration names no quantization.

    Raises:
        UserError: by a method, or with settings, that are not read.
    """
    found = list(_quantizations("config.json", checkpoint.config))
    if not found:
        return None
    where, settings = found[0]
    if len(found) > 1:
        raise _unread(f"{found[1][0]} has a second quantization_config")
    method = settings.get("quant_method")
    if method == "gptq":
        kind = settings.get("checkpoint_format", settings.get("format", "gptq"))
        grouping = _grouping(where, settings, "GPTQ", _GPTQ_BITS, decremented=kind == "gptq")
        if kind not in ("gptq", "gptq_v2"):
            raise _unread(f"{where}: its checkpoint_format is {kind!r}, not gptq or gptq_v2")
        return grouping
    if method == "awq":
        version = str(settings.get("version", "gemm")).lower()
        if version != "gemm":
            raise _unread(f"{where}: its AWQ version is {version!r}, not 'gemm'")
        return _grouping(where, settings, "AWQ", _AWQ_BITS, decremented=False)
    raise _unread(f"{where}: its quant_method is {method!r}")


def _grouping(
    where: str, settings: Mapping[str, Any], method: str, widths: tuple[int, ...], *, decremented: bool
) -> Grouping:
    bits, group = settings.get("bits", settings.get("w_bit")), settings.get("group_size", settings.get("q_group_size"))
    if bits not in widths or isinstance(bits, bool):
        raise _unread(f"{where}: bits is {bits!r}")
    if not isinstance(group, int) or isinstance(group, bool) or not (group > 0 or group == -1):
        raise _unread(f"{where}: group_size is {group!r}")
    return Grouping(method, bits, group, decremented)


def _unread(cause: str) -> UserError:
    fix = f"read are {SUPPORTED}; else name the float checkpoint that it was made from"
    return UserError("checkpoint.quantized", cause, fix)


def _quantizations(where: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The quantization settings of a configuration and of the configurations inside it, with their places."""
    for name, value in config.items():
        if name == "quantization_config" and value:
            yield f"{where}: {name}", value if isinstance(value, dict) else {"quant_method": value}
        elif name.endswith("_config") and isinstance(value, dict):
            yield from _quantizations(f"{where}: {name}", value)


def is_stored(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the checkpoint has a parameter, as numbers or as levels."""
    return name in checkpoint.tensors or _levels_name(name) in checkpoint.tensors


def _levels_name(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{_LEVELS}" if leaf == _WEIGHT else ""


def read_parameter(checkpoint: Checkpoint, name: str) -> Expression | None:
    """A parameter in the dtype that it is stored in, a pre-quantized matrix as float32; None when it is missing.

    Raises:
        UserError: its levels, scales or zero points do not belong together, or nobody here reads them.
    """
    found = checkpoint.tensors.get(name)
    if isinstance(found, GgufTensor):
        return _read_gguf(found)
    if found is not None:
        return Stored(found)
    if _levels_name(name) not in checkpoint.tensors:
        return None
    return _read_grouped(checkpoint, name.rpartition(".")[0])


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
        return raw
    if len(tensor.shape) != _MATRIX:
        cause = f"{tensor.name} is {tensor.kind} with {len(tensor.shape)} dimensions"
        raise UserError("checkpoint.dtype", cause, "quantize matrices only")
    return gguf_matrix(tensor.name, raw, tensor.kind, tensor.columns)


def _read_grouped(checkpoint: Checkpoint, path: str) -> Expression:
    """The matrix of the layer at `path`.

    Raises:
        UserError: a tensor is missing, of another type, or of another shape than the others ask for.
    """
    grouping = read_grouping(checkpoint)
    if grouping is None:
        cause = f"{path}.{_LEVELS} is stored, and config.json has no quantization_config"
        raise UserError("checkpoint.quantized", cause, "save the configuration with the weights")
    parts = {name: checkpoint.tensors.get(f"{path}.{name}") for name in (_LEVELS, "qzeros", "scales")}
    stored = {name: tensor for name, tensor in parts.items() if tensor is not None}
    missing = [f"{path}.{name}" for name in parts if name not in stored]
    if missing:
        cause = f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
        raise UserError("checkpoint.weights", cause, "save the whole model again")
    columns = _check_shapes(path, stored, grouping)
    group = columns if grouping.group == -1 else grouping.group
    order = checkpoint.tensors.get(f"{path}.g_idx") if grouping.method == "GPTQ" else None
    matrix = GroupedMatrix(
        grouping.method,
        Stored(stored[_LEVELS]),
        Stored(stored["qzeros"]),
        Stored(stored["scales"]),
        _unordered(order, columns, group, stored["scales"].shape[0]),
        grouping.bits,
        group,
        grouping.decremented,
        False,
        columns,
    )
    return matrix if matrix.groups is not None else replace(matrix, symmetric=all_middle(matrix))


def _check_shapes(path: str, stored: Mapping[str, StoredTensor], grouping: Grouping) -> int:
    """Input features, once everything fits together.

    Raises:
        UserError: a tensor is of another type or shape than the others ask for.
    """
    levels, zeros, scales = (stored[name] for name in (_LEVELS, "qzeros", "scales"))
    wrong = [t.name for t in (levels, zeros) if t.dtype != np.int32]
    wrong += [scales.name] if scales.dtype.kind in "iu" else []
    wrong += [t.name for t in (levels, zeros, scales) if len(t.shape) != _MATRIX]
    if wrong:
        cause = f"{', '.join(dict.fromkeys(wrong))}: expected are matrices, levels int32 and scales float"
        raise UserError("checkpoint.dtype", cause, "save the model again")
    fields = 32 // grouping.bits
    columns, out = levels.shape[0] * (fields if grouping.method == "GPTQ" else 1), scales.shape[1]
    group = columns if grouping.group == -1 else grouping.group
    expected = {
        levels.name: (levels.shape[0], out if grouping.method == "GPTQ" else out // fields),
        zeros.name: (-(-columns // group), out // fields),
        scales.name: (-(-columns // group), out),
    }
    found = {t.name: t.shape for t in (levels, zeros, scales)}
    causes = [f"{n} is {list(s)}, {list(expected[n])} fits the others" for n, s in found.items() if s != expected[n]]
    if causes or out % fields:
        cause = "; ".join(causes) or f"{path} has {out} rows, which fill no whole words"
        fix = f"check bits {grouping.bits} and group_size {grouping.group} of quantization_config"
        raise UserError("checkpoint.weights", cause, fix)
    return columns


def _unordered(order: StoredTensor | None, columns: int, group: int, count: int) -> Expression | None:
    """The groups of the channels, or None where they stand in order. Read here: it is one small number a channel.

    Raises:
        UserError: they name groups that there are not.
    """
    if order is None:
        return None
    if order.shape != (columns,) or order.dtype.kind not in "iu":
        cause = f"{order.name} is {order.dtype} {list(order.shape)}, expected is an integer for each of {columns}"
        raise UserError("checkpoint.weights", cause, "save the model again")
    found = order.read()
    if found.min() < 0 or found.max() >= count:
        raise UserError("checkpoint.weights", f"{order.name} names groups outside 0 to {count - 1}", "save it again")
    return None if np.array_equal(found, np.arange(columns) // group) else Stored(order)
