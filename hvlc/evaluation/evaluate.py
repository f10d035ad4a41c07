"""Ask a model every question of a task, one at a time, and sum up."""

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hvlc.errors import HvlcError, UserError
from hvlc.evaluation.answerer import Answerer, TeacherForced
from hvlc.evaluation.benchmarks.scores import METRICS
from hvlc.evaluation.fidelity import divergence, fidelity
from hvlc.evaluation.journal import Journal
from hvlc.evaluation.memory import peak_memory_bytes, reset_peak_memory
from hvlc.evaluation.metrics import anls, exact_match, mean_score, proportion, quantile, ratio
from hvlc.evaluation.task import Example, Task
from hvlc.results import Divergence, Evaluation, ExampleResult, Fidelity, Interval, Score, Summary
from hvlc.results.compilation import Compilation

#: Tokens of an answer, at most, where nothing else is said.
MAX_NEW_TOKENS = 32

#: Called with the number of answered examples and the number of all.
Advance = Callable[[int, int], None]


def evaluate(
    answerer: Answerer,
    task: Task,
    *,
    encoder: str,
    vrc: bool,
    count: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Advance | None = None,
    journal: Journal[ExampleResult] | None = None,
    size_bytes: int | None = None,
    bits_per_weight: float | None = None,
    compilation: Compilation | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Evaluation:
    """Answer the first `count` examples of a task; one image is in memory at a time.

    Args:
        answerer: the model.
        task: the questions.
        encoder: the vision encoder to ask for; "" where there is none.
        vrc: whether the resolution compressor chooses the scale.
        count: number of examples, all when absent.
        max_new_tokens: bound of generated tokens per example.
        progress: told after each example.
        journal: what an earlier run answered is taken from here, and every answer is kept here.
        size_bytes: size of the package, for the record.
        bits_per_weight: of the package's decoder, for the record.
        compilation: of the package, for the record.
        provenance: digests and versions, for the record.

    Raises:
        UserError: the task is empty or shorter than `count`.
        HvlcError: an example could not be answered; the error names it.
    """
    total = require_count(task, count)
    journal = journal or Journal(None, {}, ExampleResult)
    resettable = reset_peak_memory()
    digest, results = hashlib.sha256(), []
    for index in range(total):
        example = task.example(index)
        key = example_digest(example)
        digest.update(key.encode())
        result = journal.find(index, key)
        if result is None:
            result = answer_example(answerer, example, index, encoder, vrc, max_new_tokens)
            journal.add(index, key, result, peak_memory_bytes() if resettable else None)
        results.append(result)
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
        peak_memory_bytes=journal.peak_memory_bytes,
        size_bytes=size_bytes,
        bits_per_weight=bits_per_weight,
        compilation=compilation,
        provenance=dict(provenance or {}),
    )


def examples_digest(task: Task, count: int | None = None) -> str:
    """Hex SHA-256 of the questions, answers and pixels of a task's first `count` examples, as `Evaluation` has it.

    Raises:
        UserError: the task is empty or shorter than `count`.
    """
    digest = hashlib.sha256()
    for index in range(require_count(task, count)):
        digest.update(example_digest(task.example(index)).encode())
    return digest.hexdigest()


def measure_fidelity(
    ours: TeacherForced,
    reference: TeacherForced,
    task: Task,
    expected: Evaluation,
    *,
    reference_digest: str,
    progress: Advance | None = None,
    journal: Journal[Divergence] | None = None,
) -> Fidelity:
    """A model's distributions against a reference's, along the reference's own greedy answers.

    Args:
        ours: the model.
        reference: what it is held against.
        task: the questions.
        expected: the reference's evaluation; it says what was asked, how, and what the answers were.
        reference_digest: hex SHA-256 of the reference, for the record.
        progress: told after each example.
        journal: what an earlier run measured is taken from here, and every result is kept here.

    Raises:
        UserError: the task is not what the reference answered, the vocabularies differ, or a logit is not finite.
    """
    journal = journal or Journal(None, {}, Divergence)
    digest, sequences = hashlib.sha256(), []
    for answered in expected.examples:
        example = task.example(answered.index)
        key = example_digest(example)
        digest.update(key.encode())
        key = _digest_of([key, answered.tokens])
        found = journal.find(answered.index, key)
        if found is None:
            right, said = (_along(model, example, answered.tokens, expected) for model in (reference, ours))
            found = divergence(right, said)
            journal.add(answered.index, key, found)
        sequences.append(found)
        if progress:
            progress(len(sequences), len(expected.examples))
    if digest.hexdigest() != expected.examples_digest:
        cause = f"{expected.label} answered other examples than those of the task {task.name!r}"
        raise UserError("compare.unpaired", cause, "evaluate both on the same task and count")
    return fidelity(expected.label, reference_digest, sequences)


