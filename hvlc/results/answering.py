"""One question and its answer."""

from pydantic import Field

from hvlc.results.base import Record


class Answered(Record):
    """One answer and what it cost.

    Attributes:
        text: the answer, without special tokens.
        tokens: ids of the generated tokens; the end token is the last one, if it was generated.
        encoder: the vision encoder that ran ("base", "large"), also when the request said "auto"; "" without images.
        scales: the resolution scale of each image, 1.0 without the compressor.
        tiles: number of tiles of all images.
        distinct_tiles: number of them that differ from each other. None: they were not compared.
        encoded_tiles: number of them that an encoder ran over; the others equal one of these, or were encoded for an
            earlier request. None: not counted.
        visual_tokens: number of visual tokens of all images.
        prompt_tokens: number of prompt tokens, the visual ones included.
        time_to_first_token: seconds from the request, images decoded, to the first token.
        decode_seconds: seconds from the first token to the last.
    """

    text: str
    tokens: tuple[int, ...]
    encoder: str
    scales: tuple[float, ...]
    tiles: int = Field(ge=0)
    distinct_tiles: int | None = Field(default=None, ge=0)
    encoded_tiles: int | None = Field(default=None, ge=0)
    visual_tokens: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0)
    time_to_first_token: float = Field(ge=0)
    decode_seconds: float = Field(ge=0)


class ExampleResult(Record):
    """One example: what was asked, what was expected, what came out.

    Attributes:
        id: name of the example within its task, unique.
        index: position within its task, from 0.
        kind: group of the example, e.g. "receipt"; scores are also given per kind.
        question: the prompt.
        answers: every accepted answer.
        prediction: the model's answer.
        tokens: ids of the generated tokens.
        exact: whether the prediction equals one of the answers (see `hvlc.evaluation.metrics.exact_match`).
        anls: see `hvlc.evaluation.metrics.anls`.
        metric: the task's own (`hvlc.evaluation.benchmarks.scores`); "" where it has none.
        score: by that metric.
        encoder: the vision encoder that ran.
        scales: the resolution scale of each image.
        tiles: number of tiles.
        distinct_tiles: as in `Answered`.
        encoded_tiles: as in `Answered`.
        visual_tokens: number of visual tokens.
        prompt_tokens: number of prompt tokens.
        time_to_first_token: seconds.
        decode_seconds: seconds from the first token to the last.
    """

    id: str
    index: int = Field(ge=0)
    kind: str
    question: str
    answers: tuple[str, ...] = Field(min_length=1)
    prediction: str
    tokens: tuple[int, ...]
    exact: bool
    anls: float = Field(ge=0, le=1)
    metric: str = ""
    score: float | None = Field(default=None, ge=0, le=1)
    encoder: str
    scales: tuple[float, ...]
    tiles: int
    distinct_tiles: int | None = Field(default=None, ge=0)
    encoded_tiles: int | None = Field(default=None, ge=0)
    visual_tokens: int
    prompt_tokens: int
    time_to_first_token: float
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first per second; absent when there were none."""
        further = len(self.tokens) - 1
        return further / self.decode_seconds if further > 0 and self.decode_seconds > 0 else None
