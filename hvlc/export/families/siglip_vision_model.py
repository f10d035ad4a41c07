"""SigLIP's vision tower alone."""

from transformers import SiglipVisionConfig

from hvlc.export.vision import vision_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of the vision tower; see `vision_bundle`."""
    return vision_bundle(checkpoint, SiglipVisionConfig)
