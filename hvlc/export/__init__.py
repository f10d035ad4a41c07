"""Checkpoint to bundle: one entry over all model families."""

import importlib
import pkgutil
from typing import Any

from optimum.exporters.tasks import TasksManager

from hvlc.errors import UserError, nearest
from hvlc.export import families
from hvlc.export.coverage import check_architecture, check_coverage
from hvlc.export.vision_language import VisionLanguageFamily
from hvlc.graphs.bundle import Bundle
from hvlc.graphs.facts import Kind
from hvlc.weights.checkpoint import RESOLUTION_COMPRESSOR, Checkpoint
from hvlc.weights.prequantized.settings import read_quantization

_TASKS = {
    Kind.VISION_LANGUAGE: "image-text-to-text",
    Kind.LANGUAGE: "text-generation",
    Kind.VISION: "image-feature-extraction",
}


def known_families() -> list[str]:
    """The model_types that can be exported."""
    return sorted(module.name for module in pkgutil.iter_modules(families.__path__))


def vision_language_family(model_type: str) -> VisionLanguageFamily | None:
    """The record of a vision-language family. None: the model_type is of another kind, or not known."""
    if model_type not in known_families():
        return None
    found = getattr(importlib.import_module(f"hvlc.export.families.{model_type}"), "FAMILY", None)
    return found if isinstance(found, VisionLanguageFamily) else None


def export_bundle(checkpoint: Checkpoint) -> Bundle:
    """Export a checkpoint through the family of its model_type.

    Raises:
        UserError: no family exports this model_type, or the checkpoint is damaged, quantized, of another task, or
            holds tensors that no graph reads.
    """
    if checkpoint.model_type not in known_families():
        raise UserError(
            "checkpoint.model_type",
            f"no family exports model_type {checkpoint.model_type!r}",
            nearest(checkpoint.model_type, known_families()),
        )
    read_quantization(checkpoint)  # a quantization that nobody reads is refused before anything is built
    family = importlib.import_module(f"hvlc.export.families.{checkpoint.model_type}")
    if hasattr(family, "read"):
        checkpoint = family.read(checkpoint)
    bundle: Bundle = family.export(checkpoint)
    kind = bundle.facts.kind
    _check_task(checkpoint.model_type, kind)
    check_architecture(checkpoint, kind)
    if not checkpoint.problems:  # a parameter of another shape counts as unread
        check_coverage(checkpoint, bundle, (*getattr(family, "LEFT_OUT", ()), *_replaced(checkpoint, family)))
    bundle.check_wires()
    return bundle


def _replaced(checkpoint: Checkpoint, module: Any) -> tuple[str, ...]:
    """Parameters of a family's own compressor, where another one has joined the checkpoint."""
    compressor = getattr(getattr(module, "FAMILY", None), "compressor", None)
    return (compressor.parameters,) if compressor is not None and RESOLUTION_COMPRESSOR in checkpoint.config else ()


def _check_task(model_type: str, kind: Kind) -> None:
    """Hold the registration together: optimum's loading class for the task must know this model_type."""
    loader = TasksManager.get_model_class_for_task(_TASKS[kind])
    # Going through the mapping itself would import the configuration of every model in transformers: 2 s.
    known = loader._model_mapping
    registered = {*known._model_mapping, *(config.model_type for config in known._extra_content)}
    if model_type not in registered:
        raise UserError(
            "checkpoint.model_type", f"{loader.__name__} does not know {model_type!r}", "register the model class"
        )
