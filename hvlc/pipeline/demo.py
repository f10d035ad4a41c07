"""The demonstration: build the shipped checkpoint twice, ask it questions, measure what quantization cost."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hvlc.evaluation.tasks import open_task
from hvlc.manifest import Manifest
from hvlc.pipeline.build import build, is_current
from hvlc.pipeline.evaluate import Progress, Setting, against, evaluate_directory, write_report
from hvlc.pipeline.request import BuildRequest
from hvlc.pipeline.request import Progress as BuildProgress
from hvlc.report.markdown import comparison_markdown
from hvlc.results import Evaluation, write_whole
from hvlc.zoo import nano_checkpoint

#: Recipes, and the samples of their calibration: hypervl-nano's documents have few tokens, so it takes many.
RECIPES = {"float32": None, "w4a16": 512}
ENCODERS = ("base", "large")
TARGET = "cpu"


@dataclass(frozen=True)
class Asked:
    """A question of the demonstration and what the quantized package said."""

    question: str
    expected: str
    answer: str


def build_packages(output: Path, progress: Callable[[str], BuildProgress]) -> dict[str, Path]:
    """Build every recipe of the demonstration, or find it built from the same inputs.

    Args:
        output: directory of the packages.
        progress: gives the stage callback of a recipe.
    """
    packages = {}
    for recipe, samples in RECIPES.items():
        request = BuildRequest(nano_checkpoint(), TARGET, recipe, output / recipe, force=True, samples=samples)
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


def measure(output: Path, packages: dict[str, Path], count: int, progress: Progress) -> list[Evaluation]:
    """Evaluate both packages with both encoders, float32 also without compressor; write report.html and report.md."""
    task = open_task("documents", count)
    store = output / "evaluations"
    store.mkdir(exist_ok=True)
    with_vrc = [Setting(encoder, True) for encoder in ENCODERS]
    full_size = [Setting(encoder, False) for encoder in ENCODERS]
    float32 = evaluate_directory(
        packages["float32"], task, full_size + with_vrc, store=store, reuse=True, progress=progress
    )
    quantized = evaluate_directory(packages["w4a16"], task, with_vrc, store=store, reuse=True, progress=progress)
    evaluations = float32 + against(quantized, float32)
    manifest = Manifest.load(packages["w4a16"])
    facts = {
        "checkpoint": manifest.sources.checkpoint[:16],
        "target": manifest.sources.target_name,
        "bits per decoder weight": f"{manifest.bits_per_decoder_weight:.2f}",
        **{tool: manifest.sources.versions[tool] for tool in ("onnxruntime", "onnxruntime-genai")},
    }
    write_report(output / "report.html", evaluations, task, "hypervl-nano: float32 and W4A16", facts)
    write_whole(output / "report.md", [comparison_markdown(evaluations), "\n"])
    return evaluations
