"""SigLIP2's vision tower alone, for the square grid of patches that its positions were learned for."""

from transformers import Siglip2VisionConfig

from hvlc.export.vision import vision_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of the vision tower; see `vision_bundle`."""
    return vision_bundle(checkpoint, Siglip2VisionConfig)
