"""Drawing of tokens, and the probabilities that a token was chosen from."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """Settings of an answer whose tokens are drawn.

    Attributes:
        temperature: divides the logits; above 0.
        top_p: share of the probability from which tokens are drawn, above 0 and up to 1.
        seed: of the draws. None: another one each time.
    """

    temperature: float
    top_p: float = 1.0
    seed: int | None = None

    @property
    def options(self) -> dict[str, float | int | bool]:
        """Search options of onnxruntime-genai, whose seeds are int32 of which negative ones mean none."""
        seed = {} if self.seed is None else {"random_seed": self.seed % 2**31}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0, **seed}


@dataclass(frozen=True)
class TokenProbability:
    """Probability of a token of an answer.

    Attributes:
        token: its id.
        log: natural logarithm of the probability, before any temperature.
        likeliest: ids and logarithms of the most probable tokens, the best first.
    """

    token: int
    log: float
    likeliest: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, logits: np.ndarray, token: int, count: int) -> "TokenProbability":
        """Probability of a token after these logits.

        Args:
            logits: float32 `[vocabulary]`.
            token: that was chosen.
            count: of the likeliest tokens.
        """
        high = logits.astype(np.float64)
        logs = high - high.max()
        logs -= np.log(np.exp(logs).sum())
        best = np.argsort(-logs, kind="stable")[:count]
        return cls(token, float(logs[token]), tuple((int(k), float(logs[k])) for k in best))
