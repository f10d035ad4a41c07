"""Gemma 3: SigLIP over one image of one size, averaged squares of patches, a Gemma that sees an image as a block."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from transformers import Gemma3Config

from hvlc.errors import Collector, UserError
from hvlc.export import siglip
from hvlc.export.decoder.parts import one_more
from hvlc.export.families.gemma3_text import FAMILY as GEMMA3
from hvlc.export.image_rules import fixed_image
from hvlc.export.vision_language import Encoder, Names, VisionLanguageFamily, vision_language_bundle
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle
from hvlc.models.modules import Modules
from hvlc.models.numbers import BlockNumbers
from hvlc.weights.checkpoint import Checkpoint

_ONE = np.ones(1, np.float32)
_CONNECTOR, _TEXT = "multi_modal_projector.", "language_model"
#: Names inside the model as transformers 5 has them, and names of saved checkpoints, whose tower may have a prefix.
NAMES = (
    Names("model.vision_tower.vision_model.", f"model.{_CONNECTOR}", f"model.{_TEXT}"),
    Names("model.vision_tower.", f"model.{_CONNECTOR}", f"model.{_TEXT}"),
    Names("vision_tower.vision_model.", _CONNECTOR, f"{_TEXT}.model", f"{_TEXT}.lm_head.weight"),
    Names("vision_tower.", _CONNECTOR, f"{_TEXT}.model", f"{_TEXT}.lm_head.weight"),
)


def _check(config: Any, found: Collector) -> None:
    """The patches of an image are a whole number of squares that are averaged."""
    vision, count = config.vision_config, config.mm_tokens_per_image
    with found:
        siglip.check_tower(vision)
        side, cells = siglip.patches_per_side(vision), math.isqrt(count)
        if cells**2 != count or side % cells:
            cause = f"config.json: {side} patches a side do not become mm_tokens_per_image {count} by whole squares"
            raise UserError("checkpoint.config", cause, "correct it")
    found.raise_all()  # what comes next computes with these sizes


def _tower(b: GraphBuilder, pixels: ir.Value, encoder: Encoder) -> ir.Value:
    return siglip.tower(b, pixels, encoder.tower, encoder.config)


def _connector(b: GraphBuilder, features: ir.Value, encoder: Encoder, config: Any) -> ir.Value:
    """Mean of each square of patches, a norm, a product, and the mark of a visual token."""
    width, hidden = encoder.config.hidden_size, config.text_config.hidden_size
    side, cells = siglip.patches_per_side(encoder.config), math.isqrt(config.mm_tokens_per_image)
    planes = b.op("Transpose", features, perm=[0, 2, 1])
    planes = b.op("Reshape", planes, b.ints(-1, width, side, side))
    square = [side // cells] * 2
    x = b.op("AveragePool", planes, kernel_shape=square, strides=square, name=f"{encoder.connector}avg_pool")
    x = b.op("Transpose", b.op("Reshape", x, b.ints(-1, width, cells * cells)), perm=[0, 2, 1])
    norm, product = f"{encoder.connector}mm_soft_emb_norm", f"{encoder.connector}mm_input_projection"
    gain = b.initializer(f"{norm}.weight", one_more(b.parameter(f"{norm}.weight", (width,))))
    x = b.op("RMSNormalization", x, gain, axis=-1, epsilon=encoder.config.layer_norm_eps, name=norm)
    x = b.op("MatMul", x, b.weight(f"{product}_weight", (width, hidden)), name=product)
    marks = b.op("Expand", b.constant(_ONE), b.op("Concat", b.op("Shape", x, start=0, end=2), b.ints(1), axis=0))
    return b.op("Concat", x, marks, axis=-1, name=f"{encoder.connector}marked")


FAMILY = VisionLanguageFamily(
    config=Gemma3Config,
    numbers=BlockNumbers,
    modules=Modules("model.vision_tower", "model.multi_modal_projector", "model.language_model", marks=True),
    names=NAMES,
    rule=fixed_image,
    tower=_tower,
    connector=_connector,
    decoders={"gemma3_text": GEMMA3},
    check=_check,
    image_blocks=True,
)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Gemma 3 checkpoint; see `vision_language_bundle`."""
    return vision_language_bundle(checkpoint, FAMILY)
