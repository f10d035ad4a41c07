"""The socket, and the server of ASGI on it."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

import uvicorn

from hvlc.errors import UserError
from hvlc.serving.app import Server

_FINISH = 5  # seconds that answers under way have after SIGTERM
_BACKLOG = 256  # connections that wait to be accepted
_OPEN = 512  # connections at once


def listen(server: Server, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        server: the application's.
        host: address to listen on.
        port: 0 takes any that is free.
        ready: called with the server's address once it takes requests.

    Raises:
        UserError: the address cannot be listened on.
    """
    bound = _bound(host, port)
    name, number = bound.getsockname()[:2]
    config = uvicorn.Config(
        server.application(),
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        limit_concurrency=_OPEN,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_FINISH,
    )
    running = uvicorn.Server(config)

    async def main() -> None:
        serving = asyncio.create_task(running.serve(sockets=[bound]))
        while not running.started and not serving.done():
            await asyncio.sleep(0.01)
        if running.started:
            ready(f"http://{f'[{name}]' if ':' in name else name}:{number}")
        await serving

    # Told to stop, a server has done what it was started for; uvicorn raises the signal again after the last answer.
    with bound, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the address is unknown, taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_BACKLOG)
    except (OSError, UnicodeError) as error:
        cause = f"cannot listen on {host[:100]} port {port}: {error}"
        raise UserError("serve.address", cause, "choose another --host or --port") from error
    return found
