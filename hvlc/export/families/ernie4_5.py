"""ERNIE 4.5, dense: neighbouring channels of a head rotate together; one switch for the biases of all projections."""

from transformers import Ernie4_5Config
from transformers.models.ernie4_5.modeling_ernie4_5 import Ernie4_5RotaryEmbedding

from hvlc.export.language import PROJECTIONS, Family, language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint


def _biases(config: Ernie4_5Config) -> frozenset[str]:
    return frozenset(PROJECTIONS) if config.use_bias else frozenset()


FAMILY = Family(Ernie4_5Config, Ernie4_5RotaryEmbedding, _biases, neighbours=True)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of an ERNIE 4.5 checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
