"""Packages and reports side by side: scores, weights, values, and what the packages were made from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from hvlc.errors import Progress, UserError, nearest
from hvlc.evaluation.compare import with_agreement
from hvlc.evaluation.evaluate import MAX_NEW_TOKENS, examples_digest
from hvlc.evaluation.perplexity import with_reading_agreement
from hvlc.evaluation.significance import flips, paired_tests
from hvlc.evaluation.task import Task
from hvlc.evaluation.tasks import NAMED_TASKS, is_place, open_task
from hvlc.files.reading import TEXT, is_directory, is_file, read_text
from hvlc.files.writing import make_directory
from hvlc.inputs.images import to_array
from hvlc.manifest.manifest import MANIFEST
from hvlc.opening.package import open_package
from hvlc.package.settings import changed_settings, changed_tokenizer
from hvlc.report.comparison import comparison_markdown
from hvlc.report.comparison_page import write_comparison_page
from hvlc.results import Evaluation, Interval, Measured, TextEvaluation, read_evaluation, write_whole
from hvlc.results.comparison import Comparison, ModelSummary, RunScores, StageError
from hvlc.results.difference import ValueChange
from hvlc.results.files import UNWRITABLE
from hvlc.results.measures import MEASURES
from hvlc.results.trace_points import Question
from hvlc.workflows.evaluate.evaluate import ReferenceModel, evaluate_directory, require_vision, settings_of
from hvlc.workflows.evaluate.evaluation_store import Store
from hvlc.workflows.evaluate.layerwise import WeightDifferences, trace, weigh
from hvlc.workflows.evaluate.model import open_subject, require_one_vocabulary
from hvlc.workflows.evaluate.perplexity import TOKENS, evaluate_texts

_NAME = "comparison"  # of the files in an output
_LEADING = 12  # digits of a digest that are shown
_PROMPT = 1500  # characters of a text whose values are compared
_NOTHING: tuple[list[StageError], list[str]] = ([], [])


@dataclass(frozen=True)
class EvaluationRequest:
    """Request to evaluate packages: what they are evaluated on.

    Attributes:
        task: name or file of the questions, or a text.
        encoders: to ask for; the reference's own when empty.
        vrc: whether the resolution compressor chooses the scale.
        count: number of examples; all when None.
        max_new_tokens: bound of an answer.
        tokens: of a text that are scored at most.
        window: of a text, tokens that are read at once; None is as `evaluate_texts` has it.
        fidelity: whether distributions are compared with the reference's.
        traces: number of questions whose values are compared stage by stage; 0 compares neither values nor weights.
    """

    task: str = "documents"
    encoders: tuple[str, ...] = ()
    vrc: bool = True
    count: int | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    tokens: int = TOKENS
    window: int | None = None
    fidelity: bool = True
    traces: int = 2

    @property
    def text(self) -> Path | None:
        """The text, if the task is one."""
        return Path(self.task) if self.task.endswith(".txt") else None


@dataclass(frozen=True)
class ComparedModel:
    """A package, or the evaluations of one model.

    Attributes:
        name: unique among the models.
        package: where it is; None for what was read from reports.
        evaluations: that were read, or made for the comparison.
    """

    name: str
    package: Path | None
    evaluations: tuple[Measured, ...] = ()


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison with what it was made from.

    Attributes:
        comparison: what differs.
        evaluations: every run, the reference's first; those of others have their agreement with it.
        task: whose images a page may show; None where it is not known.
    """

    comparison: Comparison
    evaluations: tuple[Measured, ...]
    task: Task | None


def open_models(paths: Sequence[Path], reference: str | None = None) -> list[ComparedModel]:
    """Packages and reports with names that tell them apart, the reference first.

    Args:
        paths: packages, evaluations as JSON, or directories of those.
        reference: name of the one that comes first; the first when None.

    Raises:
        UserError: one is none of these or damaged, there are fewer than two, or none has the reference's name.
    """
    found = [model for path in paths for model in _opened(path)]
    if len(found) < 2:
        cause = f"{len(found)} model is not a comparison: {', '.join(map(str, paths))}"
        raise UserError("compare.few", cause, "name two packages or reports, or more")
    named = _told_apart(found)
    if reference is None:
        return named
    first = [model for model in named if model.name == reference]
    if not first:
        hint = nearest(reference, [model.name for model in named])
        raise UserError("compare.reference", f"nothing here is called {reference!r}: {hint}", "name one of them")
    return [*first, *(model for model in named if model.name != reference)]


