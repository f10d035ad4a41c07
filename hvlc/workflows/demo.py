"""The demonstration: build the shipped checkpoint by three recipes, ask it questions, measure what they cost."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hvlc.errors import Progress
from hvlc.evaluation.tasks import open_task
from hvlc.results import Evaluation
from hvlc.workflows.build.build import build, is_current
from hvlc.workflows.build.request import open_request
from hvlc.workflows.evaluate.compare import (
    ComparisonResult,
    EvaluationRequest,
    compare_models,
    open_models,
    write_comparison,
)
from hvlc.workflows.evaluate.evaluate import Setting, evaluate_directory, write_reports
from hvlc.workflows.evaluate.evaluation_store import Store
from hvlc.zoo import nano_checkpoint

#: Recipes, and the samples of their calibration: hypervl-nano's documents have few tokens, so it takes many.
RECIPES = {"float32": None, "w4a16-rtn": None, "w4a16": 512}
ENCODERS = ("base", "large")
TARGET = "cpu"
_EVALUATIONS = "evaluations"


@dataclass(frozen=True)
class Asked:
    """A question of the demonstration and what the quantized package said."""

    question: str
    expected: str
    answer: str


def build_packages(output: Path, progress: Callable[[str], Progress]) -> dict[str, Path]:
    """Build every recipe of the demonstration, or find it built from the same inputs.

    Args:
        output: directory of the packages.
        progress: gives the stage callback of a recipe.
    """
    packages = {}
    for recipe, samples in RECIPES.items():
        request = open_request(nano_checkpoint(), TARGET, recipe, output / recipe, force=True, samples=samples)
        if not is_current(request):
            build(request, progress(recipe))
        packages[recipe] = request.output
    return packages


def ask(package: Path, count: int) -> Iterator[Asked]:
    """Ask the first held-out questions."""
    from hvlc.runtime.generation import VisionLanguageModel

    model, task = VisionLanguageModel(package), open_task("documents")
    for index in range(count):
        example = task.example(index)
        answered = model.answer(example.question, example.images, encoder="auto", vrc=True, max_new_tokens=32)
        yield Asked(example.question, example.answers[0], answered.text)


def measure_resolutions(output: Path, package: Path, count: int, progress: Progress) -> list[Evaluation]:
    """Evaluate a package with both encoders, at full size and compressed; write report.html and report.md."""
    task = open_task("documents", count)
    settings = [Setting(encoder, vrc) for vrc in (False, True) for encoder in ENCODERS]
    with Store(output / _EVALUATIONS) as store:
        found = evaluate_directory(package, task, settings, count=count, store=store, reuse=True, progress=progress)
    write_reports(output, found, task, f"hypervl-nano in {package.name}: encoders and resolutions")
    return found


def compare_recipes(output: Path, packages: Mapping[str, Path], count: int, progress: Progress) -> ComparisonResult:
    """Compare the packages with the first; write comparison.html, .md and .json."""
    opened = open_models(list(packages.values()))
    compared = compare_models(opened, EvaluationRequest(count=count), work=output / _EVALUATIONS, progress=progress)
    write_comparison(output, compared, f"hypervl-nano: {', '.join(packages)}")
    return compared
