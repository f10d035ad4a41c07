"""A package with other choices: its default encoder, the margin of its compressor, and its bound of visual tokens."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from hvlc.errors import HvlcError
from hvlc.files.digests import digest_file
from hvlc.graphs.facts import SCALE_MARGIN
from hvlc.manifest.lock import LOCK, Lock
from hvlc.manifest.manifest import MANIFEST, FileEntry, Manifest
from hvlc.manifest.policy import EncoderPolicy
from hvlc.manifest.tuning import Tuning
from hvlc.opening.graphs import load_graph
from hvlc.package.writer import json_text


def apply_tuning(directory: Path, tuning: Tuning) -> Manifest:
    """Change a package in place, as `tuning` says.

    Equal packages and equal choices give equal bytes, so a rebuild can repeat it.

    Args:
        directory: a copy of the package, which nobody else reads.
        tuning: the choices.

    Returns:
        The new manifest.
    """
    manifest = Manifest.load(directory)
    images = manifest.images
    if images is None:
        raise HvlcError("package.kind", f"{directory} sees no images", "report it")
    front = manifest.components["front"].file
    if tuning.scale_margin is not None:
        (directory / front).write_bytes(front_with_margin(directory / front, tuning.scale_margin))
    lock = Lock.load(directory)
    outputs = dict(lock.outputs) | {front: _entry(directory / front)}
    renewed = lock.model_copy(update={"outputs": outputs})
    (directory / LOCK).write_text(json_text(renewed.model_dump(mode="json")), "utf-8")
    files = dict(manifest.files) | {name: _entry(directory / name) for name in (front, LOCK)}
    changed = manifest.model_copy(
        update={
            "policy": EncoderPolicy(default=tuning.encoder),
            "images": images.model_copy(update={"max_visual_tokens": tuning.max_visual_tokens}),
            "tuned": tuning,
            "files": files,
        }
    )
    (directory / MANIFEST).write_text(json_text(changed.model_dump(mode="json")), "utf-8")
    return Manifest.load(directory)


def front_with_margin(path: Path, margin: float) -> bytes:
    """A front graph with another factor on its compressor's scale.

    Raises:
        HvlcError: it has no such factor.
    """
    model: onnx.ModelProto = load_graph(path)
    found = [tensor for tensor in model.graph.initializer if tensor.name == SCALE_MARGIN]
    if not found:
        raise HvlcError("package.graph", f"{path.name} has no {SCALE_MARGIN}", "build the package again")
    changed = numpy_helper.from_array(np.array([margin], np.float32), SCALE_MARGIN)
    found[0].CopyFrom(changed)
    return model.SerializeToString(deterministic=True)


def has_margin(path: Path) -> bool:
    """Whether a front graph has a factor on its compressor's scale."""
    return any(tensor.name == SCALE_MARGIN for tensor in load_graph(path).graph.initializer)


def copy_package(source: Path, names: Mapping[str, FileEntry], place: Path) -> None:
    """Copy a package's files and its manifest; hard links where the disk allows, for what nobody changes."""
    manifest = Manifest.load(source)
    changed = {MANIFEST, LOCK, manifest.components["front"].file}
    for name in (*names, MANIFEST):
        if name in changed:
            shutil.copyfile(source / name, place / name)
        else:
            link_or_copy(source / name, place / name)


def link_or_copy(source: Path, target: Path) -> None:
    """Make a file that stands at another place too: a hard link where the disk allows, else a copy."""
    try:
        target.hardlink_to(source)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _entry(path: Path) -> FileEntry:
    return FileEntry(bytes=path.stat().st_size, sha256=digest_file(path))
