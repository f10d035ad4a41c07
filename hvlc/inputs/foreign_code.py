"""Settings by which transformers would import, or fetch from a hub, code that a checkpoint names.

hvlc builds known architectures and never runs such code; a checkpoint that needs it is another model than its
`model_type` says. Read from transformers 5.23: `auto_map` (dynamic_module_utils), `custom_pipelines` (pipelines),
`custom_generate` (generation), `kernel_config` and `use_kernels` (utils/kernel_config), and implementations of
attention and experts that name a kernel of the hub, "user/kernel" (integrations/hub_kernels).
"""

from collections.abc import Iterator
from typing import Any

from hvlc.errors import UserError, raise_all

_CODE = "checkpoint.code"
_NAMING = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "kernel_config", "use_kernels")
_CHOOSING = ("attn_implementation", "experts_implementation")
_SHOWN = 80  # characters of a value


def check_code(settings: Any, source: str) -> None:
    """Refuse settings that name code, at any depth.

    Args:
        settings: a parsed configuration.
        source: name of its file.

    Raises:
        UserError: code is named; all places at once.
    """
    fix = "remove the key if the model is the standard architecture of its model_type; else hvlc cannot build it"
    raise_all([UserError(_CODE, f"{source}: {found}", fix) for found in _named(settings, "")])


def _named(value: Any, path: str) -> Iterator[str]:
    """Every place that names code, with what it says; values are not deeper than the reader of JSON allows."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, found in inside:
        place = f"{path}.{key}" if path else str(key)
        if key in _NAMING and found not in (None, False, {}, [], ""):
            yield f"{place} names code that transformers would run: {_shown(found)}"
        elif isinstance(key, str) and key.lstrip("_").removesuffix("_internal") in _CHOOSING:
            kernels = [name for name in _strings(found) if "/" in name]
            if kernels:
                yield f"{place} names a kernel that transformers would fetch: {_shown(kernels[0])}"
        else:
            yield from _named(found, place)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inside in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(inside)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
