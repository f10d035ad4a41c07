"""Objects that the protocol answers with."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvlc.errors import HvlcError
from hvlc.results import Answered
from hvlc.runtime.sampling import TokenProbability
from hvlc.serving.bodies import BodySizeError
from hvlc.serving.turns import BusyError, LateError

#: Status of an error by its class, the more special ones first; 500 where it is hvlc's own.
_STATUS: tuple[tuple[type[HvlcError], int], ...] = ((BusyError, 429), (LateError, 408), (BodySizeError, 413))
_STATUS_OF_CODES = {"request.model": 404, "request.key": 401, "request.type": 415, "memory.exhausted": 503}


def status_of(error: HvlcError) -> int:
    """Status of HTTP that an error ends a request with."""
    known = next((status for kind, status in _STATUS if isinstance(error, kind)), None)
    return known or _STATUS_OF_CODES.get(error.code) or (400 if error.exit_code == 2 else 500)


def error_object(error: HvlcError) -> dict[str, Any]:
    """Error as the protocol has it; `fix` is hvlc's own."""
    kind = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
    said = {"message": f"{error.cause}; {error.fix}", "type": kind.get(status_of(error), "invalid_request_error")}
    return {"error": {**said, "param": None, "code": error.code, "fix": error.fix}}


def models_object(names: Sequence[str]) -> dict[str, Any]:
    """List of models."""
    return {"object": "list", "data": [model_object(name) for name in names]}


def model_object(name: str) -> dict[str, Any]:
    """One model of the list; packages do not say when they were made."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "hvlc"}


@dataclass(frozen=True)
class Completion:
    """Objects of one answer.

    Attributes:
        name: of the answer.
        model: as the request names it.
        created: seconds since 1970.
        spelled: text of a token.
    """

    name: str
    model: str
    created: int
    spelled: Callable[[int], str]

    @classmethod
    def begin(cls, name: str, model: str, spelled: Callable[[int], str]) -> "Completion":
        """An answer that begins now."""
        return cls(name, model, int(time.time()), spelled)

    def whole(
        self, text: str, answered: Answered, reason: str, probabilities: Sequence[TokenProbability] | None
    ) -> dict[str, Any]:
        """The whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": self._logprobs(probabilities)}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(answered), "hvlc": facts(answered)}

    def part(
        self,
        delta: Mapping[str, Any],
        reason: str | None = None,
        probabilities: Sequence[TokenProbability] | None = None,
    ) -> dict[str, Any]:
        """Part of a streamed answer."""
        choice = {"index": 0, "delta": dict(delta), "finish_reason": reason, "logprobs": self._logprobs(probabilities)}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def last(self, answered: Answered, *, numbers: bool) -> dict[str, Any]:
        """Last part of a stream, without a choice.

        Args:
            answered: the record of the answer.
            numbers: whether the request asked for the numbers of tokens.
        """
        told = {"usage": usage(answered)} if numbers else {}
        return {**self._head("chat.completion.chunk"), "choices": [], **told, "hvlc": facts(answered)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.name, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, probabilities: Sequence[TokenProbability] | None) -> dict[str, Any] | None:
        if probabilities is None:
            return None
        return {"content": [self._logprob(p) for p in probabilities], "refusal": None}

    def _logprob(self, found: TokenProbability) -> dict[str, Any]:
        return {
            **self._told(found.token, found.log),
            "top_logprobs": [self._told(token, log) for token, log in found.likeliest],
        }

    def _told(self, token: int, log: float) -> dict[str, Any]:
        text = self.spelled(token)
        return {"token": text, "logprob": max(log, -9999.0), "bytes": list(text.encode())}


def usage(answered: Answered) -> dict[str, Any]:
    """Numbers of tokens; visual tokens are among those of the prompt."""
    made = len(answered.tokens)
    return {
        "prompt_tokens": answered.prompt_tokens,
        "completion_tokens": made,
        "total_tokens": answered.prompt_tokens + made,
        "prompt_tokens_details": {"image_tokens": answered.visual_tokens},
    }


def facts(answered: Answered) -> dict[str, Any]:
    """Facts of an answer for which the protocol has no place."""
    told = answered.model_dump(mode="json", include=_TOLD)
    steps = len(answered.tokens) - 1
    rate = steps / answered.decode_seconds if steps > 0 and answered.decode_seconds > 0 else None
    return {**told, "tokens": list(answered.tokens), "tokens_per_second": rate}


_TOLD = {"encoder", "scales", "tiles", "visual_tokens", "time_to_first_token", "decode_seconds"}
