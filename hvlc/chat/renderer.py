"""Rendering of chat templates in a process of its own, within bounds of time, memory and output."""

import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvlc.files.scratch import temporary_directory

WORKER = Path(__file__).with_name("worker.py")
#: Command that starts the process; nothing else of hvlc's own starts one while a package is asked.
COMMAND = (sys.executable, "-P", str(WORKER))

_RENDER_SECONDS = 4.0  # a real template takes milliseconds
_OPEN_SECONDS = 18.0  # of a tokenizer: 150,000 tokens take about a second
_ENCODE_SECONDS = 10.0  # a tokenizer's expressions may backtrack for ever; real ones take a second for 10 MB
_MEMORY = 1_500_000_000  # bytes of address space
#: Configuration that onnxruntime-genai needs before it opens the tokenizer of a directory; nothing of it is used.
_CONFIG = {"type": "llama", "vocab_size": 1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_CONFIGURATION = json.dumps({"model": {**_CONFIG, "context_length": 1}})

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Refusal:
    """An engine's answer where it has no text.

    Attributes:
        cause: what it said, or how its process ended.
        fatal: its process died, or was ended because it took too long.
    """

    cause: str
    fatal: bool = False


class Renderer:
    """Engines that render templates and tokenizers that they come with, in one process that may die of them.

    The process is started by the first request, and again by the first one after its end.

    Args:
        files: tokenizer files for the runtime: paths or contents, by name.
    """

    def __init__(self, files: Mapping[str, Path | str]) -> None:
        self._files = files
        self._process: subprocess.Popen[bytes] | None = None
        self._is_open = False

    def start(self) -> None:
        """Start the process and open the tokenizer there, without waiting for either."""
        if self._process is None:
            self._process = subprocess.Popen(
                [*COMMAND, str(_MEMORY)],
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            weakref.finalize(self, _end, self._process)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def use(self, files: Mapping[str, Path | str]) -> None:
        """Take other tokenizer files from here on."""
        self._files, self._is_open = files, False

    def opened(self) -> Refusal | None:
        """None where the runtime opens the tokenizer; else why it does not.

        Raises:
            UserError: there is no place for temporary files.
        """
        if self._process is not None and self._is_open:
            return None
        with temporary_directory("chat") as scratch:
            self._fill(scratch)
            found = self._ask("open_runtime", _OPEN_SECONDS, directory=str(scratch))
        self._is_open = not isinstance(found, Refusal)
        return found if isinstance(found, Refusal) else None

    def render(self, messages: Messages, *, answers: bool) -> str | Refusal:
        """Messages as the runtime renders them, with the template among the files.

        Args:
            messages: of a chat.
            answers: end where the model's turn begins.
        """
        refusal = self.opened()
        if refusal is not None:
            return refusal
        return self._text("runtime", messages=list(messages), answers=answers)

    def transformers(
        self, messages: Messages, template: str, specials: Mapping[str, str], *, answers: bool, today: str | None = None
    ) -> str | Refusal:
        """Messages as transformers renders them.

        Args:
            messages: of a chat.
            template: the source.
            specials: special tokens by name.
            answers: end where the model's turn begins.
            today: ISO date for templates that write it; None is the day it is.
        """
        asked = {"template": template, "specials": dict(specials), "today": today}
        return self._text("transformers", messages=list(messages), answers=answers, **asked)

    def translated(self, template: str, specials: Mapping[str, str]) -> tuple[str, tuple[str, ...]] | Refusal:
        """A template in the runtime's dialect, and why it differs (`hvlc.chat.dialect`)."""
        found = self._ask("translate", _RENDER_SECONDS, template=template, specials=dict(specials))
        return found if isinstance(found, Refusal) else (str(found["text"]), tuple(found["changes"]))

    def encoded(self, texts: Sequence[str]) -> list[list[int]] | Refusal:
        """Ids of texts in the runtime."""
        refusal = self.opened()
        if refusal is not None:
            return refusal
        found: list[list[int]] | Refusal = self._ask("encode_runtime", _ENCODE_SECONDS, texts=list(texts))
        return found

    def reference(self, file: Path, texts: Sequence[str]) -> list[list[int]] | Refusal:
        """Ids of texts by the library that writes tokenizer.json files."""
        opened = self._ask("open_reference", _OPEN_SECONDS, file=str(file.absolute()))
        if isinstance(opened, Refusal):
            return opened
        found: list[list[int]] | Refusal = self._ask("encode_reference", _ENCODE_SECONDS, texts=list(texts))
        return found

    def _text(self, do: str, **arguments: Any) -> str | Refusal:
        found: str | Refusal = self._ask(do, _RENDER_SECONDS, **arguments)
        return found

    def _fill(self, scratch: Path) -> None:
        (scratch / "genai_config.json").write_text(_CONFIGURATION, "utf-8")
        for name, content in self._files.items():
            if isinstance(content, Path):
                (scratch / name).symlink_to(content.absolute())
            else:
                (scratch / name).write_text(content, "utf-8")

    def _ask(self, do: str, seconds: float, **arguments: Any) -> Any:
        """The value of a request, or a `Refusal`."""
        self.start()
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("a process without pipes")
        line = json.dumps({"do": do, "seconds": seconds, **arguments}).encode() + b"\n"
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError:
            return self._died(f"it ended before {do}")
        answer = _line(process.stdout.fileno(), seconds)
        if answer is None:
            return self._died(f"it did not end within {seconds:g} s")
        if not answer:
            return self._died("")
        found = json.loads(answer)
        if "refused" in found:
            return Refusal(str(found["refused"]))
        return found["value"]

    def _died(self, how: str) -> Refusal:
        process, self._process, self._is_open = self._process, None, False
        if process is None:
            return Refusal(how, fatal=True)
        if how:
            process.kill()
        code = process.wait()
        _end(process)
        return Refusal(how or f"its process ended with {_ending(code)}", fatal=True)


def _line(descriptor: int, seconds: float) -> bytes | None:
    """A line without its end; empty at the end of the file, None when the time is over."""
    deadline, pieces = time.monotonic() + seconds, []
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = os.read(descriptor, 1 << 20)
        pieces.append(piece)
        if not piece:
            return b""
        if piece.endswith(b"\n"):
            return b"".join(pieces)


def _ending(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue
    process.kill()
    process.wait()
