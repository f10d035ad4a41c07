"""One request after another: a thread that answers, a line of bounded length in front of it.

Packages answer one request at a time, because each answer uses all of the processor. What a request waits for is
known when it arrives, so a line that is full refuses at once.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from hvlc.errors import HvlcError, UserError
from hvlc.results import Answered
from hvlc.runtime.generation import Generation, LanguageModel, VisionLanguageModel
from hvlc.runtime.sampling import Sampling, TokenProbability
from hvlc.serving.limits import Limits
from hvlc.serving.looks import Looked
from hvlc.serving.names import Choice
from hvlc.serving.pictures import load_pictures
from hvlc.serving.requests import ChatRequest
from hvlc.serving.stopping import StopTexts


@dataclass(frozen=True)
class Piece:
    """Next part of an answer.

    Attributes:
        text: that is certain by now; may be empty.
        probability: of the token that was generated. None: nobody asked, or there is none.
    """

    text: str
    probability: TokenProbability | None = None


@dataclass(frozen=True)
class Finished:
    """End of an answer.

    Attributes:
        answered: the record of the answer.
        reason: "stop" after an end token or a stop text, "length" after the last token that was allowed.
    """

    answered: Answered
    reason: str


Event = Piece | Finished | Looked | HvlcError


class BusyError(UserError):
    """The line is full."""


class LateError(UserError):
    """A request took longer than the server allows."""


@dataclass
class Turn:
    """A request that waits for its answer or receives it.

    Attributes:
        request: what is asked.
        choice: of whom.
        deadline: when it must be done, by `time.monotonic`.
        put: called from the answering thread with each event.
        looks: whether the images alone are asked for, as the front graph makes them.
        cancelled: set when nobody waits for the answer any more.
    """

    request: ChatRequest
    choice: Choice
    deadline: float
    put: Callable[[Event], None]
    looks: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)


class Line:
    """The line of requests and the thread at its end.

    Args:
        models: open packages by name.
        limits: of the server.
        remote: whether images are fetched from addresses.
    """

    def __init__(self, models: Mapping[str, LanguageModel], limits: Limits, *, remote: bool = False) -> None:
        self._models, self._limits, self._remote = models, limits, remote
        self._waiting: queue.Queue[Turn | None] = queue.Queue()
        self._count = threading.Semaphore(limits.waiting + 1)  # those that wait, and the one that is answered
        self._thread = threading.Thread(target=self._serve, name="hvlc-answers", daemon=True)
        self._thread.start()

    def join(self, request: ChatRequest, choice: Choice, *, looks: bool = False) -> tuple[Turn, "asyncio.Queue[Event]"]:
        """Put a request at the end of the line; its events come through the queue.

        Raises:
            BusyError: the line is full.
        """
        if not self._count.acquire(blocking=False):
            cause = f"{self._limits.waiting} requests are waiting already"
            raise BusyError("request.busy", cause, "ask again later")
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def put(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        turn = Turn(request, choice, time.monotonic() + self._limits.seconds, put, looks)
        self._waiting.put(turn)
        return turn, events

    def close(self) -> None:
        """End the thread after the request that it answers."""
        self._waiting.put(None)

    def _serve(self) -> None:
        while (turn := self._waiting.get()) is not None:
            try:
                for event in self._events(turn):
                    turn.put(event)
            finally:
                self._count.release()

    def _events(self, turn: Turn) -> Iterator[Event]:
        """Everything that is told about a request; the last event is its end or an error."""
        try:
            yield from self._answer(turn)
        except HvlcError as error:
            yield error
        except MemoryError:
            yield UserError("memory.exhausted", "there is not enough memory for this request", "ask for less")
        except Exception as error:  # noqa: BLE001  one request's bug must not end the answers to all others
            yield HvlcError("bug", f"internal error: {type(error).__name__}: {error}", "please report it")

    def _answer(self, turn: Turn) -> Iterator[Event]:
        self._check(turn)
        request = turn.request
        images = load_pictures(request.urls, self._limits, remote=self._remote)
        if turn.looks:
            yield self._look(turn, images)
            return
        generation = self._models[turn.choice.package].start(
            tuple(message.templated() for message in request.messages),
            images,
            encoder=turn.choice.encoder,
            vrc=turn.choice.compress,
            max_visual_tokens=turn.choice.max_visual_tokens,
            max_new_tokens=request.new_tokens(self._limits.new_tokens),
            sampling=sampling_of(request),
            likeliest=(request.top_logprobs or 0) if request.logprobs else None,
        )
        stops = StopTexts(request.stops)
        for text in generation:
            yield Piece(stops.feed(text), _probability(generation))
            if stops.stopped:
                break
            self._check(turn)
        yield Piece(stops.rest())
        yield Finished(generation.answered, "stop" if stops.stopped or generation.ended else "length")

    def _look(self, turn: Turn, images: Sequence[Image.Image]) -> Looked:
        """The images of a request after the front graph.

        Raises:
            UserError: the package sees no images, or they are refused.
        """
        model, choice = self._models[turn.choice.package], turn.choice
        if not isinstance(model, VisionLanguageModel):
            raise UserError("package.kind", f"{choice.package} sees no images", "name a vision-language package")
        chat = tuple(message.templated() for message in turn.request.messages)
        seen = model.see(chat, images, vrc=choice.compress, max_visual_tokens=choice.max_visual_tokens)
        return Looked(seen, choice.encoder)

    def _check(self, turn: Turn) -> None:
        """End a request that nobody waits for, or that is late.

        Raises:
            LateError: its time is over.
            UserError: its client has gone.
        """
        if turn.cancelled.is_set():
            raise UserError("request.cancelled", "the client has gone", "ask again")
        if time.monotonic() > turn.deadline:
            cause = f"the answer was not done {self._limits.seconds:g} seconds after the request arrived"
            raise LateError("request.time", cause, "ask for fewer tokens, or start the server with a larger --timeout")


def sampling_of(request: ChatRequest) -> Sampling | None:
    """Settings of a request whose tokens are drawn. None: the most probable token each time."""
    if not request.temperature:
        return None
    return Sampling(request.temperature, 1.0 if request.top_p is None else request.top_p, request.seed)


def _probability(generation: Generation) -> TokenProbability | None:
    return generation.probabilities[-1] if generation.probabilities else None
