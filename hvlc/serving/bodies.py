"""Bodies of requests, read within bounds: of one, of all together, and of how long a client takes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request

from hvlc.errors import UserError
from hvlc.serving.limits import Limits
from hvlc.serving.turns import BusyError, LateError

_TOGETHER = 4  # times the largest body: bytes of all requests that are read, wait or are answered


class BodySizeError(UserError):
    """A body is larger than the server allows."""


@dataclass
class Bodies:
    """Bytes that all requests hold together.

    Attributes:
        limits: of the server.
        held: bytes by now.
    """

    limits: Limits
    held: int = field(default=0, init=False)

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, which counts as held until the block ends.

        Raises:
            BodySizeError: it is larger than one may be.
            BusyError: all together would be larger than they may be.
            LateError: the client does not go on sending.
            UserError: the client has gone.
        """
        taken, parts, chunks = 0, [], request.stream().__aiter__()
        try:
            while True:
                try:
                    part = await asyncio.wait_for(anext(chunks), self.limits.idle)
                except StopAsyncIteration:
                    break
                taken, self.held = taken + len(part), self.held + len(part)
                self._check(taken)
                parts.append(part)
            yield b"".join(parts)
        except TimeoutError as error:
            cause = f"nothing of the body came for {self.limits.idle:g} seconds"
            raise LateError("request.body", cause, "send it at once") from error
        except ClientDisconnect as error:
            raise UserError("request.cancelled", "the client has gone", "ask again") from error
        finally:
            self.held -= taken

    def _check(self, taken: int) -> None:
        if taken > self.limits.body:
            cause = f"the body has more than {self.limits.body} bytes"
            raise BodySizeError(
                "request.body", cause, "send smaller images, or start the server with a larger --max-body"
            )
        if self.held > _TOGETHER * self.limits.body:
            cause = f"all requests together hold more than {_TOGETHER * self.limits.body} bytes"
            raise BusyError("request.busy", cause, "ask again later")
