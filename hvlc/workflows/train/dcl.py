"""Dual Consistency Learning for a user's model with two encoders: trained, and measured on held-out questions."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hvlc.errors import Progress, UserError
from hvlc.evaluation.answerer import Answerer
from hvlc.evaluation.benchmarks.scores import METRICS
from hvlc.evaluation.metrics import normalized
from hvlc.evaluation.task import Task
from hvlc.files.writing import make_directory
from hvlc.package.atomic import atomic_directory, check_output
from hvlc.results.base import wilson
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.requirements import require_compile
from hvlc.workflows.train.data import open_splits

if TYPE_CHECKING:
    from hvlc.models.loaded import LoadedModel
    from hvlc.training.consistency import Consistency

#: Name of the file in the trained checkpoint that says how it was trained and what that brought.
REPORT = "dcl.json"

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin")


@dataclass(frozen=True)
class DclRequest:
    """Request for Dual Consistency Learning.

    Attributes:
        checkpoint: the user's model, which has two encoders.
        data: questions (`hvlc.workflows.train.data`).
        output: directory of the trained checkpoint.
        work: directory of the state; what is there is not done again.
        small: name of the encoder that learns. "": the one that is not the checkpoint's default.
        method: "dcl"; "ce" leaves the divergence out.
        parts: "small": the small encoder learns; "all": both and the language model.
        alone: whether the large encoder is left out, for comparisons.
        weight: factor on the divergence.
        temperature: of the divergence.
        rate: peak learning rate.
        minutes: of training.
        questions: of each update.
        counts: of the shipped documents, by split.
        seed: of the order.
        max_new_tokens: bound of an answer.
    """

    checkpoint: Path
    data: str
    output: Path
    work: Path
    small: str = ""
    method: Literal["ce", "dcl"] = "dcl"
    parts: Literal["small", "all"] = "small"
    alone: bool = False
    weight: float = 1.0
    temperature: float = 2.0
    rate: float = 5e-4
    minutes: float = 10.0
    questions: int = 8
    counts: Mapping[str, int] = field(default_factory=lambda: {"train": 20_000, "calibration": 8, "heldout": 256})
    seed: int = 0
    max_new_tokens: int = 32


@dataclass(frozen=True)
class EncoderScore:
    """Score of an encoder on held-out questions.

    Attributes:
        n: number of questions.
        score: mean by the task's metric.
        low: lower end of the 95 % interval of `score`.
        high: upper end.
    """

    n: int
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Both encoders on held-out questions.

    Attributes:
        encoders: scores by name.
        same: share of questions that both answer with the same words.
        low: lower end of the 95 % interval of `same`.
        high: upper end.
    """

    encoders: Mapping[str, EncoderScore]
    same: float
    low: float
    high: float


@dataclass(frozen=True)
class DclResult:
    """Effect of a training on held-out questions.

    Attributes:
        small: name of the encoder that learned.
        large: name of the other.
        learned: number of parameters that learned.
        before: of the checkpoint as it was.
        after: of the trained one.
    """

    small: str
    large: str
    learned: int
    before: Agreement
    after: Agreement


def train_dcl(request: DclRequest, progress: Progress = lambda *_: None) -> DclResult:
    """Train, measure before and after, and write the checkpoint.

    Raises:
        UserError: the checkpoint has not two encoders, the data are wrong, or there is no room for the output; all of
            it before the long work.
    """
    require_compile("training")
    from hvlc.models.reference import Reference
    from hvlc.training.consistency import train_consistency
    from hvlc.training.stages import Report

    check_output(request.output, force=False)
    model, small, large = _opened(request)
    tasks = open_splits(request.data, request.counts)
    make_directory(request.work, "train.work")
    recipe = _recipe(request, small, large, tasks["train"])
    before = _measured(Reference(model), tasks["heldout"], (small, large), request, progress, "before")

    def told(report: Report) -> None:
        progress("train", round(60 * request.minutes * report.over), round(60 * request.minutes))

    names = train_consistency(model, tasks["train"], recipe, told)
    after = _measured(Reference(model), tasks["heldout"], (small, large), request, progress, "after")
    sizes = {name: parameter.numel() for name, parameter in model.model.named_parameters()}
    result = DclResult(small, large, sum(sizes[name] for name in names), before, after)
    with atomic_directory(request.output, force=False) as place:
        _save(model, request, result, place)
    return result


