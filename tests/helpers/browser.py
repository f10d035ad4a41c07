"""A headless Chromium, driven over its own protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """A page.

    Args:
        socket: to the browser.

    Attributes:
        problems: exceptions and refused requests so far.
    """

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.problems: list[Any] = []

    async def command(self, method: str, **parameters: Any) -> Any:
        """Result of a command of the protocol."""
        self._number += 1
        await self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            told = json.loads(await self._socket.recv())
            if told.get("id") == self._number:
                return told.get("result", told)
            if told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(told)

    async def value(self, expression: str) -> Any:
        """Value of a script."""
        found = await self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return found.get("result", {}).get("value")

    async def until(self, expression: str, seconds: float = 60) -> None:
        """Wait until a script is true."""
        end = time.monotonic() + seconds
        while not await self.value(expression):
            assert time.monotonic() < end, expression
            await asyncio.sleep(0.2)

    async def choose_file(self, selector: str, file: Path) -> None:
        """Choose a file in an input."""
        document = await self.command("DOM.getDocument")
        node = await self.command("DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector)
        await self.command("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(file)])

    async def screenshot(self, file: Path) -> None:
        """Write a picture of what is shown."""
        shot = await self.command("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def page(address: str, profile: Path, *, width: int, height: int) -> AsyncIterator[Page]:
    """A page of an address, so many pixels wide and high."""
    import websockets

    assert CHROMIUM is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command = [CHROMIUM, *options, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            async with websockets.connect(await _socket(profile), max_size=2**28) as socket:
                found = Page(socket)
                for domain in ("Runtime", "Log", "Page", "DOM"):
                    await found.command(f"{domain}.enable")
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
                await found.command("Emulation.setDeviceMetricsOverride", **size)
                await found.command("Page.navigate", url=address)
                yield found
        finally:
            browser.kill()


async def _socket(profile: Path) -> str:
    """Address of the first page's socket, once the browser listens."""
    port = profile / "DevToolsActivePort"
    for _ in range(150):
        await asyncio.sleep(0.2)
        if port.exists() and port.read_text().splitlines():
            with urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json") as answer:
                pages = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
    raise AssertionError("the browser does not listen")
