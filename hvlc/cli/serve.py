"""Packages behind HTTP, on the command line."""

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hvlc.cli.common import json_option, show
from hvlc.cli.options import BOUNDED, PLACE, SIZE, WORDS, Real
from hvlc.cli.streams import say
from hvlc.cli.vision import vision_options
from hvlc.errors import UserError, nearest

if TYPE_CHECKING:
    from hvlc.runtime.generation import LanguageModel
    from hvlc.runtime.settings import VisionSettings

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@click.command(short_help="Serve packages over OpenAI's interface.")
@click.argument("directories", type=PLACE, nargs=-1, required=True)
@click.option("--host", type=WORDS, default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free.")
@click.option("--api-key", type=WORDS, envvar="HVLC_API_KEY", help="Key of every request (better: HVLC_API_KEY).")
@click.option("--max-body", type=SIZE, default="32MB", show_default=True, help="Largest request.")
@click.option("--max-images", type=click.IntRange(0, 256), default=16, show_default=True, help="Images of a request.")
@click.option("--max-waiting", type=click.IntRange(0, 10_000), default=16, show_default=True, help="Requests in line.")
@click.option("--max-new-tokens", type=BOUNDED, default=512, show_default=True, help="Longest answer.")
@click.option("--timeout", type=Real(0, 86_400), default=300.0, show_default=True, help="Seconds of a request.")
@click.option("--allow-remote-images", is_flag=True, help="Fetch images from public addresses.")
@json_option
@vision_options
def serve(
    directories: tuple[Path, ...],
    host: str,
    port: int,
    api_key: str | None,
    max_body: int,
    max_images: int,
    max_waiting: int,
    max_new_tokens: int,
    timeout: float,
    allow_remote_images: bool,
    as_json: bool,
    vision: "VisionSettings | None",
) -> None:
    """Serve packages under /v1/chat/completions and /v1/models, as clients of OpenAI's interface ask.

    A model is named like its directory; suffixes choose what it offers, as in receipts:base:256 (encoder, visual
    tokens) or receipts:full (no compressor). Without --host, only this machine can ask.
    """
    _require()
    from hvlc.runtime.generation import open_model
    from hvlc.runtime.settings import USUAL
    from hvlc.serving.app import Server
    from hvlc.serving.limits import Limits
    from hvlc.serving.listening import listen

    _check_names(directories)
    limits = Limits(max_body, max_images, max_waiting, timeout, max_new_tokens)
    models: dict[str, LanguageModel] = {d.resolve().name: open_model(d, vision=vision or USUAL) for d in directories}
    hosts = _LOOPBACK if _is_loopback(host) else None
    server = Server(models, limits, api_key, allow_remote_images, hosts)
    if hosts is None and api_key is None:
        say(f"warning: everybody who reaches {host} can ask; set HVLC_API_KEY", error=True)

    def ready(address: str) -> None:
        show({"url": address, "models": list(models)}, as_json, lambda _: say(f"{', '.join(models)} at {address}/v1"))

    listen(server, host, port, ready)


def _require() -> None:
    """Refuse to serve where the server is not installed.

    Raises:
        UserError: a package is missing.
    """
    import importlib.util

    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError("install.serve", f"serving needs {', '.join(missing)}", "pip install 'hvlc[serve]'")


def _check_names(directories: Sequence[Path]) -> None:
    """Refuse two packages of one name, and names that suffixes would hide.

    Raises:
        UserError: what was found.
    """
    names = [directory.resolve().name for directory in directories]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError("request.model", f"two packages are named {', '.join(twice)}", "rename one of the directories")
    split = [name for name in names if ":" in name]
    if split:
        cause = f"{split[0]!r} has a colon, which separates suffixes"
        raise UserError("request.model", cause, nearest(split[0].replace(":", "-"), []) or "rename the directory")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
