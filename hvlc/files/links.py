"""Places of the files of a directory that others wrote: in it, or in the hub's cache that it is a snapshot of.

The Hugging Face cache keeps every file once, under the digest of its content, and makes a snapshot of links to them:

    models--ORGANIZATION--NAME/blobs/DIGEST
    models--ORGANIZATION--NAME/snapshots/REVISION/model.onnx -> ../../blobs/DIGEST

So a link may lead to a file below the directory itself, or, where the directory is a snapshot or lies below one, to a
file right inside `blobs` beside that snapshot's `snapshots`. Every other link leads outside, as does a name with `..`.
"""

import os
from pathlib import Path

_SNAPSHOTS, _BLOBS = "snapshots", "blobs"


def leads_outside(path: Path, directory: Path) -> bool:
    """Whether a path leaves a directory by the rule of this module; what does not exist is judged by its name.

    Never raises: a name with a NUL leads outside; one that is too long, or a circle of links, is found out by opening.

    Args:
        path: of a file of the directory, as a manifest or a graph names it.
        directory: given by the user, so that links on the way to it are followed.
    """
    try:
        root, found = (Path(os.path.realpath(place)) for place in (directory, path))
    except (OSError, ValueError):
        return True
    return not found.is_relative_to(root) and found.parent != _blobs_of(root)


def _blobs_of(root: Path) -> Path | None:
    """Directory of a snapshot's files; None where the directory belongs to none."""
    for snapshot in (root, *root.parents):
        if snapshot.parent.name == _SNAPSHOTS:
            return snapshot.parent.parent / _BLOBS
    return None
