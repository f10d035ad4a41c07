"""What tests of calibrated builds share: recipes, packages as bytes, and builds that stop on the way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvlc.workflows.build.request import BuildRequest, open_request

Progress = Callable[[str, int, int], None]


class StoppedError(Exception):
    """A build was stopped by its test."""


def write_recipe(
    path: Path, *, samples: int = 4, tokens: int = 24, encoders: bool = True, source: str | None = None, **spec: Any
) -> str:
    """A recipe that calibrates the decoder (and vision encoders); the file's name."""
    settings = {"bits": 4, "block_size": 32, "solver": "gptq", **spec}
    rules: list[dict[str, Any]] = [{"role": "decoder", "quantize": settings}]
    if encoders:
        rules.append({"role": "vision_encoder", "optional": True, "quantize": {**settings, "bits": 8}})
    calibration: dict[str, Any] = {"samples": samples, "tokens": tokens, **({"source": source} if source else {})}
    content = {"schema_version": 1, "name": path.stem, "description": "calibrated", "calibration": calibration}
    path.write_text(json.dumps({**content, "rules": rules}), "utf-8")  # JSON is YAML
    return str(path)


def request(checkpoint: Path, recipe: str, output: Path, **options: Any) -> BuildRequest:
    return open_request(checkpoint, "cpu", recipe, output, **{"threads": 1, **options})


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def stopping(stage: str, after: int) -> Progress:
    """Progress that stops a build when it was told of a stage that often."""
    told = [0]

    def progress(what: str, done: int, total: int) -> None:
        told[0] += what.startswith(stage)
        if told[0] > after:
            raise StoppedError

    return progress
