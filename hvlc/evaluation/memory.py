"""Peak memory of one part of a process's life."""

from pathlib import Path

_PROCESS = Path("/proc/self")


def reset_peak_memory() -> bool:
    """Start a new peak at the present memory; false where the system cannot (anything but Linux)."""
    try:
        (_PROCESS / "clear_refs").write_text("5")  # "5" resets VmHWM: proc(5)
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int | None:
    """Peak resident bytes since the process began or the peak was reset; absent where the system cannot tell."""
    return _status("VmHWM")


def memory_bytes() -> int | None:
    """Resident bytes now; absent where the system cannot tell."""
    return _status("VmRSS")


def _status(name: str) -> int | None:
    try:
        status = (_PROCESS / "status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
