"""Names of the modules of transformers' vision-language models whose values are traced."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Modules:
    """Dotted names of a vision-language model's modules, `{encoder}` standing for a vision encoder's name.

    Attributes:
        tower: the vision tower.
        connector: makes visual tokens of features.
        decoder: the text model.
        embeddings: of patches, inside the tower. "": they are what enters the first layer.
        layers: of the tower, inside it.
        norm: after the last layer, inside the tower; an identity counts as none.
        marks: whether the decoder reads which tokens are visual, in one more channel of its embeddings.
        taps: list of modules that make features for first layers of the decoder (DeepStack). "": there are none.
    """

    tower: str
    connector: str
    decoder: str
    embeddings: str = "embeddings"
    layers: str = "encoder.layers"
    norm: str = "post_layernorm"
    taps: str = ""
    marks: bool = False
