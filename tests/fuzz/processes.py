"""Processes that Python code starts, recorded by an audit hook; all but the one that renders chat templates, which is
started so that a template ends no other.

A process that a C library starts by itself raises no audit event; `strace` sees it, this does not.
"""

import contextlib
import sys
from collections.abc import Iterator

from hvlc.chat.renderer import COMMAND

#: Audit events of everything in Python that starts a process or replaces this one.
#: https://docs.python.org/3/library/audit_events.html
STARTS = frozenset(
    "subprocess.Popen os.exec os.posix_spawn os.spawn os.system os.fork os.forkpty os.startfile pty.spawn".split()
)

_recording: list[list[str]] = []
_hooked: list[bool] = []


@contextlib.contextmanager
def recorded_processes() -> Iterator[list[str]]:
    """A list that every process started within the block is added to, as "event arguments"."""
    if not _hooked:  # a hook cannot be removed
        sys.addaudithook(_note)
        _hooked.append(True)
    found: list[str] = []
    _recording.append(found)
    try:
        yield found
    finally:
        # By identity: of two equal lists the other one would go.
        _recording[:] = [other for other in _recording if other is not found]


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event in STARTS and not _renders(event, arguments):
        for found in _recording:
            found.append(f"{event} {arguments!r}"[:300])


def _renders(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether a process is the renderer of chat templates, to the letter of its command."""
    command = arguments[1] if event == "subprocess.Popen" and len(arguments) > 1 else None
    return isinstance(command, list | tuple) and tuple(command[: len(COMMAND)]) == COMMAND
