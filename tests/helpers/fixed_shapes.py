"""A target of fixed shapes for tests: the rules of Qualcomm's NPUs, the levels of the CPU's, short chunks, no chip."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvlc.targets import Target, load_target
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request

CHUNK = 16


def write_target(path: Path, **changes: Any) -> str:
    """Its file; the file's name."""
    levels = load_target("cpu").model_dump(mode="json", include={"block_formats", "gather_bits", "lookup_dtypes"})
    formats = [{key: value for key, value in one.items() if value is not None} for one in levels["block_formats"]]
    content = {
        "schema_version": 1,
        "extends": "qnn-htp",
        "compiler": "none",
        "name": path.stem,
        "description": "a stand-in for an NPU",
        "prompt_chunk": CHUNK,
        **levels,
        "block_formats": formats,
        # The tiny towers have 16 patches. Where they are compiled, the rule and the check refuse them.
        "rules": {"sixteen-rows": {"operators": ["none"]}},
        **changes,
    }
    path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in content.items()), "utf-8")
    return str(path)


def npu_target(directory: Path, **changes: Any) -> Target:
    return load_target(write_target(directory / "npu.toml", **changes))


def write_recipe(path: Path, **content: Any) -> str:
    """A recipe with this content; the file's name."""
    path.write_text(json.dumps({"schema_version": 1, "name": path.stem, "description": "x", **content}), "utf-8")
    return str(path)


@dataclass(frozen=True)
class Pair:
    """Two packages of the same levels, and their checkpoint; read only."""

    dynamic: Path
    fixed: Path
    checkpoint: Path


def build_pair(checkpoint: Path, root: Path, recipe: str, **target: Any) -> Pair:
    """Packages for a CPU and for a target of fixed shapes, which `target` changes."""
    file = write_target(root / "npu.toml", **target)
    dynamic, fixed = (
        build(open_request(checkpoint, name, recipe, root / output, threads=1)).output
        for name, output in (("cpu", "dynamic"), (file, "fixed"))
    )
    return Pair(dynamic, fixed, checkpoint)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
