"""A resolution compressor for a user's model: labels by the model, the network, and its acceptance."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hvlc.errors import GateError, Progress, UserError
from hvlc.evaluation.evaluate import example_digest
from hvlc.evaluation.journal import Journal
from hvlc.evaluation.task import Task
from hvlc.files.reading import is_file
from hvlc.files.writing import make_directory
from hvlc.graphs.facts import Kind
from hvlc.package.atomic import atomic_directory, check_output
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request, source_digest
from hvlc.workflows.build.requirements import require_compile
from hvlc.workflows.train.data import SPLITS, open_splits

if TYPE_CHECKING:
    from hvlc.export.compressor import CompressorSettings
    from hvlc.training.vrc.labels import Label

_PROBED = 24  # questions at full size before the long work
_LEAST = 0.2  # mean score of these, below which the model's answers teach nothing


@dataclass(frozen=True)
class VrcRequest:
    """Request for a compressor.

    Attributes:
        checkpoint: the user's model.
        data: questions (`hvlc.workflows.train.data`).
        output: directory to write.
        work: directory of the state; what is there is not done again.
        labels: rule of the labels, "equivalence" or "loss".
        equivalence: rule by which answers are equivalent, in `hvlc.training.vrc.labels.EQUIVALENCES`.
        scales: per side; empty: the usual ones.
        encoder: that answers; "auto" is the policy's.
        floor: share of the score that must be kept on held-out questions.
        reads_question: whether the network sees the question too.
        minutes: of training.
        counts: of the shipped documents, by split.
        seed: of the network and the order.
        max_new_tokens: bound of an answer.
        proxy_size: side in pixels of the network's view.
    """

    checkpoint: Path
    data: str
    output: Path
    work: Path
    labels: str = "equivalence"
    equivalence: str = "exact"
    scales: tuple[float, ...] = ()
    encoder: str = "auto"
    floor: float = 0.99
    reads_question: bool = True
    minutes: float = 10.0
    counts: Mapping[str, int] = field(default_factory=lambda: {"train": 1200, "calibration": 400, "heldout": 512})
    seed: int = 0
    max_new_tokens: int = 32
    proxy_size: int = 224


def train_vrc(request: VrcRequest, progress: Progress = lambda *_: None) -> "CompressorSettings":
    """Train a compressor and write its directory, accepted or not.

    Raises:
        UserError: the checkpoint does not see, its images have no scale, the data are wrong, or the model cannot answer
            them at full size; all of it before the long work.
        GateError: "vrc.floor": held-out questions lose more than the floor allows; the directory is written.
    """
    require_compile("training a compressor")
    from hvlc.training.vrc.labels import SCALES, check_scales

    check_output(request.output, force=False)
    scales = check_scales(request.scales or SCALES)
    tasks = open_splits(request.data, request.counts)
    make_directory(request.work, "train.work")
    model = _model(request)
    _probe(model, tasks["train"], request, scales)
    labels = {split: _labelled(model, tasks[split], split, request, scales, progress) for split in SPLITS}
    settings = _fitted(request, tasks, labels, progress)
    if not settings.accepted and settings.held_out is not None:
        found = settings.held_out
        kept = f"{found.kept:.1%} ({found.kept_low:.1%} to {found.kept_high:.1%})"
        cause = f"of the score on {found.n} held-out questions it keeps {kept}, the floor is {request.floor:.1%}"
        raise GateError("vrc.floor", cause, "give more data, or a lower --floor; builds refuse it as it is")
    return settings


def _model(request: VrcRequest) -> VisionLanguageModel:
    """The checkpoint as a package in float32, built once into the work directory.

    Raises:
        UserError: it cannot be built, or does not see.
    """
    place = request.work / f"float32-{Checkpoint.open(request.checkpoint).digest[:12]}"
    if not is_file(place / "hvlc.json"):
        build(open_request(request.checkpoint, "cpu", "float32", place, force=place.exists()))
    model = VisionLanguageModel(place)
    if model.kind is not Kind.VISION_LANGUAGE:
        raise UserError("package.kind", f"{request.checkpoint} sees no images", "name a vision-language checkpoint")
    return model


def _probe(model: VisionLanguageModel, task: Task, request: VrcRequest, scales: Sequence[float]) -> None:
    """Ask some questions at full size, and look whether a scale changes anything.

    Raises:
        UserError: the scale changes no image, or the answers are wrong.
    """
    from hvlc.evaluation.benchmarks.scores import METRICS
    from hvlc.inputs.images import to_array

    examples = [task.example(index) for index in range(min(_PROBED, len(task)))]
    grids = {
        (index, tuple(int(side) for side in model.seen_at(to_array(example.images[0]), scale).grid))
        for index, example in enumerate(examples)
        for scale in (scales[0], 1.0)
    }
    if len(grids) == len(examples):
        cause = f"images of a {model.manifest.sources.model_type} are the same at every scale"
        raise UserError("vrc.scale", cause, "a compressor has nothing to choose for this family's rule")
    scores = []
    for example in examples:
        said = model.answer(
            example.question, example.images, encoder=request.encoder, vrc=False, max_new_tokens=request.max_new_tokens
        )
        scores.append(METRICS[example.metric or "exact_match"](said.text, example.answers))
    mean = sum(scores) / len(scores)
    if mean < _LEAST:
        cause = f"the model scores {mean:.0%} on the first {len(scores)} questions at full size"
        raise UserError("vrc.answers", cause, "give questions that it can answer: its answers are the labels")


def _labelled(
    model: VisionLanguageModel,
    task: Task,
    split: str,
    request: VrcRequest,
    scales: Sequence[float],
    progress: Progress,
) -> "list[Label]":
    """Labels of a split; those that an earlier run made are taken."""
    from hvlc.training.vrc.labels import EQUIVALENCES, VERSION, Label, label, with_equivalence

    header: dict[str, object] = {
        "labels": VERSION,
        "model": source_digest(model.manifest),
        "scales": list(scales),
        "encoder": request.encoder,
        "max_new_tokens": request.max_new_tokens,
    }
    equivalence = EQUIVALENCES[request.equivalence]
    journal = Journal(request.work / f"labels-{split}.jsonl", header, Label)
    found = []
    try:
        for index in range(len(task)):
            example = task.example(index)
            key = example_digest(example)
            made = journal.find(index, key)
            if made is None:
                made = label(
                    model,
                    example,
                    encoder=request.encoder,
                    scales=scales,
                    equivalence=equivalence,
                    max_new_tokens=request.max_new_tokens,
                )
                journal.add(index, key, made)
            found.append(with_equivalence(made, equivalence))
            progress(f"label {split}", index + 1, len(task))
    finally:
        journal.close()
    return found


def _fit_directory(request: VrcRequest, labels: "Sequence[Label]") -> str:
    """Name of the state of a training: by all that it depends on, so that another one begins anew."""
    facts = [request.labels, request.reads_question, request.seed, request.minutes, request.proxy_size]
    digest = hashlib.sha256(repr(facts).encode())
    for made in labels:
        digest.update(made.model_dump_json().encode())
    return f"fit-{digest.hexdigest()[:12]}"


def _fitted(
    request: VrcRequest, tasks: Mapping[str, Task], labels: "Mapping[str, list[Label]]", progress: Progress
) -> "CompressorSettings":
    """Train, choose the price, measure, and write the directory."""
    from hvlc.training.vrc.compressor import Recipe, train_compressor

    kind = _fit_directory(request, labels["train"])
    recipe = Recipe(
        labels=request.labels,
        reads_question=request.reads_question,
        minutes=request.minutes,
        work=request.work / kind,
        seed=request.seed,
        floor=request.floor,
        proxy_size=request.proxy_size,
    )
    trained = train_compressor(Checkpoint.open(request.checkpoint), tasks, labels, recipe, progress)
    with atomic_directory(request.output, force=False) as place:
        trained.save(place)
    return trained.settings
