"""Tune a package: ask every question by every candidate, choose, and write the package with the choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hvlc.errors import GateError, Progress, UserError
from hvlc.evaluation.evaluate import example_digest, require_count
from hvlc.evaluation.journal import Journal
from hvlc.evaluation.task import Task
from hvlc.evaluation.tasks import open_task
from hvlc.files.digests import digest_file
from hvlc.inputs.images import to_array
from hvlc.manifest.manifest import MANIFEST, Images, Manifest
from hvlc.manifest.policy import EncoderPolicy
from hvlc.manifest.tuning import Tuning
from hvlc.opening.package import open_package
from hvlc.package.atomic import atomic_directory, check_output
from hvlc.package.tuning import apply_tuning, copy_package, has_margin
from hvlc.results.tuning import Answers, Asked, TuningFront
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.workflows.tune.asking import UNKEPT, Asking
from hvlc.workflows.tune.candidates import BOUNDS, MARGINS, Candidate, front_of

#: Name of the report in its directory; plots stand beside it.
FRONT = "front.json"

_FEWEST = 8  # questions
_SIZED = 64  # questions whose visual tokens make the bounds


@dataclass(frozen=True)
class TuneRequest:
    """Request for a tuning.

    Attributes:
        package: to tune; it stays as it is.
        data: task of `hvlc eval`, of one image a question.
        output: directory of the tuned package.
        floor: share of the score to keep.
        count: number of questions. None: all.
        margins: factors on the compressor's scale. Empty: the usual ones.
        bounds: of visual tokens for an image. Empty: quantiles of those at full size.
        journal: file that keeps the answers, so that a run that was killed goes on. None: they are not kept.
        max_new_tokens: bound of an answer.
        threads: of every session; 0 lets onnxruntime choose.
    """

    package: Path
    data: str
    output: Path
    floor: float = 0.99
    count: int | None = None
    margins: tuple[float, ...] = ()
    bounds: tuple[int, ...] = ()
    journal: Path | None = None
    max_new_tokens: int = 32
    threads: int = 0


def tune(request: TuneRequest, progress: Progress = lambda *_: None) -> TuningFront:
    """Measure all candidates, choose, and write the tuned package.

    Raises:
        UserError: the package sees no images or was tuned before, the data are wrong, or nothing at full size scores.
    """
    check_output(request.output, force=False)
    manifest = open_package(request.package, verify=True).manifest
    images, policy = manifest.images, manifest.policy
    if images is None or policy is None:
        raise UserError("package.kind", f"{request.package} sees no images", "name a vision-language package")
    if manifest.tuned is not None:
        cause = f"{request.package} was tuned on {manifest.tuned.data}"
        raise UserError("tune.package", cause, "tune the package that it was made of")
    task = open_task(request.data)
    count = _checked(task, request)
    model = VisionLanguageModel(request.package, vision=UNKEPT, threads=request.threads)
    candidates = _candidates(model, task, count, request)
    front = _measured(request, model, task, count, candidates, progress)
    chosen = candidates[front.chosen]
    with atomic_directory(request.output, force=False) as place:
        copy_package(request.package, manifest.files, place)
        apply_tuning(place, _tuning(manifest, images, policy, chosen, front, request.package))
    return front


def require_confirmed(front: TuningFront) -> None:
    """Hold a choice against its floor.

    Raises:
        GateError: the confirming questions lose more than the floor allows.
    """
    if not front.confirmed:
        kept = f"{front.kept.value:.1%} ({front.kept.low:.1%} to {front.kept.high:.1%})"
        cause = f"the choice keeps {kept} of the score on the questions that confirm, the floor is {front.floor:.1%}"
        raise GateError("tune.floor", cause, "give more questions, or a lower --floor; the tuned package was written")


def _checked(task: Task, request: TuneRequest) -> int:
    """Number of questions.

    Raises:
        UserError: there are too few, or one has not one image.
    """
    count = require_count(task, request.count)
    if count < _FEWEST:
        raise UserError("tune.data", f"{task.name} has {count} questions", f"give at least {_FEWEST}")
    for index in range(count):
        shown = len(task.example(index).images)
        if shown != 1:
            raise UserError("tune.data", f"question {index + 1} shows {shown} images", "give one image a question")
    return count


def _candidates(model: VisionLanguageModel, task: Task, count: int, request: TuneRequest) -> list[Candidate]:
    """Every encoder at full size, with every margin, and each of these with every bound.

    Raises:
        UserError: margins are given for a package without a compressor.
    """
    manifest = model.manifest
    images, front = manifest.images, request.package / manifest.components["front"].file
    compresses = images is not None and images.resolution_compressor and has_margin(front)
    if request.margins and not compresses:
        cause = f"{request.package} has no resolution compressor with a margin"
        raise UserError("tune.margins", cause, "build it with --vrc, or leave --margins out")
    margins: list[float | None] = [None]
    if compresses:
        margins += sorted(request.margins or MARGINS)
    bounds: list[int | None] = [None, *(request.bounds or _bounds(model, task, count))]
    return [Candidate(encoder, m, bound) for encoder in manifest.encoders for m in margins for bound in bounds]


def _bounds(model: VisionLanguageModel, task: Task, count: int) -> list[int]:
    """Quantiles of the visual tokens at full size, those that differ from the most."""
    sizes = []
    for index in range(min(count, _SIZED)):
        sizes.append(model.seen_at(to_array(task.example(index).images[0]), 1.0).visual_tokens)
    quantiles = {int(np.quantile(sizes, share)) for share in BOUNDS}
    smallest = _smallest(model, task, count, sorted(quantiles))
    return [bound for bound in sorted(quantiles) if smallest <= bound < max(sizes)]


def _smallest(model: VisionLanguageModel, task: Task, count: int, bounds: Sequence[int]) -> int:
    """The smallest bound that every image can be seen within; no rule goes below a form of its own."""
    least = 1
    for index in range(min(count, _SIZED)):
        example = task.example(index)
        for bound in bounds:
            try:
                model.see(example.question, example.images, vrc=False, max_visual_tokens=bound)
            except UserError as error:
                if error.code != "request.max_visual_tokens":
                    raise
                least = max(least, bound + 1)
    return least


def _measured(
    request: TuneRequest,
    model: VisionLanguageModel,
    task: Task,
    count: int,
    candidates: Sequence[Candidate],
    progress: Progress,
) -> TuningFront:
    """Ask every question; what an earlier run answered is taken from the journal.

    Raises:
        UserError: nothing at full size scores.
    """
    header: dict[str, object] = {
        "tune": 1,
        "package": digest_file(request.package / MANIFEST),
        "candidates": [[one.encoder, one.margin, one.bound] for one in candidates],
        "max_new_tokens": request.max_new_tokens,
    }
    journal = Journal(request.journal, header, Answers)
    margins = sorted({one.margin for one in candidates if one.margin is not None})
    answers: list[Answers] = []
    try:
        with Asking(model, margins, request.threads) as asking:
            for index in range(count):
                example = task.example(index)
                key = example_digest(example)
                found = journal.find(index, key)
                if found is None:
                    found = asking.ask(example, candidates, request.max_new_tokens)
                    journal.add(index, key, found)
                answers.append(found)
                progress("ask", index + 1, count)
    finally:
        journal.close()
    asked: dict[Candidate, list[Asked]] = {
        one: [answer.asked[at] for answer in answers] for at, one in enumerate(candidates)
    }
    try:
        return front_of(task.name, request.floor, candidates, asked)
    except ValueError as error:
        cause = f"{task.name}: {error}"
        raise UserError("tune.answers", cause, "give questions that the model can answer") from error


def _tuning(
    manifest: Manifest, images: Images, policy: EncoderPolicy, chosen: Candidate, front: TuningFront, package: Path
) -> Tuning:
    """Record of a choice; full size is a margin beyond which no scale is below 1."""
    margin = None
    if images.resolution_compressor and has_margin(package / manifest.components["front"].file):
        margin = chosen.margin if chosen.margin is not None else 1 / (images.min_scale or 1)
    return Tuning(
        encoder=chosen.encoder,
        scale_margin=margin,
        max_visual_tokens=chosen.bound or images.max_visual_tokens,
        data=front.data,
        floor=front.floor,
        origin=digest_file(package / MANIFEST),
        policy_before=policy,
        max_visual_tokens_before=images.max_visual_tokens,
    )
