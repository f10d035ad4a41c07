"""Bounds of a server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of what a server takes, holds and waits for.

    Attributes:
        body: bytes of a request.
        images: images of a request.
        waiting: requests that wait for their turn; the next one is refused.
        seconds: from the arrival of a request to the last token of its answer.
        new_tokens: most tokens of an answer, and those of a request that names no bound.
        idle: seconds that a client may take for the next part of its body, or for taking the next part of an answer.
    """

    body: int = 32_000_000
    images: int = 16
    waiting: int = 16
    seconds: float = 300.0
    new_tokens: int = 512
    idle: float = 30.0