def _along(model: TeacherForced, example: Example, answer: Sequence[int], asked: Evaluation) -> np.ndarray:
    """Logits of a model along an answer, asked as an evaluation was."""
    return model.logits(example.question, example.images, answer, encoder=asked.encoder, vrc=asked.vrc)


def answer_example(
    answerer: Answerer, example: Example, index: int, encoder: str, vrc: bool, max_new_tokens: int
) -> ExampleResult:
    """Answer one example and score it.

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
        metric=example.metric,
        score=METRICS[example.metric](answered.text, example.answers) if example.metric else None,
        **answered.model_dump(exclude={"text"}),
    )


def summarize(examples: Sequence[ExampleResult]) -> Summary:
    """The scores of all examples together.

    Raises:
        ValueError: there is no example.
    """
    scales = [scale for example in examples for scale in example.scales]
    first_tokens = [example.time_to_first_token for example in examples]
    going_on = [example for example in examples if example.tokens_per_second is not None]
    return Summary(
        n=len(examples),
        exact_match=_share_exact(examples),
        anls=mean_score([example.anls for example in examples]),
        exact_match_by_kind={
            kind: _share_exact([example for example in examples if example.kind == kind])
            for kind in sorted({example.kind for example in examples})
        },
        score=_mean_of_scores(examples),
        score_by_kind={
            kind: found
            for kind in sorted({example.kind for example in examples})
            if (found := _mean_of_scores([example for example in examples if example.kind == kind]))
        },
        visual_tokens=ratio([example.visual_tokens for example in examples]),
        prompt_tokens=ratio([example.prompt_tokens for example in examples]),
        generated_tokens=ratio([len(example.tokens) for example in examples]),
        equal_tiles=_share_left(examples, lambda example: example.distinct_tiles),
        saved_tiles=_share_left(examples, lambda example: example.encoded_tiles),
        mean_scale=statistics.fmean(scales) if scales else None,
        median_time_to_first_token=quantile(first_tokens, 0.5),
        p95_time_to_first_token=quantile(first_tokens, 0.95),
        tokens_per_second=ratio([len(e.tokens) - 1 for e in going_on], [e.decode_seconds for e in going_on])
        if going_on
        else None,
    )


def _share_left(examples: Sequence[ExampleResult], taken: Callable[[ExampleResult], int | None]) -> Interval | None:
    """Share of all tiles that are not among those taken; None where no example has tiles and their number."""
    counted = [(e.tiles, found) for e in examples if (found := taken(e)) is not None and e.tiles]
    return ratio([all_ - found for all_, found in counted], [all_ for all_, _ in counted]) if counted else None


def _share_exact(examples: Sequence[ExampleResult]) -> Score:
    return proportion(sum(example.exact for example in examples), len(examples))


def _mean_of_scores(examples: Sequence[ExampleResult]) -> Score | None:
    """The mean by the task's own metric; None where an example has none."""
    scores = [example.score for example in examples if example.score is not None]
    return mean_score(scores) if len(scores) == len(examples) else None


def require_count(task: Task, count: int | None) -> int:
    """Number of examples that are evaluated: `count`, or all.

    Raises:
        UserError: the task is empty or shorter than `count`.
    """
    length = len(task)
    total = length if count is None else count
    if total < 1:
        raise UserError("evaluation.empty", f"{total} examples of the task {task.name!r} to evaluate", "ask for more")
    if total > length:
        cause = f"{total} examples asked for, the task {task.name!r} has {length}"
        raise UserError("evaluation.count", cause, f"ask for at most {length}")
    return total


def example_digest(example: Example) -> str:
    """Hex SHA-256 of an example's question, answers and pixels."""
    sizes = [image.size for image in example.images]
    record = [example.id, example.kind, example.question, example.answers, sizes]
    record += [example.metric] if example.metric else []
    pixels = [hashlib.sha256(image.tobytes()).hexdigest() for image in example.images]
    return _digest_of([*record, pixels])


def _digest_of(content: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
