"""Memory that a build really took: this process's peak, sampled while it runs, and a limit that is kept."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from hvlc.errors import UserError
from hvlc.results.build import MemoryUse

_STATUS = Path("/proc/self/status")
_INTERVAL = 0.02  # seconds between samples


def current_memory() -> MemoryUse:
    """Memory of this process now.

    Unshared is what the system cannot drop when it runs short (anonymous and shared-memory pages); mapped
    checkpoint files are not in it. Where the system does not tell them apart it counts everything.
    """
    if _STATUS.is_file():
        lines = (line.split(":", 1) for line in _STATUS.read_text("ascii").splitlines())
        kilobytes = {key: int(value.split()[0]) for key, value in lines if key in ("VmRSS", "RssAnon", "RssShmem")}
        unshared = kilobytes.get("RssAnon", kilobytes.get("VmRSS", 0)) + kilobytes.get("RssShmem", 0)
        return MemoryUse(1024 * unshared, 1024 * kilobytes.get("VmRSS", 0))
    import psutil

    resident = int(psutil.Process().memory_info().rss)
    return MemoryUse(resident, resident)


class MemoryWatch:
    """Sampler of memory in the background.

    Attributes:
        peak: the largest values seen; they need not be of the same moment.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.peak = current_memory()
        self._limit = limit
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def sample(self) -> None:
        """Look now."""
        now = current_memory()
        self.peak = MemoryUse(max(self.peak.unshared, now.unshared), max(self.peak.total, now.total))

    def check(self) -> None:
        """Hold the peak against the limit.

        Raises:
            UserError: it was exceeded.
        """
        if self._limit is not None and self.peak.unshared > self._limit:
            raise UserError(
                "memory.exceeded",
                f"the build took {self.peak.unshared / 1e6:.0f} MB of memory, --max-memory allows "
                f"{self._limit / 1e6:.0f} MB",
                "allow more memory",
            )

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self.sample()
