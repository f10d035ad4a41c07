"""The application: routes, keys, and the two ways in which an answer is sent."""

import asyncio
import hmac
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hvlc.errors import HvlcError, UserError
from hvlc.runtime.generation import LanguageModel
from hvlc.runtime.sampling import TokenProbability
from hvlc.serving.bodies import Bodies
from hvlc.serving.limits import Limits
from hvlc.serving.looks import Looked
from hvlc.serving.names import Choice, names_of, parse_name
from hvlc.serving.protocol import Completion, error_object, model_object, models_object, status_of
from hvlc.serving.requests import ChatRequest, parse_request
from hvlc.serving.turns import Event, Finished, Line, Piece, Turn

PAGE = Path(__file__).with_name("page") / "index.html"
#: Sources of the page: itself, and pictures that it was given.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
_GONE = 499  # nginx's status of a request whose client has gone; nobody reads it


@dataclass
class Server:
    """A server of open packages.

    Attributes:
        models: by name.
        limits: of what it takes.
        key: that a request must bring. None: anybody may ask.
        remote: whether images are fetched from addresses.
        hosts: names under which it may be addressed. None: any.
        line: in which requests wait.
        bodies: bytes that requests hold.
    """

    models: Mapping[str, LanguageModel]
    limits: Limits = field(default_factory=Limits)
    key: str | None = None
    remote: bool = False
    hosts: Sequence[str] | None = None
    line: Line = field(init=False)
    bodies: Bodies = field(init=False)

    def __post_init__(self) -> None:
        self.line = Line(self.models, self.limits, remote=self.remote)
        self.bodies = Bodies(self.limits)
        self._manifests = {name: model.manifest for name, model in self.models.items()}

    def application(self) -> Starlette:
        """The application that a server of ASGI runs."""
        routes = [
            Route("/health", self.health, methods=["GET"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/models/{name}", self.one_model, methods=["GET"]),
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
            Route("/v1/look", self.look, methods=["POST"]),
            Route("/", self.page, methods=["GET"]),
        ]
        # A page of a stranger must not reach a server of this machine under a name of its own (DNS rebinding).
        trusted = [] if self.hosts is None else [Middleware(TrustedHostMiddleware, allowed_hosts=list(self.hosts))]
        handlers: dict[Any, Any] = {HvlcError: _refused, 404: _unknown, 405: _unknown}
        return Starlette(routes=routes, middleware=trusted, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        self.line.close()

    async def health(self, request: Request) -> Response:
        """Say that the server runs; needs no key."""
        return JSONResponse({"status": "ok"})

    async def list_models(self, request: Request) -> Response:
        """List packages and their choices."""
        self._admit(request)
        return JSONResponse(models_object([n for name, m in self._manifests.items() for n in names_of(name, m)]))

    async def one_model(self, request: Request) -> Response:
        """One model of the list."""
        self._admit(request)
        name = request.path_params["name"]
        parse_name(name, self._manifests)
        return JSONResponse(model_object(name))

    async def page(self, request: Request) -> Response:
        """The page; it asks this server alone, so it needs no key until it does."""
        return HTMLResponse(PAGE.read_text("utf-8"), headers={"content-security-policy": _POLICY})

    async def look(self, request: Request) -> Response:
        """Show what a chat's images become before an encoder sees them."""
        self._admit(request, has_body=True)
        async with self.bodies.read(request) as body:
            asked = parse_request(body)
            choice = chosen(asked, parse_name(asked.model, self._manifests))
            turn, events = self.line.join(asked, choice, looks=True)
            found = await _first(request, turn, events)
            assert isinstance(found, Looked)
            return JSONResponse(found.told())

    async def complete(self, request: Request) -> Response:
        """Answer a chat."""
        self._admit(request, has_body=True)
        async with self.bodies.read(request) as body:
            asked = parse_request(body)
            choice = chosen(asked, parse_name(asked.model, self._manifests))
            turn, events = self.line.join(asked, choice)
            spelled = self.models[choice.package].spelled
            completion = Completion.begin(f"chatcmpl-{uuid.uuid4().hex}", asked.model, spelled)
            first = await _first(request, turn, events)
            if asked.stream:
                return Stream(turn, events, first, completion, self.limits.idle)
            return await _whole(request, turn, events, first, completion)

    def _admit(self, request: Request, *, has_body: bool = False) -> None:
        """Refuse a request without the server's key, or with a body that is not JSON.

        Raises:
            UserError: it has none, or another.
        """
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and not hmac.compare_digest(given.encode(), self.key.encode()):
            raise UserError(
                "request.key", "the request has not the key of this server", "send Authorization: Bearer KEY"
            )
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if has_body and kind != "application/json":
            raise UserError("request.type", "the body is not of type application/json", "name the type of the body")


def chosen(request: ChatRequest, choice: Choice) -> Choice:
    """Choice of a request: the fields of its body before the suffixes of its model's name."""
    return replace(
        choice,
        encoder=choice.encoder if request.encoder is None else request.encoder,
        compress=choice.compress if request.vrc is None else request.vrc,
        max_visual_tokens=request.max_visual_tokens or choice.max_visual_tokens,
    )


async def _first(request: Request, turn: Turn, events: "asyncio.Queue[Event]") -> Event:
    """First event of an answer, for which a request waits its turn; an error is still a status of its own.

    Raises:
        HvlcError: the request is refused.
    """
    waiting = asyncio.create_task(events.get())
    gone = asyncio.create_task(_until_gone(request))
    done, _ = await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if waiting not in done:
        turn.cancelled.set()
        waiting.cancel()
        raise UserError("request.cancelled", "the client has gone", "ask again")
    found = waiting.result()
    if isinstance(found, HvlcError):
        raise found
    return found


async def _until_gone(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(
    request: Request, turn: Turn, events: "asyncio.Queue[Event]", first: Event, completion: Completion
) -> Response:
    """Answer in one object.

    Raises:
        HvlcError: the answer could not be finished.
    """
    texts: list[str] = []
    probabilities: list[TokenProbability] = []
    event = first
    while isinstance(event, Piece):
        texts.append(event.text)
        probabilities += [event.probability] if event.probability else []
        event = await _first(request, turn, events)
    assert isinstance(event, Finished)
    told = probabilities if turn.request.logprobs else None
    return JSONResponse(completion.whole("".join(texts), event.answered, event.reason, told))


class Stream(Response):
    """Answer as server-sent events.

    Args:
        turn: whose answer it is.
        events: of the answer.
        first: the first of them.
        completion: makes the objects.
        idle: seconds that the client may take for a part.
    """

    def __init__(
        self, turn: Turn, events: "asyncio.Queue[Event]", first: Event, completion: Completion, idle: float
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._turn, self._events, self._first = turn, events, first
        self._completion, self._idle = completion, idle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send parts until the answer is done or the client has gone."""
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._turn.cancelled.set()
            gone.cancel()
            if not sending.done():
                sending.cancel()
        if sending.done() and not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for part in self._parts():
            body = b"data: " + part.encode() + b"\n\n"
            try:
                await asyncio.wait_for(
                    send({"type": "http.response.body", "body": body, "more_body": True}), self._idle
                )
            except TimeoutError:  # the client does not read: what is left is not for anybody
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _parts(self) -> AsyncIterator[str]:
        """Objects of the stream as JSON, then the mark of its end."""
        yield _dumped(self._completion.part({"role": "assistant", "content": ""}))
        event = self._first
        while isinstance(event, Piece):
            if event.text or event.probability:
                found = [event.probability] if event.probability else None
                yield _dumped(self._completion.part({"content": event.text}, probabilities=found))
            event = await self._events.get()
        if isinstance(event, HvlcError):
            yield _dumped(error_object(event))
            return
        assert isinstance(event, Finished)
        yield _dumped(self._completion.part({}, event.reason))
        options = self._turn.request.stream_options
        yield _dumped(self._completion.last(event.answered, numbers=options is not None and options.include_usage))
        yield "[DONE]"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _dumped(found: Mapping[str, Any]) -> str:
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


async def _refused(request: Request, error: Exception) -> Response:
    """Answer of an error."""
    assert isinstance(error, HvlcError)
    if error.code == "request.cancelled":
        return Response(status_code=_GONE)
    status = status_of(error)
    headers = {"retry-after": "1"} if status == 429 else {}
    # What is left of a body that is refused is not read.
    closing = {"connection": "close"} if status in (408, 413, 429) else {}
    return JSONResponse(error_object(error), status_code=status, headers=headers | closing)


async def _unknown(request: Request, error: Exception) -> Response:
    """Answer of a path or a method that the server does not have."""
    cause = f"there is no {request.method} {request.url.path[:200]!r}"
    found = UserError("request.path", cause, "see GET /v1/models and POST /v1/chat/completions")
    return JSONResponse(error_object(found), status_code=getattr(error, "status_code", 404))
