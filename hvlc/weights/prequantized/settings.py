"""Parse a checkpoint's GPTQ or AWQ settings: bits, group size, zero points, and per-layer exceptions."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hvlc.errors import UserError
from hvlc.files.reading import is_file
from hvlc.inputs.documents import read_json
from hvlc.weights.checkpoint import Checkpoint

SUPPORTED = "gptq (2, 4 and 8 bits), awq (4 bits, gemm) and GGUF files"

_CONFIG = "config.json"
_GPTQ_BITS, _AWQ_BITS = (2, 4, 8), (4,)
_METHODS = {"gptq": ("GPTQ", _GPTQ_BITS), "awq": ("AWQ", _AWQ_BITS)}
#: Keys that name the layout of the stored tensors, in transformers' order, and the layouts that are read, first the
#: one that is meant where none is named.
_FORMATS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "GPTQ": (("checkpoint_format", "format"), ("gptq", "gptq_v2")),
    "AWQ": (("version", "format", "checkpoint_format"), ("gemm",)),
}
#: Files beside a config.json that says nothing of it: AutoGPTQ's and AutoAWQ's own.
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_LARGEST_GROUP = 1 << 20  # input channels
#: Settings of `dynamic` that change what the stored tensors mean.
_READ_OVERRIDES = ("bits", "group_size", "sym", "desc_act")
#: Settings of `dynamic` that GPTQModel reads while it quantizes.
_QUANTIZER_ONLY = frozenset(
    "damp_percent damp_auto_increment mse static_groups act_group_aware true_sequential hyb_act failsafe fallback "
    "smooth gptaq foem rotation".split()
)
_LONGEST_PATTERN, _MOST_PATTERNS = 2000, 2000
_MATCHING_SECONDS = 2.0  # for all layers
_RECURSION = re.compile(r"\(\?(?:R|&|P>|[+-]?\d)")


@dataclass(frozen=True)
class Grouping:
    """Quantization of one matrix, as the checkpoint states it.

    Attributes:
        method: "GPTQ" or "AWQ".
        bits: width of a level.
        group: input channels of a group; -1 for whole rows.
        decremented: whether zero points are stored less one (GPTQ's format "gptq").
        symmetric: whether every zero point is the middle level; None: not said.
        ordered: False where channels are grouped by activation order; None: not said.
        where: the settings that say it, for messages.
    """

    method: str
    bits: int
    group: int
    decremented: bool
    symmetric: bool | None = None
    ordered: bool | None = None
    where: str = _CONFIG


@dataclass(frozen=True)
class Quantization:
    """Quantization settings of a checkpoint, for all its matrices.

    Attributes:
        base: of every layer that `dynamic` does not name.
        dynamic: GPTQModel's patterns of layer names, in their order, with other settings; None: left in float.
    """

    base: Grouping
    dynamic: tuple[tuple[str, Mapping[str, Any] | None], ...] = ()

    def of_layers(self, paths: Iterator[str]) -> dict[str, Grouping | None]:
        """The settings of each layer; None for layers that `dynamic` leaves in float.

        The first pattern that matches the beginning of a name counts (GPTQModel's `dynamic_get`).

        Raises:
            UserError: a pattern is not a regular expression or takes too long.
        """
        if not self.dynamic:
            return dict.fromkeys(paths, self.base)
        until = time.monotonic() + _MATCHING_SECONDS
        patterns = [(_compiled(self.base, pattern), pattern, overrides) for pattern, overrides in self.dynamic]
        found: dict[str, Grouping | None] = {}
        for path in paths:
            found[path] = self.base
            for compiled, pattern, overrides in patterns:
                try:
                    matched = compiled.match(path, timeout=max(until - time.monotonic(), 0.001))
                except (TimeoutError, MemoryError) as error:
                    raise _bad_pattern(self.base, pattern, "takes too long") from error
                if matched:
                    found[path] = None if overrides is None else _overridden(self.base, pattern, overrides)
                    break
        return found


def _compiled(base: Grouping, pattern: str) -> Any:
    """A pattern of `dynamic` without its sign.

    Raises:
        UserError: it is not a regular expression.
    """
    import regex

    try:
        return regex.compile(pattern.removeprefix("-:").removeprefix("+:"))
    except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise _bad_pattern(base, pattern, f"is not a pattern: {error}") from error


def _bad_pattern(base: Grouping, pattern: str, problem: str) -> UserError:
    return _unread(f"{base.where}: {pattern[:200]!r} of dynamic {problem}")


def read_quantization(checkpoint: Checkpoint) -> Quantization | None:
    """Quantization settings of a checkpoint's matrices. None: it names no quantization.

    Raises:
        UserError: quantized by a method, or with settings, that are not read.
    """
    found = [*_quantizations(_CONFIG, checkpoint.config)] or [*_beside(checkpoint)]
    if not found:
        return None
    where, settings = found[0]
    if len(found) > 1:
        raise _unread(f"{found[1][0]} has a second quantization_config")
    method = settings.get("quant_method")
    if str(method).lower() not in _METHODS:
        raise _unread(f"{where}: its quant_method is {_brief(method)}")
    if settings.get("pack_dtype") not in (None, "int32"):
        raise _unread(f"{where}: its pack_dtype is {_brief(settings['pack_dtype'])}, not 'int32'")
    name, widths = _METHODS[str(method).lower()]
    form = _format(where, settings, name)
    base = Grouping(
        name,
        _bits(where, _first(settings, "bits", "w_bit", "wbits"), widths),
        _group(where, _first(settings, "group_size", "q_group_size", "groupsize")),
        form == "gptq",
        _symmetric(where, settings, name),
        _ordered(where, settings) if name == "GPTQ" else True,
        where,
    )
    return Quantization(base, _dynamic(base, settings))


def _quantizations(where: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The quantization settings of a configuration and of the configurations inside it, with their places."""
    for name, value in config.items():
        if name == "quantization_config" and value:
            yield f"{where}: {name}", value if isinstance(value, dict) else {"quant_method": value}
        elif name == "compression_config" and value:  # compressed-tensors' older key, which transformers reads too
            settings = value if isinstance(value, dict) else {}
            yield f"{where}: {name}", {"quant_method": "compressed-tensors", **settings}
        elif name.endswith("_config") and isinstance(value, dict):
            yield from _quantizations(f"{where}: {name}", value)


def _beside(checkpoint: Checkpoint) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The settings that older tools wrote into a file of their own."""
    for name, method in _FILES.items():
        path = checkpoint.directory / name
        if checkpoint.gguf is None and is_file(path):
            settings = read_json(path, "checkpoint.config")
            if not isinstance(settings, dict):
                raise UserError("checkpoint.config", f"{path} holds no settings", "save the model again")
            yield name, {"quant_method": method, **settings}


def _format(where: str, settings: Mapping[str, Any], name: str) -> str:
    """The layout of the stored tensors, by transformers' order of the keys that name it.

    Raises:
        UserError: it is not read.
    """
    keys, known = _FORMATS[name]
    if settings.get("is_marlin_format"):
        raise _unread(f"{where}: is_marlin_format is {_brief(settings['is_marlin_format'])}")
    key = next((key for key in keys if settings.get(key) is not None), keys[0])
    found = str(settings[key]).lower() if settings.get(key) is not None else known[0]
    if found not in known:
        raise _unread(f"{where}: its {key} is {_brief(settings[key])}, not {' or '.join(known)}")
    return found


def _bits(where: str, found: Any, widths: tuple[int, ...]) -> int:
    if isinstance(found, bool) or found not in widths:
        raise _unread(f"{where}: bits is {_brief(found)}")
    return int(found)


def _group(where: str, found: Any) -> int:
    if isinstance(found, int) and not isinstance(found, bool) and (found == -1 or 0 < found <= _LARGEST_GROUP):
        return found
    raise _unread(f"{where}: group_size is {_brief(found)}")


def _symmetric(where: str, settings: Mapping[str, Any], name: str) -> bool | None:
    if name == "AWQ":
        zero_point = _switch(where, settings, "zero_point")
        return None if zero_point is None else not zero_point
    return _switch(where, settings, "sym")


def _ordered(where: str, settings: Mapping[str, Any]) -> bool | None:
    shuffled = _switch(where, settings, "desc_act")
    return None if shuffled is None else not shuffled


def _switch(where: str, settings: Mapping[str, Any], key: str) -> bool | None:
    found = settings.get(key)
    if found is not None and not isinstance(found, bool):
        raise _unread(f"{where}: {key} is {_brief(found)}, not true or false")
    return found


def _dynamic(base: Grouping, settings: Mapping[str, Any]) -> tuple[tuple[str, Mapping[str, Any] | None], ...]:
    """GPTQModel's settings of some layers, held against what is read of them.

    Raises:
        UserError: one of them is not read.
    """
    where, found = base.where, settings.get("dynamic") or {}
    if not isinstance(found, dict) or len(found) > _MOST_PATTERNS:
        raise _unread(f"{where}: dynamic is {_brief(found)}, not patterns with settings")
    patterns: list[tuple[str, Mapping[str, Any] | None]] = []
    for pattern, overrides in found.items():
        named = f"{where}: {pattern[:200]!r} of dynamic"
        if len(pattern) > _LONGEST_PATTERN:
            raise _unread(f"{named} has {len(pattern)} characters")
        if _RECURSION.search(pattern):
            raise _unread(f"{named} calls itself")
        if pattern.startswith("-:"):
            patterns.append((pattern, None))
            continue
        if not isinstance(overrides, dict):
            raise _unread(f"{named} is {_brief(overrides)}, not settings")
        unread = sorted(overrides.keys() - {*_READ_OVERRIDES} - _QUANTIZER_ONLY)
        if unread:
            raise _unread(f"{named} sets {', '.join(map(repr, unread[:5]))}, which is not read")
        patterns.append((pattern, overrides))
        _overridden(base, pattern, overrides)  # refused here, whether a layer has such a name or not
    return tuple(patterns)


def _overridden(base: Grouping, pattern: str, overrides: Mapping[str, Any]) -> Grouping:
    """The settings of a layer that a pattern of `dynamic` names.

    Raises:
        UserError: a value is not read.
    """
    where = f"{base.where}: {pattern[:200]!r} of dynamic"
    changes: dict[str, Any] = {"where": where}
    if "bits" in overrides:
        changes["bits"] = _bits(where, overrides["bits"], _METHODS[base.method.lower()][1])
    if "group_size" in overrides:
        changes["group"] = _group(where, overrides["group_size"])
    if "sym" in overrides:
        changes["symmetric"] = _symmetric(where, overrides, "GPTQ")
    if "desc_act" in overrides:
        changes["ordered"] = _ordered(where, overrides)
    return replace(base, **changes)


def _first(settings: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first key that is there."""
    return next((settings[key] for key in keys if key in settings), None)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _unread(cause: str) -> UserError:
    fix = f"read are {SUPPORTED}; else name the float checkpoint that it was made from"
    return UserError("checkpoint.quantized", cause, fix)
