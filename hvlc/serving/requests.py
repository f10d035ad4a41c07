"""Requests of the protocol: parsed, checked, and said in hvlc's terms.

What is asked for is done or refused: a field that hvlc cannot obey is refused unless it has the value that changes
nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hvlc.errors import UserError
from hvlc.inputs.documents import parse_json

_CODE = "request.body"
_FIX = "correct the request"
_NAMED = 5  # of many problems, in the text
_MOST_MESSAGES = 256
_MOST_STOPS = 4
_LONGEST_STOP = 200
_MOST_PARTS = 512

#: Fields that describe the client or its bill, and change no answer.
_DESCRIBING = frozenset(
    ("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user")
)
#: Fields that hvlc cannot obey, with the values that ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}


class _Part(BaseModel):
    """A record that refuses unknown keys and keeps to the types of JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class TextPart(_Part):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """Source of an image.

    Attributes:
        url: a data URL, or an address.
        detail: of no effect: `max_visual_tokens` says how large an image may be.
    """

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Part):
    """Image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Content = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Part):
    """One message of a chat.

    Attributes:
        role: "developer" is another word for "system".
        content: text, or texts and images in the order in which they are shown.
        name: of who speaks; of no effect.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Content], Field(max_length=_MOST_PARTS)]
    name: str | None = None

    @property
    def urls(self) -> list[str]:
        """Sources of its images."""
        parts = [] if isinstance(self.content, str) else self.content
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]

    def templated(self) -> Mapping[str, Any]:
        """The message as chat templates take it: an image is a part without its source."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        if not self.urls:
            return {"role": role, "content": "".join(p.text for p in self.content if isinstance(p, TextPart))}
        parts = [
            {"type": "text", "text": p.text} if isinstance(p, TextPart) else {"type": "image"} for p in self.content
        ]
        return {"role": role, "content": parts}


class StreamOptions(_Part):
    """Options of a stream.

    Attributes:
        include_usage: whether a last event has the numbers of tokens.
        include_obfuscation: of no effect: events are not padded.
    """

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(_Part):
    """A request for one answer.

    Attributes:
        model: name of a package, with suffixes (`hvlc.serving.names`).
        messages: the chat; its last message is the user's.
        stream: whether the answer comes in parts.
        stream_options: of a stream.
        max_tokens: bound of the answer's tokens, an older word for `max_completion_tokens`.
        max_completion_tokens: bound of the answer's tokens.
        temperature: 0 or None: the most probable token each time; else tokens are drawn.
        top_p: share of the probability from which tokens are drawn.
        seed: of the draws.
        stop: texts that end an answer, which does not have them.
        logprobs: whether the logarithm of each token's probability is wanted.
        top_logprobs: how many of the most probable tokens are told beside it.
        encoder: hvlc's own: a vision encoder's name, or "auto".
        vrc: hvlc's own: whether the resolution compressor chooses the scale of each image.
        max_visual_tokens: hvlc's own: bound for each image.
    """

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MOST_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    encoder: str | None = None
    vrc: bool | None = None
    max_visual_tokens: Annotated[int, Field(ge=1, lt=2**24)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def urls(self) -> list[str]:
        """Sources of all images, in the order in which they are shown."""
        return [url for message in self.messages for url in message.urls]

    def new_tokens(self, most: int) -> int:
        """Bound of the answer's tokens, where the server allows so many."""
        asked = [bound for bound in (self.max_tokens, self.max_completion_tokens) if bound is not None]
        return min([*asked, most])


def parse_request(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        UserError: not JSON, not of the protocol, or it asks for what hvlc cannot do.
    """
    try:
        data = parse_json(body)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(_CODE, f"the body is not JSON: {str(error)[:200]}", _FIX) from error
    if not isinstance(data, dict):
        raise UserError(_CODE, f"the body is {type(data).__name__}, expected is an object", _FIX)
    asked = {key: value for key, value in data.items() if key not in _DESCRIBING and not _is_neutral(key, value)}
    refused = sorted(asked.keys() & _NEUTRAL.keys())
    if refused:
        cause = f"the request has {', '.join(refused)}, which a package cannot obey"
        raise UserError("request.unsupported", cause, "leave it out")
    try:
        request = ChatRequest.model_validate(asked)
    except ValidationError as error:
        raise UserError(_CODE, _said(error), _FIX) from error
    _check(request)
    return request


def _is_neutral(key: str, value: Any) -> bool:
    """Whether a field asks for nothing; 0 and 0.0 are equal, True and 1 are not."""
    if key not in _NEUTRAL:
        return value is None
    return value is None or any(
        value == known and isinstance(value, bool) == isinstance(known, bool) for known in _NEUTRAL[key]
    )


def _check(request: ChatRequest) -> None:
    """Refuse what the types allow and a chat does not.

    Raises:
        UserError: what was found.
    """
    if request.messages[-1].role != "user":
        cause = f"the last message is the {request.messages[-1].role}'s"
        raise UserError(_CODE, cause, "end with a message of the user")
    if any(message.urls and message.role != "user" for message in request.messages):
        raise UserError(_CODE, "an image is in a message that is not the user's", "show images as the user")
    if len(request.stops) > _MOST_STOPS or any(not 0 < len(stop) <= _LONGEST_STOP for stop in request.stops):
        cause = f"stop has {len(request.stops)} texts, of {sorted(map(len, request.stops))[:8]} characters"
        raise UserError(_CODE, cause, f"give up to {_MOST_STOPS} of 1 to {_LONGEST_STOP} characters")
    if request.top_logprobs is not None and not request.logprobs:
        raise UserError(_CODE, "top_logprobs without logprobs", "set logprobs to true")


def _said(error: ValidationError) -> str:
    problems: Sequence[Any] = error.errors(include_url=False, include_input=False)
    shown = [f"{'.'.join(str(part) for part in p['loc'])[:100]}: {p['msg'][:200]}" for p in problems[:_NAMED]]
    return "; ".join([*shown, *([f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else [])])
