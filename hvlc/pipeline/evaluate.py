"""Evaluation of packages and checkpoints on a task."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hvlc.checkpoint import read_json
from hvlc.errors import UserError
from hvlc.evaluation.answerer import Answerer
from hvlc.evaluation.compare import with_agreement
from hvlc.evaluation.evaluate import evaluate
from hvlc.evaluation.task import Task
from hvlc.manifest import MANIFEST, Kind, Manifest
from hvlc.pipeline.build import require_compile
from hvlc.pipeline.request import source_digest
from hvlc.report.page import write_page
from hvlc.results import Evaluation, read_evaluation, write_evaluation

#: Called with a label, the number of answered examples and the number of all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setting:
    """How to ask: which encoder, with or without the resolution compressor."""

    encoder: str
    vrc: bool


def open_answerer(directory: Path, name: str) -> Answerer:
    """A package through onnxruntime, or a checkpoint through transformers.

    Raises:
        UserError: the directory is neither, or it cannot see.
    """
    if _is_package(directory):
        from hvlc.runtime.generation import VisionLanguageModel

        return VisionLanguageModel(directory, name=name)
    require_compile("a checkpoint's answers")
    from hvlc.models.hypervl.reference import Reference

    return Reference(directory, name)


def _is_package(directory: Path) -> bool:
    """Whether this is a package, else a checkpoint.

    Raises:
        UserError: it is neither, or it cannot see, and the task asks about images.
    """
    if (directory / MANIFEST).is_file():
        kind = Manifest.load(directory).kind
        if kind is not Kind.VISION_LANGUAGE:
            cause = f"{directory} is a {kind} package, and the task asks about images"
            fix = "give a .txt file as --task" if kind is Kind.LANGUAGE else "name a vision-language package"
            raise UserError("eval.kind", cause, fix)
        return True
    if not (directory / "config.json").is_file():
        raise UserError("eval.model", f"{directory} is neither a package nor a checkpoint", "name one of the two")
    config = read_json(directory / "config.json", "checkpoint.config")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != "hypervl":
        cause = f"{directory} is a checkpoint of model_type {model_type!r}, and the task asks about images"
        raise UserError(
            "eval.kind", cause, "name a hypervl checkpoint or a vision-language package, or give a .txt task"
        )
    return False


def encoders_of(directory: Path) -> tuple[str, ...]:
    """The vision encoders of a package or checkpoint.

    Raises:
        UserError: it is neither, or it cannot see.
    """
    if _is_package(directory):
        return tuple(Manifest.load(directory).encoders)
    require_compile("a checkpoint's answers")
    from hvlc.models.hypervl.configuration import BRANCHES

    return BRANCHES


def evaluate_directory(
    directory: Path,
    task: Task,
    settings: Sequence[Setting],
    *,
    count: int | None = None,
    store: Path | None = None,
    reuse: bool = False,
    name: str | None = None,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Evaluate a package or checkpoint under several settings.

    Args:
        directory: what to evaluate.
        task: the questions.
        settings: how to ask, one evaluation each.
        count: examples per setting, all when None.
        store: directory to write the evaluations to.
        reuse: read an evaluation back from `store` when it is of the same package, task and setting.
        name: label in reports; the directory's name when None.
        progress: told after each example.
    """
    manifest = Manifest.load(directory) if _is_package(directory) else None
    provenance = {"package": source_digest(manifest)} if manifest else {"checkpoint": _checkpoint_digest(directory)}
    size = manifest.total_bytes if manifest else None
    label = name or directory.resolve().name
    answerer: Answerer | None = None
    found = []
    for setting in settings:
        wanted = count or len(task)
        file = store / _file_name(label, setting) if store else None
        stored = _stored(file, provenance, task.name, setting, wanted) if reuse else None
        if stored is None:
            answerer = answerer or open_answerer(directory, label)
            run = f"{label} · {setting.encoder}{' · VRC' if setting.vrc else ''}"
            stored = evaluate(
                answerer,
                task,
                encoder=setting.encoder,
                vrc=setting.vrc,
                count=count,
                size_bytes=size,
                provenance=provenance,
                progress=partial(progress, run) if progress else None,
            )
            if file:
                write_evaluation(file, stored)
        found.append(stored)
    return found


def _file_name(label: str, setting: Setting) -> str:
    """A plain file name for an evaluation."""
    plain = re.sub(r"[^\w.-]+", "-", label).strip("-")
    return f"{plain}-{setting.encoder}{'-vrc' if setting.vrc else ''}.json"


def _checkpoint_digest(directory: Path) -> str:
    from hvlc.checkpoint import Checkpoint

    return Checkpoint.open(directory).digest


def _stored(
    file: Path | None, provenance: dict[str, str], task: str, setting: Setting, count: int
) -> Evaluation | None:
    """An earlier evaluation of exactly this, or None."""
    if file is None or not file.is_file():
        return None
    try:
        earlier = read_evaluation(file)
    except UserError:
        return None
    same = earlier.provenance == provenance and earlier.task == task and earlier.summary.n == count
    return earlier if same and (earlier.encoder, earlier.vrc) == (setting.encoder, setting.vrc) else None


def against(evaluations: Sequence[Evaluation], references: Sequence[Evaluation]) -> list[Evaluation]:
    """Each evaluation with its agreement to the reference of the same setting, where there is one."""
    by_setting = {(r.encoder, r.vrc): r for r in references}
    return [
        with_agreement(e, by_setting[e.encoder, e.vrc]) if (e.encoder, e.vrc) in by_setting else e for e in evaluations
    ]


def write_report(path: Path, evaluations: Sequence[Evaluation], task: Task, title: str, facts: dict[str, str]) -> None:
    """The HTML page of evaluations of one task."""
    write_page(path, evaluations, lambda index: task.example(index).images[0], title=title, facts=facts)