def _opened(path: Path) -> list[ComparedModel]:
    if is_file(path / MANIFEST):
        return [ComparedModel(path.resolve().name, path)]
    if is_file(path):
        files = [path]
    else:
        files = sorted(p for p in path.glob("*.json") if p.stem != _NAME) if is_directory(path) else []
    if not files:
        cause = f"{path} is neither a package nor an evaluation nor a directory with evaluations"
        raise UserError("compare.input", cause, "name packages, or what `hvlc eval -o` wrote")
    by_name: dict[str, list[Measured]] = {}
    evaluations = [read_evaluation(file) for file in files]
    for evaluation in sorted(evaluations, key=lambda e: e.agreement is not None):  # a reference has none
        by_name.setdefault(evaluation.name, []).append(evaluation)
    return [ComparedModel(name, None, tuple(found)) for name, found in by_name.items()]


def _told_apart(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    """The same with a number behind names that are there already."""
    taken: set[str] = set()
    named = []
    for model in models:
        name, count = model.name, 1
        while name in taken:
            count += 1
            name = f"{model.name} ({count})"
        taken.add(name)
        evaluations = tuple(e.model_copy(update={"name": name}) for e in model.evaluations)
        named.append(replace(model, name=name, evaluations=evaluations))
    return named


def compare_models(
    models: Sequence[ComparedModel],
    asking: EvaluationRequest,
    *,
    work: Path | None = None,
    progress: Progress = lambda *_: None,
    announce: Callable[[str], None] = lambda _: None,
) -> ComparisonResult:
    """Compare packages and reports; packages are evaluated.

    Args:
        models: two or more, the reference first.
        asking: what packages are evaluated on.
        work: keeps evaluations, so that a later comparison takes them from there and one that was killed goes on.
        progress: told after each example, component and question.
        announce: told when an earlier run goes on.

    Raises:
        UserError: a package, the task or the store is wrong, or evaluations answered different examples.
    """
    task = None if asking.text else _task(models, asking)
    evaluated = _evaluated(models, asking, task, work, progress, announce)
    runs, pairs, notes = _against_reference(evaluated)
    first, *others = evaluated
    tests = paired_tests(pairs)
    settings = _settings(first, others)
    packages = {c.name: c.package for c in evaluated if c.package} if first.package else {}
    weighed, traced = WeightDifferences(), _NOTHING
    if len(packages) > 1 and asking.traces:
        weighed = weigh(packages, settings, progress)
        traced = trace(packages, _questions(task, asking, runs[0]), progress)
    if first.package is None or len(packages) < len(evaluated):
        notes.append("weights, values and settings are compared among packages alone, with a package as reference")
    comparison = Comparison(
        reference=first.name,
        contestants=tuple(_summary(model) for model in evaluated),
        runs=tuple(_scores(c.name, e) for c in evaluated for e in c.evaluations),
        tests=tuple(tests),
        flips=tuple(
            flip
            for run, reference in pairs
            if isinstance(run, Evaluation) and isinstance(reference, Evaluation)
            for flip in flips(run, reference)
        ),
        layers=weighed.layers,
        stages=tuple(traced[0]),
        plan=weighed.plan,
        settings=settings,
        notes=(*notes, *weighed.notes, *traced[1]),
    )
    return ComparisonResult(comparison, tuple(runs), _with_images(task, runs))


def _questions(task: Task | None, asking: EvaluationRequest, run: Measured) -> list[Question]:
    """Questions that layers are compared on: the first examples in the first run's setting, or the text's beginning."""
    if asking.text:
        return [Question(read_text(asking.text, "task.text", limit=TEXT)[:_PROMPT])]
    if task is None or not isinstance(run, Evaluation):
        return []
    examples = [task.example(index) for index in range(min(asking.traces, run.summary.n))]
    return [
        Question(e.question, tuple(to_array(image) for image in e.images), run.encoder or "auto", run.vrc)
        for e in examples
    ]


def _task(models: Sequence[ComparedModel], asking: EvaluationRequest) -> Task | None:
    """The questions; None where only reports are compared and their task has no name here."""
    if any(model.package for model in models):
        return open_task(asking.task, asking.count)
    asked = models[0].evaluations[0]
    if isinstance(asked, TextEvaluation):
        return None
    if asking.task != EvaluationRequest.task or asked.task not in NAMED_TASKS:
        return open_task(asking.task) if is_place(asking.task) else None
    return open_task(asked.task, asked.summary.n)


def _with_images(task: Task | None, runs: Sequence[Measured]) -> Task | None:
    """The task, if it has the very examples that were answered."""
    first = runs[0]
    if task is None or not isinstance(first, Evaluation) or len(task) < first.summary.n:
        return None
    return task if examples_digest(task, first.summary.n) == first.examples_digest else None


def _evaluated(
    models: Sequence[ComparedModel],
    asking: EvaluationRequest,
    task: Task | None,
    work: Path | None,
    progress: Progress,
    announce: Callable[[str], None],
) -> list[ComparedModel]:
    """The models with the evaluations of all packages."""
    packages = [model for model in models if model.package]
    if not packages:
        return list(models)
    with Store(work, announce) as store:
        if asking.text:
            made = _read_texts(models, packages, asking.text, asking, store, progress)
        elif task is not None:
            made = _asked(models[0], packages, task, asking, store, progress, reuse=work is not None)
    return [replace(c, evaluations=made[c.name]) if c.package else c for c in models]


def _asked(
    first: ComparedModel,
    packages: Sequence[ComparedModel],
    task: Task,
    asking: EvaluationRequest,
    store: Store,
    progress: Progress,
    *,
    reuse: bool,
) -> dict[str, tuple[Measured, ...]]:
    """Answers of packages, the reference's first."""
    subjects = [open_subject(c.package, c.name) for c in packages if c.package]
    settings = settings_of(subjects[0], asking.encoders, vrc=asking.vrc)
    for subject in subjects:  # before the long work
        require_vision(subject, task)
        settings_of(subject, [setting.encoder for setting in settings if setting.encoder])
    if asking.fidelity and first.package:
        require_one_vocabulary(subjects)
    made: dict[str, tuple[Measured, ...]] = {}
    references: list[Evaluation] = []
    for model in packages:
        if model.package is None:
            continue
        against = ReferenceModel(first.package, references, asking.fidelity) if first.package and references else None
        found = evaluate_directory(
            model.package,
            task,
            settings,
            count=asking.count,
            max_new_tokens=asking.max_new_tokens,
            store=store,
            reuse=reuse,
            name=model.name,
            against=against,
            progress=progress,
        )
        made[model.name] = tuple(found)
        references = references or (found if model is first else [])
    return made


def _read_texts(
    models: Sequence[ComparedModel],
    packages: Sequence[ComparedModel],
    text: Path,
    asking: EvaluationRequest,
    store: Store,
    progress: Progress,
) -> dict[str, tuple[Measured, ...]]:
    """Evaluations of packages that read a text."""
    found = evaluate_texts(
        [model.package for model in packages if model.package],
        text,
        against_first=models[0].package is not None,
        fidelity=asking.fidelity,
        tokens=asking.tokens,
        window=asking.window,
        store=store,
        names=[model.name for model in packages],
        progress=progress,
    )
    return {model.name: (evaluation,) for model, evaluation in zip(packages, found, strict=True)}


def _against_reference(
    models: Sequence[ComparedModel],
) -> tuple[list[Measured], list[tuple[Measured, Measured]], list[str]]:
    """Every run with its agreement with the reference's run in the same setting, the pairs of the two, and notes.

    Raises:
        UserError: two runs of one setting answered different examples, or no run has a counterpart.
    """
    first, *others = models
    alone = {"agreement": None, "fidelity": None}
    references = {_setting(e): e.model_copy(update=alone) for e in first.evaluations}
    runs: list[Measured] = list(references.values())
    pairs: list[tuple[Measured, Measured]] = []
    notes: list[str] = []
    for run in (evaluation for model in others for evaluation in model.evaluations):
        reference = references.get(_setting(run))
        held = run.fidelity is not None and reference is not None and run.fidelity.reference == reference.label
        if run.fidelity is not None and not held:
            notes.append(f"{run.label}: its divergence is from {run.fidelity.reference}, and is left out")
        run = run.model_copy(update=alone | ({"fidelity": run.fidelity} if held else {}))
        if reference is None:
            notes.append(f"{run.label}: {first.name} was not evaluated in this setting")
        elif isinstance(run, Evaluation) and isinstance(reference, Evaluation):
            run = with_agreement(run, reference)
            pairs.append((run, reference))
        elif isinstance(run, TextEvaluation) and isinstance(reference, TextEvaluation):
            run = with_reading_agreement(run, reference)
            pairs.append((run, reference))
        runs.append(run)
    if not pairs:
        cause = f"no model was evaluated in a setting of {first.name}: {', '.join(sorted(e.label for e in runs))}"
        raise UserError("compare.unpaired", cause, "evaluate all on the same task, encoders and resolution")
    return runs, pairs, notes


def _setting(evaluation: Measured) -> tuple[object, ...]:
    """Setting that two runs must have in common to be compared."""
    if isinstance(evaluation, Evaluation):
        return evaluation.kind, evaluation.task, evaluation.encoder, evaluation.vrc
    return evaluation.kind, evaluation.task


def _summary(model: ComparedModel) -> ModelSummary:
    """Record of a candidate, with what is known of how it was made."""
    if model.package is None:
        last = model.evaluations[-1]
        facts = {name: _short(value) for name, value in last.provenance.items()}
        return ModelSummary(
            name=model.name,
            source="report",
            size_bytes=last.size_bytes,
            bits_per_weight=last.bits_per_weight,
            facts=facts,
        )
    manifest = open_package(model.package).manifest
    sources = manifest.sources
    return ModelSummary(
        name=model.name,
        source="package",
        size_bytes=manifest.total_bytes,
        bits_per_weight=manifest.bits_per_decoder_weight,
        facts={
            "recipe": sources.recipe_name,
            "target": sources.target_name,
            "checkpoint": sources.checkpoint[:_LEADING],
            "calibration": sources.calibration_name or "none",
            **{name: sources.versions[name] for name in ("hvlc", "onnxruntime") if name in sources.versions},
        },
    )


def _short(value: str) -> str:
    """The beginning of a digest, or the whole of anything else."""
    return value[:_LEADING] if len(value) == 64 and value.isalnum() else value


def _scores(contestant: str, evaluation: Measured) -> RunScores:
    found = {name: measure.read(evaluation) for name, measure in MEASURES.items()}
    asked = evaluation if isinstance(evaluation, Evaluation) else None
    return RunScores(
        label=evaluation.label,
        contestant=contestant,
        task=evaluation.task,
        encoder=asked.encoder if asked else "",
        vrc=asked.vrc if asked else False,
        n=evaluation.summary.n if isinstance(evaluation, Evaluation) else len(evaluation.windows),
        runs_on=evaluation.runs_on,
        # Plain intervals, whatever made them: so they are when they are read back.
        measures={n: Interval.model_validate(i.model_dump()) for n, i in found.items() if i is not None},
    )


def _settings(first: ComparedModel, others: Sequence[ComparedModel]) -> dict[str, dict[str, tuple[ValueChange, ...]]]:
    """Changes of settings and tokenizers from the reference's, by package."""
    if first.package is None:
        return {}
    found = {}
    for other in others:
        if other.package is None:
            continue
        manifests = open_package(first.package).manifest, open_package(other.package).manifest
        changes = changed_settings(first.package, other.package, manifests)
        tokenizer = changed_tokenizer(first.package, other.package)
        found[other.name] = {**changes, **({"tokenizer": tokenizer} if tokenizer else {})}
    return {name: changes for name, changes in found.items() if changes}


def write_comparison(output: Path, compared: ComparisonResult, title: str) -> None:
    """comparison.json, comparison.md and comparison.html.

    Raises:
        UserError: they cannot be written.
    """
    make_directory(output, UNWRITABLE)
    comparison = compared.comparison
    write_whole(output / f"{_NAME}.json", [comparison.model_dump_json(indent=1), "\n"])
    write_whole(output / f"{_NAME}.md", [comparison_markdown(comparison, compared.evaluations)])
    images = _no_image if compared.task is None else _images(compared.task)
    write_comparison_page(output / f"{_NAME}.html", comparison, compared.evaluations, images, title=title)


def _images(task: Task) -> Callable[[int], Image.Image | None]:
    """The first image of an example, if it has one."""
    return lambda index: next(iter(task.example(index).images), None)


def _no_image(index: int) -> None:
    """Give no image: the task is not known."""
