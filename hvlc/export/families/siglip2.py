"""SigLIP2 for any grid (NaFlex): the vision tower on a square grid; the text tower is left out."""

from transformers import Siglip2Config

from hvlc.export.vision import vision_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint

#: The text tower, and what compares it with the vision tower.
LEFT_OUT = ("text_model.", "logit_scale", "logit_bias")


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of the vision tower; see `vision_bundle`."""
    return vision_bundle(checkpoint, Siglip2Config)
