"""Bounds of a HyperVL's configuration."""

from typing import Annotated

from pydantic import Field

from hvlc.models.numbers import Epsilon, LanguageNumbers, Numbers, Share, Token, TowerNumbers, Width


class ResolutionNumbers(Numbers):
    """The Visual Resolution Compressor."""

    proxy_size: Annotated[int, Field(ge=32, le=4096)] | None = None
    depth_multiplier: Annotated[float, Field(gt=0, le=16)] | None = None
    hidden_size: Width | None = None
    min_scale: Share | None = None
    scale_step: Share | None = None
    layer_norm_eps: Epsilon | None = None


class HyperVLNumbers(Numbers):
    """All of a HyperVL's configuration."""

    base_vision_config: TowerNumbers | None = None
    large_vision_config: TowerNumbers | None = None
    text_config: LanguageNumbers | None = None
    resolution_config: ResolutionNumbers | None = None
    shuffle_factor: Annotated[int, Field(ge=1, le=64)] | None = None
    projector_hidden_act: str | None = None
    image_token_id: Token | None = None
    row_token_id: Token | None = None
    vision_start_token_id: Token | None = None
    vision_end_token_id: Token | None = None
    max_visual_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    default_branch: str | None = None
    tie_word_embeddings: bool | None = None
