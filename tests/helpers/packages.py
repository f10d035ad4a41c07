"""Copies of packages that were changed, with digests that agree: what a person makes who wants to be believed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from hvlc.files.digests import digest_file
from hvlc.manifest.manifest import MANIFEST


def changed_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change what is in a JSON file; what `change` answers is of no effect."""
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def changed_graph(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change an ONNX file without touching its data."""
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def renewed(package: Path, *more: str) -> Path:
    """The package with sizes and digests that agree with its files; `more` are listed too."""

    def renew(manifest: Any) -> None:
        for name in (*manifest["files"], *more):
            path = package / name
            if path.is_file():
                manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": digest_file(path)}

    changed_json(package / MANIFEST, renew)
    return package


def hub_snapshot(package: Path, root: Path) -> Path:
    """The package in the layout of the hub's cache: every file a link."""
    repository = root / "models--team--model"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in sorted(package.iterdir()):
        blob = repository / "blobs" / digest_file(path)
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot
