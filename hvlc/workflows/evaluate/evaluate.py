"""Evaluation of packages and checkpoints on questions."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from PIL import Image

from hvlc.errors import Progress, UserError
from hvlc.evaluation.compare import with_agreement
from hvlc.evaluation.evaluate import MAX_NEW_TOKENS, evaluate, examples_digest, measure_fidelity, require_count
from hvlc.evaluation.task import Task
from hvlc.evaluation.tasks import usual_new_tokens
from hvlc.graphs.facts import Kind
from hvlc.report.compilation import checks_markdown
from hvlc.report.markdown import comparison_markdown
from hvlc.report.page import write_page
from hvlc.results import Divergence, Evaluation, ExampleResult, Fidelity, label_of, write_whole
from hvlc.runtime.settings import VisionSettings
from hvlc.workflows.evaluate.evaluation_store import Store, shared_facts
from hvlc.workflows.evaluate.model import Model, Subject, answering, open_subject, require_one_vocabulary


@dataclass(frozen=True)
class Setting:
    """Setting of a question: the encoder ("" where there is none), with or without the resolution compressor."""

    encoder: str
    vrc: bool


@dataclass(frozen=True)
class ReferenceModel:
    """Reference that a model is compared with.

    Attributes:
        directory: the reference, a package or a checkpoint.
        evaluations: its own, of the same task; a setting that is not among them is not compared.
        fidelity: whether distributions are compared too, not the answers alone.
    """

    directory: Path
    evaluations: Sequence[Evaluation]
    fidelity: bool = True


@dataclass(frozen=True)
class Work:
    """Work that is done for every setting of a model.

    Attributes:
        subject: the model.
        task: the questions.
        total: how many of them.
        max_new_tokens: bound of an answer.
        store: keeps what is done.
        progress: told after each example.
    """

    subject: Subject
    task: Task
    total: int
    max_new_tokens: int
    store: Store
    progress: Progress

    def label(self, setting: Setting) -> str:
        """Label of an evaluation, as `Evaluation.label` has it."""
        return label_of(self.subject.label, setting.encoder, setting.vrc)

    def depends_on(self, setting: Setting) -> dict[str, object]:
        """Facts that answers depend on, besides the questions."""
        asked = {"task": self.task.name, "encoder": setting.encoder, "vrc": setting.vrc}
        return {**asked, "max_new_tokens": self.max_new_tokens, **self.subject.provenance}

    def answered(self, model: Model, setting: Setting) -> Evaluation:
        """Ask every question that an earlier run has not asked."""
        label = self.label(setting)
        return evaluate(
            model,
            self.task,
            encoder=setting.encoder,
            vrc=setting.vrc,
            count=self.total,
            max_new_tokens=self.max_new_tokens,
            progress=partial(self.progress, label),
            journal=self.store.journal(label, self.total, self.depends_on(setting), ExampleResult),
            size_bytes=self.subject.size_bytes,
            bits_per_weight=self.subject.bits_per_weight,
            compilation=self.subject.compilation,
            provenance=self.subject.provenance,
        )

    def earlier(self, setting: Setting, digest: str) -> Evaluation | None:
        """A finished evaluation of exactly this."""
        found = self.store.read(self.label(setting))
        if not isinstance(found, Evaluation) or found.examples_digest != digest:
            return None
        same = (found.encoder, found.vrc, found.max_new_tokens) == (setting.encoder, setting.vrc, self.max_new_tokens)
        return found if same and found.provenance == self.subject.provenance else None

    def faithful(self, model: Model, reference: Model, expected: Evaluation, digest: str) -> Fidelity:
        """Hold distributions against a reference's, where an earlier run has not."""
        setting = Setting(expected.encoder, expected.vrc)
        label = f"{self.label(setting)} fidelity"
        depends = {**self.depends_on(setting), "reference": digest, "answers": expected.label}
        return measure_fidelity(
            model,
            reference,
            self.task,
            expected,
            reference_digest=digest,
            progress=partial(self.progress, label),
            journal=self.store.journal(label, self.total, depends, Divergence),
        )


def settings_of(subject: Subject, encoders: Sequence[str] = (), *, vrc: bool = True) -> list[Setting]:
    """Settings in which a model is asked: with each of some encoders, or of its own; with its resolution compressor, if
    it has one.

    Raises:
        UserError: it has no such encoder, or none at all.
    """
    unknown = [name for name in encoders if name not in (*subject.encoders, *(["auto"] if subject.encoders else []))]
    if unknown:
        there = f"it has {', '.join(subject.encoders)}" if subject.encoders else "it has none"
        raise UserError("request.encoder", f"{subject.label} has no encoder {unknown[0]!r}: {there}", "name another")
    compresses = vrc and subject.compresses
    return [Setting(name, compresses) for name in encoders or subject.encoders] or [Setting("", False)]


def encoders_of(directory: Path) -> tuple[str, ...]:
    """The vision encoders of a package or checkpoint.

    Raises:
        UserError: it is neither.
    """
    return open_subject(directory).encoders


def require_vision(subject: Subject, task: Task) -> None:
    """Refuse questions about images for a model without eyes.

    Raises:
        UserError: that is what the task asks.
    """
    if task.shows_images and subject.kind is not Kind.VISION_LANGUAGE:
        what = "package" if subject.manifest else "checkpoint"
        cause = f"{subject.directory} is a {subject.kind} {what}, and the task {task.name!r} asks about images"
        fix = "name a vision-language model, a .jsonl task without images, or a .txt file"
        raise UserError("eval.kind", cause, fix)


def evaluate_directory(
    directory: Path,
    task: Task,
    settings: Sequence[Setting],
    *,
    count: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    store: Store | None = None,
    reuse: bool = False,
    name: str | None = None,
    against: ReferenceModel | None = None,
    vision: VisionSettings | None = None,
    progress: Progress = lambda *_: None,
) -> list[Evaluation]:
    """Evaluate a package or checkpoint under several settings.

    Args:
        directory: what to evaluate.
        task: the questions.
        settings: how to ask, one evaluation each.
        count: examples per setting, all when None.
        max_new_tokens: bound of an answer.
        store: where evaluations are written, and where one that was killed goes on.
        reuse: take finished evaluations of the same model, questions, setting, versions and machine from the store.
        name: label in reports; the directory's name when None.
        against: what to compare each evaluation with.
        vision: how a package's encoders run. None: as usual.
        progress: told after each example: twice with fidelity.

    Raises:
        UserError: something is wrong with the model, the task, the reference or the store.
    """
    subject = open_subject(directory, name)
    require_vision(subject, task)
    work = Work(subject, task, require_count(task, count), max_new_tokens, store or Store(None), progress)
    digest = examples_digest(task, count) if reuse else None
    with ExitStack() as stack:
        model = cache(lambda: stack.enter_context(answering(subject, vision)))
        found = [(digest and work.earlier(setting, digest)) or work.answered(model(), setting) for setting in settings]
    if against:
        return hold_against(directory, found, task, against, store=store, name=name, progress=progress)
    for evaluation in found:
        work.store.write(evaluation, evaluation.label)
    return found


def hold_against(
    directory: Path,
    evaluations: Sequence[Evaluation],
    task: Task,
    against: ReferenceModel,
    *,
    store: Store | None = None,
    name: str | None = None,
    progress: Progress = lambda *_: None,
) -> list[Evaluation]:
    """Compare evaluations of a model with a reference's; both models are in memory for their distributions.

    Args:
        directory: the model.
        evaluations: its own.
        task: the questions.
        against: what to compare with.
        store: where evaluations are written, and where a comparison that was killed goes on.
        name: label in reports; the directory's name when None.
        progress: told after each example whose distributions were compared.

    Raises:
        UserError: the reference answered other questions or has another vocabulary, or the store cannot be written.
    """
    subject, reference = open_subject(directory, name), open_subject(against.directory)
    if against.fidelity:
        require_one_vocabulary([subject, reference])
    store = store or Store(None)
    by_setting = {(e.encoder, e.vrc): e for e in against.evaluations}
    compared = []
    with ExitStack() as stack:
        models = [cache(partial(stack.enter_context, answering(one))) for one in (subject, reference)]
        for evaluation in evaluations:
            expected = by_setting.get((evaluation.encoder, evaluation.vrc))
            if expected:
                evaluation = with_agreement(evaluation, expected)
                if against.fidelity and not _has_fidelity(evaluation, expected, reference):
                    work = Work(subject, task, evaluation.summary.n, evaluation.max_new_tokens, store, progress)
                    ours, theirs = (model() for model in models)
                    fidelity = work.faithful(ours, theirs, expected, reference.digest)
                    evaluation = evaluation.model_copy(update={"fidelity": fidelity})
            compared.append(evaluation)
            store.write(evaluation, evaluation.label)
    return compared


