"""The process that renders: it may die, hang or grow, and the next request finds another one."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvlc.chat.renderer import Refusal, Renderer
from hvlc.errors import UserError

CHAT = [{"role": "user", "content": "Hi"}]
TOKENIZER = json.dumps(
    {"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}
)


def files(template: str) -> dict[str, Path | str]:
    config = json.dumps({"tokenizer_class": "TokenizersBackend", "bos_token": "<s>"})
    return {"tokenizer.json": TOKENIZER, "tokenizer_config.json": config, "chat_template.jinja": template}


def children() -> set[str]:
    """Ids of this process's renderers."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (directory / "stat").read_text("utf-8").rpartition(")")[2].split()[1]
            if parent == str(os.getpid()) and b"worker.py" in (directory / "cmdline").read_bytes():
                found.add(directory.name)
    return found


def test_after_a_crash_the_next_request_is_answered() -> None:
    renderer = Renderer(files("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) if messages[0].content == 'die' }}fine"))
    crashed = renderer.render([{"role": "user", "content": "die"}], answers=True)
    assert isinstance(crashed, Refusal)
    assert crashed.fatal
    assert "SIG" in crashed.cause
    assert renderer.render(CHAT, answers=True) == "fine"
    renderer.close()


def test_a_process_that_does_not_end_is_ended() -> None:
    loops = "".join(f"{{% for {name} in range(9999) %}}" for name in "ijk")
    renderer = Renderer(files(loops + "{% endfor %}" * 3))
    before, started = children(), time.monotonic()
    found = renderer.render(CHAT, answers=True)
    assert isinstance(found, Refusal)
    assert found.fatal
    assert time.monotonic() - started < 15
    assert children() <= before


def test_processes_go_with_their_renderers() -> None:
    before = children()
    renderer = Renderer(files("{{ bos_token }}"))
    assert renderer.render(CHAT, answers=True) == "<s>"
    assert len(children() - before) == 1
    del renderer
    gc.collect()
    assert children() <= before


def test_a_process_ends_by_itself_when_nobody_is_left(tmp_path: Path) -> None:
    """A killed parent: the pipe ends, and so does the process."""
    script = (
        "import os, sys, signal; from tests.chat.test_renderer import *;"
        "r = Renderer(files('a')); r.opened(); print(r._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    killed = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root)
    pid = int(killed.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_temporary_files_the_error_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = tmp_path / "none"
    monkeypatch.setattr("hvlc.files.scratch._SEARCHED", ())
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(full))
    with pytest.raises(UserError) as found:
        Renderer(files("a")).opened()
    assert found.value.code == "output.temporary"
