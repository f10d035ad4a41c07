"""HyperVL (arXiv 2512.14052) as a transformers model.

Importing this package registers the classes with transformers' Auto classes, so that
`AutoModelForImageTextToText.from_pretrained` and `AutoProcessor.from_pretrained` find them.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from hvlc.models.hypervl.assembling import assemble
from hvlc.models.hypervl.configuration import HyperVLConfig, HyperVLResolutionConfig, paper_config
from hvlc.models.hypervl.modeling import (
    HyperVLForConditionalGeneration,
    HyperVLModel,
    HyperVLResolutionCompressor,
)
from hvlc.models.hypervl.processing import HyperVLImageProcessor, HyperVLProcessor

AutoConfig.register("hypervl", HyperVLConfig, exist_ok=True)
AutoModel.register(HyperVLConfig, HyperVLModel, exist_ok=True)
AutoModelForImageTextToText.register(HyperVLConfig, HyperVLForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(HyperVLConfig, HyperVLImageProcessor, exist_ok=True)
AutoProcessor.register(HyperVLConfig, HyperVLProcessor, exist_ok=True)

__all__ = [
    "HyperVLConfig",
    "HyperVLForConditionalGeneration",
    "HyperVLImageProcessor",
    "HyperVLModel",
    "HyperVLProcessor",
    "HyperVLResolutionCompressor",
    "HyperVLResolutionConfig",
    "assemble",
    "paper_config",
]
