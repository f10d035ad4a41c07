"""Find the matrices of a GPTQ or AWQ checkpoint, and compare the stored tensors with its quantization settings.

Contradictions are never ignored: with zero points that are off by one, every weight is off by one scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hvlc.errors import UserError
from hvlc.weights.checkpoint import Checkpoint, StoredTensor
from hvlc.weights.lazy import Expression, Stored
from hvlc.weights.prequantized.grouped import GroupedMatrix, all_middle
from hvlc.weights.prequantized.settings import Grouping, read_quantization

#: Name of a layer's levels.
LEVELS = "qweight"

_MATRIX = 2  # rank
_KNOWN = "prequantized.layers"
_VERSIONS = {True: "gptq", False: "gptq_v2"}  # by whether zero points are stored less one


@dataclass(frozen=True)
class _Layers:
    """Facts about a checkpoint's quantized layers.

    Attributes:
        groupings: how each layer is quantized; None for layers that the settings leave in float.
        decremented: how zero points are stored, other than the settings say; None: as they say.
    """

    groupings: Mapping[str, Grouping | None]
    decremented: bool | None


def read_layer(checkpoint: Checkpoint, path: str) -> Expression:
    """The matrix of the layer at `path`.

    Raises:
        UserError: a tensor is missing, of another type or shape than the others ask for, or contradicts the settings.
    """
    layers = _layers_of(checkpoint)
    matrix = _matrix(checkpoint, path, layers.groupings.get(path))
    if layers.decremented is not None:
        matrix = replace(matrix, decremented=layers.decremented)
    return matrix if matrix.groups is not None else replace(matrix, symmetric=all_middle(matrix))


def _layers_of(checkpoint: Checkpoint) -> _Layers:
    """Facts about the layers, found out once.

    Raises:
        UserError: the settings are not read, or contradict the zero points.
    """
    found = checkpoint.known.get(_KNOWN)
    if not isinstance(found, _Layers):
        paths = [name.removesuffix(f".{LEVELS}") for name in checkpoint.tensors if name.endswith(f".{LEVELS}")]
        quantization = read_quantization(checkpoint)
        if quantization is None:
            cause = f"{paths[0]}.{LEVELS} is stored, and config.json has no quantization_config"
            raise UserError("checkpoint.quantized", cause, "save the configuration with the weights")
        groupings = quantization.of_layers(iter(paths))
        found = checkpoint.known[_KNOWN] = _Layers(groupings, _settled(checkpoint, quantization.base, groupings))
    return found


def _settled(checkpoint: Checkpoint, base: Grouping, groupings: Mapping[str, Grouping | None]) -> bool | None:
    """Way in which zero points are stored where the settings say it wrong; None: as they say, or nothing shows
    otherwise.

    Symmetric matrices show it: every zero point is the middle level, by one way of storing them and not by the other.

    Raises:
        UserError: the settings say that zero points are the middle level, and they are not, or not all in one way.
    """
    seen: dict[str, list[str]] = {"said": [], "other": [], "neither": []}
    claimed: set[str] = set()
    for path, grouping in groupings.items():
        try:
            matrix = _matrix(checkpoint, path, grouping)
        except UserError:
            continue  # told when the layer is read
        seen[_zero_points(matrix)].append(path)
        claimed |= {path} if grouping and grouping.symmetric else set()
    asymmetric = [path for path in seen["neither"] if path in claimed]
    if asymmetric:
        raise _contradiction(base, f"says symmetric, and zero points are not the middle level: {_some(asymmetric)}")
    ours, other = _VERSIONS[base.decremented], _VERSIONS[not base.decremented]
    if not seen["other"] or (not claimed & {*seen["other"]} and (seen["said"] or seen["neither"])):
        return None
    if seen["said"]:
        cause = f"zero points are the middle level as {ours} stores them in {_some(seen['said'])}"
        raise _contradiction(base, f"says {ours}; {cause}, and as {other} does in {_some(seen['other'])}")
    if base.symmetric is False:
        raise _contradiction(base, f"says asymmetric {ours}, and every zero point is the middle level as {other}'s")
    checkpoint.notes.append(
        f"{base.where} says {ours}, and every zero point is the middle level only as {other} stores it: read as {other}"
    )
    return not base.decremented


def _zero_points(matrix: GroupedMatrix) -> str:
    """By which way of storing them all zero points are the middle level: "said", "other" or "neither"."""
    if all_middle(matrix):
        return "said"
    turned = replace(matrix, decremented=not matrix.decremented)
    return "other" if matrix.method == "GPTQ" and all_middle(turned) else "neither"


def _contradiction(base: Grouping, cause: str) -> UserError:
    fix = "correct sym or checkpoint_format there, or take the model from whoever quantized it"
    if base.method == "AWQ":
        fix = "correct zero_point there, or take the model from whoever quantized it"
    return UserError("checkpoint.quantized", f"{base.where} {cause}", fix)


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more


def _matrix(checkpoint: Checkpoint, path: str, grouping: Grouping | None) -> GroupedMatrix:
    """The matrix of a layer, as its settings say it.

    Raises:
        UserError: a tensor is missing, or of another type or shape than the others ask for; or the settings leave the
            layer in float.
    """
    if grouping is None:
        cause = f"{path}.{LEVELS} is stored, and dynamic of quantization_config leaves that layer in float"
        raise UserError("checkpoint.quantized", cause, "correct dynamic, or save the whole model again")
    parts = {name: checkpoint.tensors.get(f"{path}.{name}") for name in (LEVELS, "qzeros", "scales")}
    stored = {name: tensor for name, tensor in parts.items() if tensor is not None}
    missing = [f"{path}.{name}" for name in parts if name not in stored]
    if missing:
        cause = f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
        raise UserError("checkpoint.weights", cause, "save the whole model again")
    columns = _check_shapes(path, stored, grouping)
    group = columns if grouping.group == -1 else grouping.group
    order = checkpoint.tensors.get(f"{path}.g_idx") if grouping.method == "GPTQ" else None
    if order is None and grouping.ordered is False:
        cause = f"{grouping.where} says desc_act, and {path}.g_idx, the order of the channels, is missing"
        raise UserError("checkpoint.weights", cause, "save the whole model again")
    return GroupedMatrix(
        grouping.method,
        Stored(stored[LEVELS]),
        Stored(stored["qzeros"]),
        Stored(stored["scales"]),
        _unordered(order, columns, group, stored["scales"].shape[0]),
        grouping.bits,
        group,
        grouping.decremented,
        False,
        columns,
    )


def _check_shapes(path: str, stored: Mapping[str, StoredTensor], grouping: Grouping) -> int:
    """Input features, once everything fits together.

    Raises:
        UserError: a tensor is of another type or shape than the others ask for.
    """
    levels, zeros, scales = (stored[name] for name in (LEVELS, "qzeros", "scales"))
    wrong = [t.name for t in (levels, zeros) if t.dtype != np.int32]
    wrong += [scales.name] if scales.dtype.kind in "iub" else []
    wrong += [t.name for t in (levels, zeros, scales) if len(t.shape) != _MATRIX]
    if wrong:
        cause = f"{', '.join(dict.fromkeys(wrong))}: expected are matrices, levels int32 and scales float"
        raise UserError("checkpoint.dtype", cause, "save the model again")
    fields = 32 // grouping.bits
    columns, out = levels.shape[0] * (fields if grouping.method == "GPTQ" else 1), scales.shape[1]
    group = columns if grouping.group == -1 else grouping.group
    groups = -(-columns // group) if group else 0
    expected = {
        levels.name: (levels.shape[0], out if grouping.method == "GPTQ" else out // fields),
        zeros.name: (groups, out // fields),
        scales.name: (groups, out),
    }
    found = {t.name: t.shape for t in (levels, zeros, scales)}
    causes = [f"{n} is {list(s)}, {list(expected[n])} fits the others" for n, s in found.items() if s != expected[n]]
    if causes or out % fields or not columns:
        cause = "; ".join(causes) or f"{path} has {out} rows, which fill no whole words"
        fix = f"check bits {grouping.bits} and group_size {grouping.group} of {grouping.where}{_other_bits(stored)}"
        raise UserError("checkpoint.weights", cause, fix)
    return columns


def _other_bits(stored: Mapping[str, StoredTensor]) -> str:
    """The width that the zero points and scales of a layer have, for a message."""
    zeros, scales = stored["qzeros"].shape, stored["scales"].shape
    bits, rest = divmod(32 * zeros[1], scales[1]) if scales[1] else (0, 1)
    return f": qzeros and scales have the shapes of {bits} bits" if not rest and bits in (2, 3, 4, 8) else ""


def _unordered(order: StoredTensor | None, columns: int, group: int, count: int) -> Expression | None:
    """The groups of the channels, or None where they stand in order. Read here: it is one small number a channel.

    Raises:
        UserError: they name groups that there are not, or leave groups without a channel.
    """
    if order is None:
        return None
    if order.shape != (columns,) or order.dtype.kind not in "iu":
        cause = f"{order.name} is {order.dtype} {list(order.shape)}, expected is an integer for each of {columns}"
        raise UserError("checkpoint.weights", cause, "save the model again")
    found = order.read()
    if found.min() < 0 or found.max() >= count:
        raise UserError("checkpoint.weights", f"{order.name} names groups outside 0 to {count - 1}", "save it again")
    if np.array_equal(found, np.arange(columns) // group):
        return None
    unused = count - len(np.unique(found))
    if unused:  # all zeros, as an interrupted conversion leaves it: every weight would have the first group's scale
        cause = f"{order.name} puts no channel into {unused} of the {count} groups that have scales"
        raise UserError("checkpoint.weights", cause, "save the model again")
    return Stored(order)
