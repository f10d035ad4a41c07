"""The front of size and damage: a recipe for each of a series of budgets, built and measured if asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hvlc.errors import Progress, UserError
from hvlc.files.reading import is_file
from hvlc.files.scratch import scratch_directory
from hvlc.files.writing import make_directory
from hvlc.graphs.bundle import Bundle
from hvlc.graphs.facts import Kind
from hvlc.recipes.budget import explicit, knapsack, uniform
from hvlc.recipes.schema import FormatSpec, Recipe, dump_recipe
from hvlc.results import write_whole
from hvlc.results.files import UNWRITABLE, write_results
from hvlc.results.sensitivity import Front, FrontPoint, Sensitivity
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from hvlc.workflows.sensitivity.sensitivity import SensitivityInputs, SensitivityOptions, check_results, measure

FRONT = "front.json"

Scored = Literal["perplexity", "exact match"]
#: Scores a package, or the checkpoint itself.
Score = Callable[[Path], float]


@dataclass(frozen=True)
class Scoring:
    """Measurement of the packages of a front.

    Attributes:
        text: that a language model's perplexity is measured on.
        tokens: of it.
        documents: that a model is asked about that sees.
    """

    text: Path | None = None
    tokens: int = 16_384
    documents: int = 256


def pareto(
    opened: SensitivityInputs,
    how: SensitivityOptions,
    output: Path,
    *,
    count: int,
    scoring: Scoring | None = None,
    plots: Sequence[str] = (),
    force: bool = False,
    progress: Progress = lambda *_: None,
    announce: Callable[[str], None] = lambda _: None,
) -> Front:
    """Measure the sensitivities as far as they are not known, and write the front with a recipe for each point.

    Args:
        opened: the checkpoint, the recipe and the target.
        how: to measure sensitivities.
        output: directory for front.json and the recipes.
        count: of budgets, at even distances from the smallest to the least damaged.
        scoring: how to measure the packages; None builds none.
        plots: names of image files to draw the front into.
        force: replace files of an older front.
        progress: told what is done.
        announce: told how long the sensitivities will take.

    Raises:
        UserError: the output is there, or something is wrong with the model, the calibration set or the text.
    """
    check_results(output, [FRONT], force=force)
    score = scoring and _score(opened.checkpoint, scoring)
    sensitivity = measure(opened.checkpoint, opened.text, opened.recipe, opened.target, how, progress, announce)
    make_directory(output, UNWRITABLE)
    front = _front(sensitivity, opened.recipe, how.formats, count, output)
    if score:
        front = _measured(front, opened, output, score, progress)
    drawn: dict[Path, list[bytes]] = {}
    if plots:
        from hvlc.report.figures import draw_front

        drawn = draw_front(front, [output / name for name in plots])
    write_results({output / FRONT: [front.model_dump_json(indent=1), "\n"]}, drawn)
    return front


def _front(sensitivity: Sensitivity, recipe: Recipe, formats: Sequence[FormatSpec], count: int, output: Path) -> Front:
    """The points, each with its recipe in `output`."""
    problem = knapsack(sensitivity, package=False)
    everything = sum(max(option.size for option in options) for options in problem.parts)
    most = problem.size(problem.best(everything) or ())
    budgets = [problem.least + (most - problem.least) * i // max(1, count - 1) for i in range(count)]
    chosen = dict.fromkeys(choice for budget in budgets if (choice := problem.best(budget)) is not None)
    points: dict[str, FrontPoint] = {}
    for choice in chosen:
        point = _point(sensitivity, choice, recipe.name, uniform=False)
        points[point.name] = point
        write_whole(output / point.recipe, [dump_recipe(explicit(recipe, sensitivity, choice, point.name))])
    for index, format in enumerate(formats):
        point = _point(sensitivity, (index,) * len(sensitivity.parts), recipe.name, uniform=True)
        points[point.name] = point
        made = uniform(recipe, format).model_copy(update={"name": point.name})
        write_whole(output / point.recipe, [dump_recipe(made)])
    return Front(
        checkpoint=sensitivity.checkpoint,
        predicted="nats per token" if sensitivity.measured else "output error",
        points=tuple(points.values()),
    )


def _point(sensitivity: Sensitivity, choice: Sequence[int], recipe: str, *, uniform: bool) -> FrontPoint:
    candidates = [part.candidates[index] for part, index in zip(sensitivity.parts, choice, strict=True)]
    names = [candidate.name for candidate in candidates]
    bits = 8 * sum(c.stored_bytes for c in candidates) / sensitivity.elements
    name = f"{recipe}-{names[0].replace(' ', '-') if uniform else f'{bits:.3f}bpw'}"
    return FrontPoint(
        name=name,
        uniform=uniform,
        bits_per_weight=bits,
        package_bytes=sensitivity.fixed_bytes + sum(c.package_bytes for c in candidates),
        damage=knapsack(sensitivity, package=False).damage(choice),
        formats={name: names.count(name) for name in sensitivity.formats if name in names},
        recipe=f"{name}.yaml",
    )


def _score(checkpoint: Checkpoint, scoring: Scoring) -> tuple[Scored, Score]:
    """Measure of the packages, and the function that measures it.

    Raises:
        UserError: there is no text for a language model.
    """
    from hvlc.export import export_bundle

    bundle: Bundle = export_bundle(checkpoint)
    if bundle.facts.kind is Kind.LANGUAGE:
        from hvlc.workflows.evaluate.perplexity import measure_perplexities

        text = scoring.text
        if text is None or not is_file(text):
            cause = "the perplexity of a language model needs a text" if text is None else f"{text} is not a file"
            raise UserError("pareto.text", cause, "name a UTF-8 text file with --text")
        return "perplexity", lambda model: measure_perplexities([model], text, tokens=scoring.tokens)[0].value
    return "exact match", lambda model: _exact_match(model, scoring.documents)


def _exact_match(model: Path, count: int) -> float:
    """Share of right answers about documents, over all encoders."""
    from hvlc.evaluation.tasks import open_task
    from hvlc.workflows.evaluate.evaluate import Setting, encoders_of, evaluate_directory

    task = open_task("documents", count)
    settings = [Setting(encoder, True) for encoder in encoders_of(model)]
    found = evaluate_directory(model, task, settings, count=count)
    return sum(evaluation.summary.exact_match.value for evaluation in found) / len(found)


def _measured(
    front: Front, opened: SensitivityInputs, output: Path, score: tuple[Scored, Score], progress: Progress
) -> Front:
    """The front with what packages of its points score."""
    what, measured = score
    total, points = len(front.points) + 1, []
    progress("float32", 0, total)
    reference = measured(opened.directory)
    for done, point in enumerate(front.points, 1):
        progress(point.name, done, total)
        with scratch_directory(output, ".package-") as work:
            package = work / "package"
            build(open_request(opened.directory, opened.target_name, str(output / point.recipe), package))
            points.append(point.model_copy(update={"measured": measured(package)}))
    progress("", total, total)
    return front.model_copy(update={"score": what, "reference": reference, "points": tuple(points)})
