"""Facts for hosts about a decoder of fixed shapes, as onnxruntime-genai 0.18 runs it (`decoder.pipeline`).

The prompt runs in chunks (genai's "windows"), the last one padded. Found by running (tests/runtime/test_chunks.py):
padding counts as sequence, so a prompt takes whole chunks of the context; the end of the prompt is where the first
padding token is, so a prompt must not hold one; and the length of the search must be that of the cache.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import onnxruntime_genai as og

from hvlc.errors import UserError
from hvlc.opening.configuration import Configuration


@dataclass(frozen=True)
class PromptChunks:
    """Chunks that a prompt is cut into.

    Attributes:
        size: tokens of a chunk.
        context: positions of the KV cache.
        padding: token id that fills the last chunk.
    """

    size: int
    context: int
    padding: int

    @classmethod
    def of(cls, configuration: Configuration) -> Self | None:
        """Chunks by genai_config.json; None where shapes are not fixed."""
        model = configuration.model
        window = model.decoder.sliding_window
        return cls(window.window_size, model.context_length, model.pad_token_id) if window else None

    def padded(self, tokens: int) -> int:
        """Positions that a prompt of this many tokens takes."""
        return -(-tokens // self.size) * self.size

    def without_end(self) -> str:
        """Changes to genai_config.json with which no end token ends a search: that of padding stands for it.

        After an end token a search generates nothing but padding, and `force` is the only way to go on with a chat;
        whoever generates looks out for end tokens.
        """
        return json.dumps({"model": {"eos_token_id": self.padding}})

    def check(self, ids: np.ndarray) -> None:
        """Refuse a prompt that would be cut short.

        Raises:
            UserError: it holds the padding token.
        """
        if self.padding in ids:
            cause = f"the prompt holds token {self.padding}, with which this package pads prompts"
            raise UserError("request.padding", cause, "take it out of the prompt")

    def check_answer(self, ids: Sequence[int]) -> None:
        """Refuse an answer to be read along that would end the search.

        Raises:
            UserError: it holds the padding token before its last.
        """
        if self.padding in ids[:-1]:
            cause = f"the answer holds token {self.padding}, with which this package pads prompts and ends searches"
            raise UserError("request.padding", cause, "read along an answer without it")


def force(generator: og.Generator, token: int) -> None:
    """Let a generator choose this token and run it, as if it had generated it.

    Where shapes are fixed, a token that is appended would run as a padded chunk of its own.
    """
    logits = np.full_like(np.array(generator.get_logits()), -np.inf)
    logits[..., token] = 0
    generator.set_logits(logits)
    generator.generate_next_token()
