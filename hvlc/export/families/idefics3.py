"""Idefics3, SmolVLM's first version and Granite-Docling: the graphs of SmolVLM."""

from transformers import Idefics3Config

from hvlc.export.families.smolvlm import family
from hvlc.export.vision_language import vision_language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint

FAMILY = family(Idefics3Config)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of an Idefics3 checkpoint; see `vision_language_bundle`."""
    return vision_language_bundle(checkpoint, FAMILY)
