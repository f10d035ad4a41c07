"""hvlc compiles small vision-language models into onnxruntime-genai packages for phones.

    import hvlc

    made = hvlc.build("checkpoint", "my-package", recipe="w4a16")
    answer = hvlc.open("my-package").ask("What is the total?", images=["receipt.png"])
    chat = hvlc.open("my-package").chat(images=["receipt.png"])  # chat.ask(...) after chat.ask(...), one encoding
    found = hvlc.evaluate("my-package", task="mine.jsonl", reference="checkpoint")

These are the functions of the command line. Nothing heavy is imported before one is called.
"""

from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvlc.results.build import BuildResult
    from hvlc.workflows.evaluate.evaluate import EvaluationResult
    from hvlc.workflows.package import Package

__version__ = "0.1.0"
__all__ = ["__version__", "build", "evaluate", "open"]

Place = str | PathLike[str]


def build(
    checkpoint: Place | None, output: Place, *, recipe: Place = "w4a16", target: Place = "cpu", **options: Any
) -> "BuildResult":
    """Build a package.

    Args:
        checkpoint: a directory, a GGUF file, or an id on the Hugging Face hub. None: the shipped hypervl-nano.
        output: directory to write.
        recipe: name of a recipe, or a YAML file.
        target: name of a target, or a TOML file.
        **options: further fields of `hvlc.workflows.build.request.BuildRequest`, such as `force` or `calibration`.

    Returns:
        The package's directory and manifest, the plan, and what the build took.

    Raises:
        HvlcError: whatever would stop `hvlc build`, all of it at once.
    """
    from pathlib import Path

    from hvlc.workflows.build.build import build as run
    from hvlc.workflows.build.request import open_request
    from hvlc.zoo import nano_checkpoint

    source = nano_checkpoint() if checkpoint is None else Path(checkpoint)
    return run(open_request(source, fspath(target), fspath(recipe), Path(output), **options))


def open(package: Place, **settings: Any) -> "Package":
    """Open a package that answers, its files verified.

    Args:
        package: directory that `build` wrote.
        **settings: fields of `hvlc.runtime.settings.VisionSettings`, such as `tile_batch` or `feature_cache`.

    Raises:
        HvlcError: it is not a package that answers, or a file was changed.
    """
    from pathlib import Path

    from hvlc.runtime.settings import VisionSettings
    from hvlc.workflows.package import Package

    return Package.open(Path(package), VisionSettings(**settings))


def evaluate(
    model: Place,
    *,
    task: Place = "documents",
    reference: Place | None = None,
    encoders: Sequence[str] = (),
    count: int | None = None,
    **options: Any,
) -> "EvaluationResult":
    """Measure a package or checkpoint on questions.

    Args:
        model: a package or a checkpoint.
        task: "documents" (held-out documents of the shipped model), or a JSON Lines file.
        reference: a package or checkpoint to agree with. None: scores alone.
        encoders: vision encoders to ask with; the model's own when empty.
        count: questions. None: all.
        **options: further arguments of `hvlc.workflows.evaluate.evaluate.evaluate_questions`, such as `vrc`.

    Returns:
        The evaluations of the model, one for each encoder, and those of the reference.

    Raises:
        HvlcError: whatever would stop `hvlc eval`.
    """
    from pathlib import Path

    from hvlc.evaluation.tasks import open_task
    from hvlc.workflows.evaluate.evaluate import evaluate_questions

    other = None if reference is None else Path(reference)
    questions = open_task(fspath(task), count)
    return evaluate_questions(Path(model), questions, reference=other, encoders=encoders, count=count, **options)
