"""Processors of vision-language checkpoints for images and text, on Pillow, whatever they need for videos."""

from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    Lfm2VlProcessor,
    ProcessorMixin,
    SmolVLMProcessor,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from hvlc.models import lfm2_vl, smolvlm


def load_processor(directory: Path) -> Any:
    """transformers' processor of a checkpoint; its filters are Pillow's, which the model saw in training.

    A processor with a part for videos is made without that part, which needs torchvision.

    Args:
        directory: of the checkpoint.
    """
    settings, _ = ProcessorMixin.get_processor_dict(directory)
    kind = getattr(transformers, str(settings.get("processor_class") or _class_of(directory)), None)
    if kind is SmolVLMProcessor:  # refuses to be made without num2words
        return smolvlm.load_processor(directory)
    if kind is Lfm2VlProcessor:  # has an image processor on torchvision alone
        return lfm2_vl.load_processor(directory)
    if kind is None or "video_processor" not in kind.get_attributes():
        return AutoProcessor.from_pretrained(directory, backend="pil")
    images = AutoImageProcessor.from_pretrained(directory, backend="pil")
    parts = [images, AutoTokenizer.from_pretrained(directory), None]
    return _without_video(kind).from_args_and_dict(parts, settings)


def _class_of(directory: Path) -> str | None:
    """The class of a model's processors; not all checkpoints name it beside their tokenizer."""
    return PROCESSOR_MAPPING_NAMES.get(AutoConfig.from_pretrained(directory).model_type)


def _without_video(kind: Any) -> Any:
    """A class of processors whose part for videos may be None."""

    def check(self: Any, name: str, argument: Any) -> Any:
        return None if argument is None else kind.check_argument_for_proper_class(self, name, argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})
