"""Whole processes, measured from outside: time, processor time, memory of the tree, bytes written (Linux)."""

import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_INTERVAL = 0.05  # seconds between samples
_BLOCK = 512  # bytes in a block as getrusage counts them


@dataclass(frozen=True)
class Measurement:
    """One run of one command.

    Attributes:
        wall: seconds from start to end.
        cpu: processor seconds, user and system, of the process and the children it waited for.
        peak_rss: largest resident size of the whole tree in bytes, pages of mapped files included.
        peak_unshared: largest sum of anonymous and shared memory in bytes: what cannot be dropped under pressure.
        written: bytes written to files.
        stopped: whether it was ended because its budget was used up.
    """

    wall: float
    cpu: float
    peak_rss: int
    peak_unshared: int
    written: int
    stopped: bool = False


class CommandFailedError(Exception):
    """A measured command did not end well."""


def _status(pid: int) -> Mapping[str, int]:
    """The kB figures of /proc/PID/status in bytes; empty when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields}


def _tree(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text(encoding="ascii").split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in found:
            yield from _tree(int(child))


def memory(pid: int) -> tuple[int, int]:
    """Resident and unshared bytes of a process tree, now."""
    found = [_status(process) for process in _tree(pid)]
    resident = sum(status.get("VmRSS", 0) for status in found)
    unshared = sum(status.get("RssAnon", 0) + status.get("RssShmem", 0) for status in found)
    return resident, unshared


def peak_resident(pid: int) -> int:
    """Largest resident bytes that one process ever had."""
    return _status(pid).get("VmHWM", 0)


def measure(command: Sequence[str], *, log: Path, budget: float | None = None) -> Measurement:
    """Run a command to its end, or until its budget is used up, and sample it every 50 ms.

    Args:
        command: program and arguments.
        log: takes what the command prints.
        budget: seconds after which it is killed; its children are not.

    Raises:
        CommandFailedError: the command ended with another code than 0.
    """
    resident = unshared = 0
    stopped = False
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                now = memory(process.pid)
                resident, unshared = max(resident, now[0]), max(unshared, now[1])
                if budget is not None and time.perf_counter() - start > budget:
                    stopped = True
                    process.kill()
                time.sleep(_INTERVAL)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not stopped:
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise CommandFailedError(f"{command[0]} ended with {process.returncode}:\n{tail}")
    cpu, written = usage.ru_utime + usage.ru_stime, usage.ru_oublock * _BLOCK
    return Measurement(wall, cpu, resident, unshared, written, stopped)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over pairs of ours / theirs: a slow minute of the machine hits both sides of a pair.

    Raises:
        ValueError: there are no pairs, or a run lacks its partner.
    """
    if not ours:
        raise ValueError("no pairs")
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
