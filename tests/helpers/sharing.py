"""What is made once for all the processes that share a run of tests."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock

Made = TypeVar("Made")


def common(factory: pytest.TempPathFactory) -> Path:
    """The temporary directory of the run: that of this process, or the one around it where pytest-xdist has workers."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """What `make` answers for an empty directory; the other processes wait for the first and read its answer.

    Args:
        factory: pytest's.
        name: of the directory, unique in the run.
        make: fills the directory. Its answer can be pickled; if it fails, the next process starts afresh.
    """
    root = common(factory) / "shared"
    root.mkdir(exist_ok=True)
    directory, answer = root / name, root / f"{name}.pickle"
    with FileLock(root / f"{name}.lock"):
        if not answer.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            content = pickle.dumps(make(directory))
            answer.write_bytes(content)
        return pickle.loads(answer.read_bytes())
