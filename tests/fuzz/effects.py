"""What commands do besides computing: processes that start, files that are written, libraries that are loaded.

Where `strace` is there it sees all of a process, native code included. Elsewhere an audit hook sees what Python does,
and the process's own memory map shows which libraries are in it at the end.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Runs commands of hvlc, one a line of standard input as JSON; a line that begins with "!" is Python to run instead.
_CHILD = r"""
import contextlib, io, json, os, sys
from tests.fuzz.processes import STARTS
MAKING = ("os.rename", "os.link", "os.symlink")
CHANGING = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod")
found = []
def note(event, arguments):
    if event in STARTS:
        found.append(["execve", repr(arguments)[:300]])
    elif event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            found.append(["write", os.path.realpath(arguments[0])])
    elif event in MAKING or event in CHANGING:
        changed = arguments[1] if event in MAKING else arguments[0]
        if isinstance(changed, str | bytes):
            found.append(["write", os.path.realpath(os.path.join(os.path.realpath("."), os.fsdecode(changed)))])
    elif event == "ctypes.dlopen" and arguments[0]:
        found.append(["load", str(arguments[0])])
if sys.argv[1] == "hook":
    sys.addaudithook(note)
codes = []
from hvlc import cli
for line in sys.stdin:
    out = io.StringIO()
    if line.startswith("!"):
        exec(line[1:])
        continue
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            cli.main(json.loads(line))
        except SystemExit as stop:
            code = int(stop.code or 0)
    codes.append([code, out.getvalue()[-1000:]])
with open("/proc/self/maps") as maps:
    mapped = {part[5].strip() for line in maps if "x" in (part := line.split(maxsplit=5))[1] and len(part) == 6}
if sys.argv[1] == "hook":
    found += [["load", path] for path in sorted(mapped) if path.startswith("/")]
print(json.dumps({"codes": codes, "found": found}))
"""

_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT")
#: A call of a log that strace wrote with -y, as far as it matters here.
_CALL = re.compile(r"^\d+\s+(?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+)")
_TRACED = (
    "execve,execveat,open,openat,openat2,creat,mmap,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,"
    "linkat,symlink,symlinkat,truncate,chmod,fchmodat"
)


#: hvlc's own process that renders a package's template within bounds.
_RENDERING = "hvlc/chat/worker.py"


@dataclass(frozen=True)
class Effects:
    """What a process did.

    Attributes:
        codes: exit code of each command, and the end of what it said.
        started: processes.
        written: files and directories that were made, changed or removed.
        loaded: libraries whose code was mapped.
    """

    codes: list[tuple[int, str]]
    started: list[str]
    written: list[str]
    loaded: list[str]

    def beyond(self, scratch: Sequence[Path]) -> list[str]:
        """What nobody allowed: processes, files outside `scratch`, and libraries that neither came with Python and its
        packages nor with the system."""
        own = tuple(f"{place.resolve()}/" for place in scratch)
        written = [path for path in self.written if not path.startswith((*own, "/dev/", "/proc/")) and path not in own]
        strange = [path for path in self.loaded if not os.path.realpath(path).startswith(_libraries())]
        started = [process for process in self.started if _RENDERING not in process]
        return [*started, *written, *strange]


def _libraries() -> tuple[str, ...]:
    """Directories of Python, its packages and the system."""
    python = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent), *sys.path}
    packages = {str(Path(place).resolve()) for place in python if place.endswith("site-packages") or "lib" in place}
    roots = {str(Path(place).resolve()) for place in (sys.prefix, sys.base_prefix)} | packages
    return (*(f"{place}/" for place in roots), "/usr/lib", "/lib", "/usr/local/lib", "/usr/bin/", "/usr/local/bin/")


def hooked(lines: Sequence[Sequence[object] | str], work: Path) -> Effects:
    """Run commands in a child with an audit hook.

    Args:
        lines: commands, or Python as text.
        work: directory that they run in.
    """
    said = _run([], "hook", lines, work)
    found = [(kind, what) for kind, what in said["found"]]
    kinds = [[what for kind, what in found if kind == wanted] for wanted in ("execve", "write", "load")]
    return Effects([tuple(code) for code in said["codes"]], *kinds)


def traced(lines: Sequence[Sequence[object] | str], work: Path) -> Effects:
    """Run commands in a child under strace.

    Args:
        lines: commands, or Python as text.
        work: directory that they run in.
    """
    log = work / "strace.log"
    said = _run(["strace", "-f", "-y", "-s", "4096", "-e", f"trace={_TRACED}", "-o", str(log)], "strace", lines, work)
    started, written, loaded = [], [], []
    for name, arguments in _calls(log):
        if name.startswith("execve"):
            started.append(arguments[:300])
        elif name == "mmap":
            if "PROT_EXEC" in arguments and (mapped := re.search(r"\d+<(/[^>]*)>", arguments)):
                loaded.append(mapped[1])
        elif not name.startswith("open") or _WRITES.search(arguments):
            written += _paths(name, arguments, work)
    log.unlink()
    return Effects([tuple(code) for code in said["codes"]], started[1:], written, loaded)  # the first is the child


def _calls(log: Path) -> Iterator[tuple[str, str]]:
    """Calls that went well; those that another thread interrupted are put together."""
    waiting: dict[str, str] = {}
    for line in log.read_text("utf-8", "replace").splitlines():
        process, _, rest = line.partition(" ")
        if rest.rstrip().endswith("<unfinished ...>"):
            waiting[process] = rest.rstrip().removesuffix("<unfinished ...>")
            continue
        resumed = re.match(r"\s*<\.\.\. \w+ resumed>(.*)", rest)
        found = _CALL.match(f"{process} {waiting.pop(process, '')}{resumed[1]}" if resumed else line)
        if found and not found["result"].startswith("-"):
            yield found["name"], found["arguments"]


def _paths(name: str, arguments: str, work: Path) -> list[str]:
    """What a call makes, changes or removes: the last path that it names, or for a rename both."""
    named = re.findall(r'"((?:[^"\\]|\\.)*)"', arguments)
    chosen = named if name.startswith("rename") else named[-1:]
    return [os.path.realpath(work / path) for path in chosen]


def _run(
    wrapper: Sequence[str], mode: str, lines: Sequence[Sequence[object] | str], work: Path
) -> dict[str, list[list[str]]]:
    given = "".join(
        f"!{line}\n" if isinstance(line, str) else json.dumps([str(part) for part in line]) + "\n" for line in lines
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(work),
        "HOME": str(work),
    }
    ended = subprocess.run(
        [*wrapper, sys.executable, "-c", _CHILD, mode],
        input=given,
        capture_output=True,
        text=True,
        cwd=work,
        env=environment,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    answer: dict[str, list[list[str]]] = json.loads(ended.stdout.splitlines()[-1])
    return answer


#: How a process can be watched here.
WATCHES: dict[str, Callable[[Sequence[Sequence[object] | str], Path], Effects]] = {
    "audit hook": hooked,
    **({"strace": traced} if shutil.which("strace") else {}),
}
