"""The process that renders: it may die, hang or grow, and the next request finds another one."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime_genai as og
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.chat.renderer import COMMAND, Refusal, Renderer
from hvlc.chat.texts import ORDINARY, RARE
from hvlc.errors import UserError
from hvlc.zoo import nano_checkpoint

CHAT = [{"role": "user", "content": "Hi"}]
TOKENIZER = json.dumps(
    {"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}
)

#: Of a directory with whose tokenizer the runtime works.
CONFIGURATION = json.dumps(
    {"model": {"type": "llama", "vocab_size": 1, "context_length": 1, "eos_token_id": 0, "pad_token_id": 0}}
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


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Renderer, og.Tokenizer]:
    """The same tokenizer in a process of its own and in this one."""
    names = ("tokenizer.json", "tokenizer_config.json")
    directory = tmp_path_factory.mktemp("tokenizer")
    (directory / "genai_config.json").write_text(CONFIGURATION)
    for name in names:
        (directory / name).symlink_to(nano_checkpoint() / name)
    return Renderer({name: nano_checkpoint() / name for name in names}), og.Tokenizer(str(directory))


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_ids_are_those_of_the_runtime(both: tuple[Renderer, og.Tokenizer], drawn: list[str]) -> None:
    renderer, tokenizer = both
    texts = ["", *ORDINARY, *RARE.values(), *drawn]
    assert renderer.encoded(texts) == [tokenizer.encode(text).tolist() for text in texts]


def test_a_process_that_encodes_imports_neither_numpy_nor_typing(tmp_path: Path) -> None:
    """Their import takes longer than all the rest, and every package that is opened starts a process."""
    (tmp_path / "genai_config.json").write_text(CONFIGURATION)
    for name, content in files("a").items():
        (tmp_path / name).write_text(str(content))
    asked = [{"do": "open_runtime", "directory": str(tmp_path)}, {"do": "encode_runtime", "texts": ["ab"]}]
    lines = "".join(json.dumps({"seconds": 10, **request}) + "\n" for request in asked)
    command = [COMMAND[0], "-X", "importtime", *COMMAND[1:], "1500000000"]
    ended = subprocess.run(command, input=lines, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-1000:]
    assert json.loads(ended.stdout.splitlines()[-1]) == {"value": [[2]]}
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "onnxruntime_genai" in imported
    assert not imported & {"numpy", "typing", "jinja2"}
