"""Requests to a server, and a server in a process of its own."""

import base64
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


def data_url(image: Image.Image, kind: str = "png") -> str:
    """An image as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def body(model: str, text: str = "What?", images: tuple[Image.Image, ...] = (), **fields: Any) -> dict[str, Any]:
    """A request with one message, images first."""
    shown = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    content = [*shown, {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 6, **fields}


@dataclass
class Running:
    """A server in a process of its own.

    Attributes:
        process: of it.
        address: such as http://127.0.0.1:41234.
    """

    process: "subprocess.Popen[str]"
    address: str

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    def peak_memory(self) -> int:
        """Most resident bytes so far."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Running]:
    """`hvlc serve ARGUMENTS` on a free port, ended afterwards."""
    command = [sys.executable, "-m", "hvlc", "serve", *map(str, arguments), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert " at " in line, line + (process.stderr.read() if process.stderr else "")
            yield Running(process, line.rsplit(" at ", 1)[1].strip().removesuffix("/v1"))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
