"""Ask a model every question of a task, one at a time, and sum up."""

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence

from hvlc.errors import HvlcError, UserError
from hvlc.evaluation.answerer import Answerer
from hvlc.evaluation.memory import peak_memory_bytes, reset_peak_memory
from hvlc.evaluation.metrics import anls, exact_match, mean_score, proportion
from hvlc.evaluation.task import Example, Task
from hvlc.results import Evaluation, ExampleResult, Score, Summary, token_rate

#: Called with the number of answered examples and the number of all.
Progress = Callable[[int, int], None]


def evaluate(
    answerer: Answerer,
    task: Task,
    *,
    encoder: str,
    vrc: bool,
    count: int | None = None,
    max_new_tokens: int = 32,
    progress: Progress | None = None,
    size_bytes: int | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Evaluation:
    """Answers the first `count` examples of a task; one image is in memory at a time.

    Args:
        answerer: the model.
        task: the questions.
        encoder: the vision encoder to ask for.
        vrc: whether the resolution compressor chooses the scale.
        count: number of examples, all when absent.
        max_new_tokens: bound of generated tokens per example.
        progress: told after each example.
        size_bytes: size of the package, for the record.
        provenance: digests and versions, for the record.

    Raises:
        UserError: the task is empty or shorter than `count`.
        HvlcError: an example could not be answered; the error names it.
    """
    total = _total(task, count)
    resettable = reset_peak_memory()
    digest, results = hashlib.sha256(), []
    for index in range(total):
        example = task.example(index)
        _digest(digest.update, example)
        results.append(answer_example(answerer, example, index, encoder, vrc, max_new_tokens))
        if progress:
            progress(index + 1, total)
    return Evaluation(
        name=answerer.name,
        runs_on=answerer.runs_on,
        task=task.name,
        examples_digest=digest.hexdigest(),
        encoder=encoder,
        vrc=vrc,
        max_new_tokens=max_new_tokens,
        summary=summarize(results),
        examples=tuple(results),
        peak_memory_bytes=peak_memory_bytes() if resettable else None,
        size_bytes=size_bytes,
        provenance=dict(provenance or {}),
    )


def answer_example(
    answerer: Answerer, example: Example, index: int, encoder: str, vrc: bool, max_new_tokens: int
) -> ExampleResult:
    """Answers one example and scores it.

    Raises:
        HvlcError: it could not be answered; of the answerer's class and code, with the example's id.
    """
    try:
        answered = answerer.answer(
            example.question, example.images, encoder=encoder, vrc=vrc, max_new_tokens=max_new_tokens
        )
    except HvlcError as error:
        raise type(error)(error.code, f"example {example.id}: {error.cause}", error.fix) from error
    return ExampleResult(
        id=example.id,
        index=index,
        kind=example.kind,
        question=example.question,
        answers=example.answers,
        prediction=answered.text,
        exact=exact_match(answered.text, example.answers),
        anls=anls(answered.text, example.answers),
        **answered.model_dump(exclude={"text"}),
    )


def summarize(examples: Sequence[ExampleResult]) -> Summary:
    """The scores of all examples together.

    Raises:
        ValueError: there is no example.
    """
    scales = [scale for example in examples for scale in example.scales]
    return Summary(
        n=len(examples),
        exact_match=_share_exact(examples),
        anls=mean_score([example.anls for example in examples]),
        exact_match_by_kind={
            kind: _share_exact([example for example in examples if example.kind == kind])
            for kind in sorted({example.kind for example in examples})
        },
        mean_visual_tokens=statistics.fmean(example.visual_tokens for example in examples),
        mean_scale=statistics.fmean(scales) if scales else None,
        median_time_to_first_token=statistics.median(example.time_to_first_token for example in examples),
        tokens_per_second=token_rate(examples),
    )


def _share_exact(examples: Sequence[ExampleResult]) -> Score:
    return proportion(sum(example.exact for example in examples), len(examples))


def _total(task: Task, count: int | None) -> int:
    length = len(task)
    total = length if count is None else count
    if total < 1:
        raise UserError("evaluation.empty", f"{total} examples of the task {task.name!r} to evaluate", "ask for more")
    if total > length:
        cause = f"{total} examples asked for, the task {task.name!r} has {length}"
        raise UserError("evaluation.count", cause, f"ask for at most {length}")
    return total


def _digest(update: Callable[[bytes], None], example: Example) -> None:
    sizes = [image.size for image in example.images]
    record = [example.id, example.kind, example.question, example.answers, sizes]
    update(json.dumps(record, separators=(",", ":")).encode())
    for image in example.images:
        update(image.tobytes())