def _has_fidelity(evaluation: Evaluation, expected: Evaluation, reference: Subject) -> bool:
    """Whether a finished evaluation was held against this reference."""
    had = evaluation.fidelity
    return had is not None and (had.reference, had.reference_digest) == (expected.label, reference.digest)


@dataclass(frozen=True)
class EvaluationResult:
    """A model, and what it was held against.

    Attributes:
        evaluations: of the model, one for each setting.
        references: of the reference, if there is one.
    """

    evaluations: list[Evaluation]
    references: list[Evaluation]

    @property
    def shown(self) -> list[Evaluation]:
        """All, the reference first."""
        return [*self.references, *self.evaluations]


def evaluate_questions(
    directory: Path,
    task: Task,
    *,
    reference: Path | None = None,
    encoders: Sequence[str] = (),
    vrc: bool = True,
    count: int | None = None,
    max_new_tokens: int | None = None,
    fidelity: bool = True,
    store: Store | None = None,
    reuse: bool = False,
    vision: VisionSettings | None = None,
    progress: Progress = lambda *_: None,
) -> EvaluationResult:
    """Evaluate a model with every encoder, then its reference, if there is one, and compare them.

    The model goes first: what a reference leaves in memory would count as the model's.

    Args:
        directory: a package or checkpoint.
        task: the questions.
        reference: a package or checkpoint to agree with.
        encoders: to ask for; the model's own when empty.
        vrc: whether the resolution compressor chooses the scale, where there are images.
        count: examples per setting, all when None.
        max_new_tokens: bound of an answer. None: the usual one of the task.
        fidelity: whether distributions are compared with the reference's, not the answers alone.
        store: see `evaluate_directory`.
        reuse: see `evaluate_directory`.
        vision: see `evaluate_directory`.
        progress: told after each example of all evaluations together.

    Raises:
        UserError: something is wrong with a model, the task, or the store.
    """
    subject, other = open_subject(directory), open_subject(reference) if reference else None
    settings = settings_of(subject, encoders, vrc=vrc)
    for one in (subject, *([other] if other else [])):  # before the long work
        require_vision(one, task)
        settings_of(one, [setting.encoder for setting in settings if setting.encoder])
    if other and fidelity:
        require_one_vocabulary([subject, other])
    passes = 1 + (1 + fidelity if other else 0)
    step = _Steps(progress, require_count(task, count) * len(settings) * passes)
    evaluated = partial(
        evaluate_directory,
        task=task,
        settings=settings,
        count=count,
        max_new_tokens=usual_new_tokens(task) if max_new_tokens is None else max_new_tokens,
        store=store,
        reuse=reuse,
        vision=vision,
        progress=step,
    )
    found = evaluated(directory)
    if reference is None or other is None:
        return EvaluationResult(found, [])
    name = f"{other.label} (reference)" if other.label == subject.label else other.label
    references = evaluated(reference, name=name)
    against = ReferenceModel(reference, references, fidelity)
    return EvaluationResult(hold_against(directory, found, task, against, store=store, progress=step), references)


class _Steps:
    """Adds up the examples of several evaluations."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def __call__(self, label: str, done: int, total: int) -> None:
        self._done += 1
        self._progress(label, self._done, self._total)


def against(evaluations: Sequence[Evaluation], references: Sequence[Evaluation]) -> list[Evaluation]:
    """Each evaluation with its agreement to the reference of the same setting, where there is one."""
    by_setting = {(r.encoder, r.vrc): r for r in references}
    return [
        with_agreement(e, by_setting[e.encoder, e.vrc]) if (e.encoder, e.vrc) in by_setting else e for e in evaluations
    ]


def write_reports(output: Path, evaluations: Sequence[Evaluation], task: Task, title: str) -> None:
    """report.html and report.md of evaluations of one task, beside their JSON files.

    Raises:
        UserError: they cannot be written.
    """
    write_report(output / "report.html", evaluations, task, title, shared_facts(evaluations))
    write_whole(output / "report.md", [comparison_markdown(evaluations), "\n", checks_markdown(evaluations)])


def write_report(path: Path, evaluations: Sequence[Evaluation], task: Task, title: str, facts: dict[str, str]) -> None:
    """The HTML page of evaluations of one task."""

    def image(index: int) -> Image.Image | None:
        return next(iter(task.example(index).images), None)

    write_page(path, evaluations, image, title=title, facts=facts)
