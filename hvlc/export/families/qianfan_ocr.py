"""Qianfan-OCR: InternVL's architecture; the tower's layers and the text for an image are named otherwise."""

from transformers import QianfanOCRConfig

from hvlc.export.families import internvl
from hvlc.export.internvl_names import with_transformers_names
from hvlc.export.vision_language import vision_language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint

LEFT_OUT = internvl.LEFT_OUT
_LAYERS = "layers"
FAMILY = internvl.family(QianfanOCRConfig, layers=_LAYERS, placeholder="<image>")


def read(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the names of transformers' modules: it is saved with the original ones."""
    return with_transformers_names(checkpoint, _LAYERS)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Qianfan-OCR checkpoint; see `vision_language_bundle`."""
    return vision_language_bundle(checkpoint, FAMILY)