def _opened(request: DclRequest) -> "tuple[LoadedModel, str, str]":
    """The loaded checkpoint, and the names of the encoder that learns and of the other.

    Raises:
        UserError: it sees no images, has not two encoders, or none of that name.
    """
    from hvlc.export.references import vision_language_checkpoint

    found = vision_language_checkpoint(request.checkpoint)
    names = found.names if found else ()
    if found is None or len(names) != 2:
        cause = f"{request.checkpoint} has {len(names)} vision encoder{'s' if len(names) != 1 else ''}"
        raise UserError("dcl.encoder", cause, "give a checkpoint with two")
    small = request.small or next(name for name in names if name != found.default)
    if small not in names:
        raise UserError("request.encoder", f"the checkpoint has no encoder {small!r}", f"use {', '.join(names)}")
    return found.loaded(), small, next(name for name in names if name != small)


def _recipe(request: DclRequest, small: str, large: str, task: Task) -> "Consistency":
    from hvlc.training.consistency import Consistency

    facts = [Checkpoint.open(request.checkpoint).digest, task.name, len(task), small, request.alone]
    facts += [request.method, request.parts, request.weight, request.temperature, request.rate]
    facts += [request.minutes, request.questions, request.seed]
    state = f"dcl-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"  # another training begins anew
    return Consistency(
        small=small,
        large=None if request.alone else large,
        method=request.method,
        parts=request.parts,
        weight=request.weight,
        temperature=request.temperature,
        rate=request.rate,
        minutes=request.minutes,
        questions=request.questions,
        seed=request.seed,
        work=request.work / state,
    )


def _measured(
    answerer: Answerer,
    task: Task,
    encoders: tuple[str, str],
    request: DclRequest,
    progress: Progress,
    stage: str,
) -> Agreement:
    """Ask both encoders every question of a task."""
    scores: dict[str, list[float]] = {name: [] for name in encoders}
    same = 0
    for index in range(len(task)):
        example = task.example(index)
        said = []
        for name in encoders:
            answered = answerer.answer(
                example.question, example.images, encoder=name, vrc=False, max_new_tokens=request.max_new_tokens
            )
            said.append(normalized(answered.text))
            scores[name].append(METRICS[example.metric or "exact_match"](answered.text, example.answers))
        same += said[0] == said[1]
        progress(stage, index + 1, len(task))
    count = len(task)
    shares = {name: sum(found) / count for name, found in scores.items()}
    named = {name: EncoderScore(count, share, *wilson(share, count)) for name, share in shares.items()}
    return Agreement(named, same / count, *wilson(same / count, count))


def _save(model: "LoadedModel", request: DclRequest, result: DclResult, place: Path) -> None:
    """Weights as transformers writes them, every other file as it was, and the report."""
    model.model.save_pretrained(place)
    for path in place.glob("*.safetensors"):
        path.chmod(0o644)  # written for the owner alone
    for path in sorted(request.checkpoint.iterdir()):
        if path.is_file() and not path.name.endswith(_WEIGHTS) and path.name != REPORT:
            shutil.copyfile(path, place / path.name)
    settings: dict[str, Any] = {
        name: getattr(request, name)
        for name in ("data", "method", "parts", "alone", "weight", "temperature", "rate", "minutes", "seed")
    }
    text = json.dumps({"settings": settings, **asdict(result)}, indent=1)
    (place / REPORT).write_text(text + "\n", "utf-8")
