"""Digests of files."""

import hashlib
import threading
from pathlib import Path

_AT_ONCE = 1 << 20  # bytes read at a time


def digest_file(path: Path, given_up: threading.Event | None = None) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        InterruptedError: `given_up` was set on the way.
    """
    digest, buffer = hashlib.sha256(), bytearray(_AT_ONCE)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            if given_up and given_up.is_set():
                raise InterruptedError(f"{path} is no longer wanted")
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()
