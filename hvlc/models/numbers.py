"""Bounds of every number in a configuration: what is divided by, indexed with, multiplied or counted to.

Configurations are held against these before transformers reads them, whose classes fill in defaults and build lists as
long as a model has layers. The upper bounds are far above any model that runs on a phone. A key that is absent has
transformers' default; one that is not listed here is read by nobody, or refused elsewhere.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hvlc.errors import HvlcError, UserError, raise_all

_SHOWN = 60  # characters of a value
_TOKEN = 1 << 22  # most tokens of a vocabulary

Width = Annotated[int, Field(ge=1, le=1 << 17)]
Layers = Annotated[int, Field(ge=1, le=256)]
Heads = Annotated[int, Field(ge=1, le=4096)]
Pixels = Annotated[int, Field(ge=1, le=1 << 14)]
PlainWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$")]
Pieces = Annotated[int, Field(ge=1, le=256)]
Area = Annotated[int, Field(ge=1, le=1 << 28)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e30)]
Positions = Annotated[int, Field(ge=1, le=1 << 40)]
Token = Annotated[int, Field(ge=0, lt=_TOKEN)]


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _tokens(value: Any) -> Any:
    """Refuse what is neither a token, -1 for none, nor a list of tokens."""
    if not all(_whole(token, -1, _TOKEN) for token in (value if isinstance(value, list) else [value])):
        raise ValueError("expected is a token's id or a list of ids")
    return value


def _side(value: Any) -> Any:
    """Refuse what is neither a number of pixels nor a pair of them."""
    sides = value if isinstance(value, list) else [value]
    if len(sides) not in (1, 2) or not all(_whole(side, 1, 1 << 14) for side in sides):
        raise ValueError("expected is a whole number of pixels from 1 to 16384, or a pair of them")
    return value


Factors = Annotated[list[Positive], Field(max_length=1024)]
Tokens = Annotated[Any, AfterValidator(_tokens)]
Side = Annotated[Any, AfterValidator(_side)]


class Numbers(BaseModel):
    """A configuration's numbers; other keys are left alone."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class RopeNumbers(Numbers):
    """Rotary settings, whatever `rope_type` they are of."""

    rope_theta: Positive | None = None
    factor: Positive | None = None
    attention_factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Positions | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    partial_rotary_factor: Share | None = None
    rope_type: str | None = None
    type: str | None = None
    truncate: bool | None = None
    llama_4_scaling_beta: Annotated[float, Field(ge=0, le=1e30)] | None = None
    short_factor: Factors | None = None
    long_factor: Factors | None = None
    full_attention: "RopeNumbers | None" = None
    sliding_attention: "RopeNumbers | None" = None

    @model_validator(mode="after")
    def _frequencies_are_a_range(self) -> Self:
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            raise ValueError(f"low_freq_factor {low} is not below high_freq_factor {high}")
        return self


class LanguageNumbers(Numbers):
    """Text decoders."""

    num_hidden_layers: Layers | None = None
    hidden_size: Width | None = None
    intermediate_size: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    num_attention_heads: Heads | None = None
    num_key_value_heads: Heads | None = None
    head_dim: Annotated[int, Field(ge=1, le=1024)] | None = None
    vocab_size: Annotated[int, Field(ge=1, le=_TOKEN)] | None = None
    max_position_embeddings: Positions | None = None
    rms_norm_eps: Epsilon | None = None
    norm_eps: Epsilon | None = None
    hidden_act: str | None = None
    hidden_activation: str | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    use_bias: bool | None = None
    embedding_multiplier: Positive | None = None
    residual_multiplier: Positive | None = None
    attention_multiplier: Positive | None = None
    query_pre_attn_scalar: Positive | None = None
    logits_scaling: Positive | None = None
    original_max_position_embeddings: Positions | None = None
    tie_word_embeddings: bool | None = None
    use_sliding_window: bool | None = None
    sliding_window: Annotated[int, Field(ge=0, le=1 << 40)] | None = None
    sliding_window_pattern: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    max_window_layers: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    layer_types: Annotated[list[str], Field(max_length=4096)] | None = None
    no_rope_layers: Annotated[list[Annotated[int, Field(ge=0, le=1)]], Field(max_length=4096)] | None = None
    no_rope_layer_interval: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    rope_theta: Positive | None = None
    rope_local_base_freq: Positive | None = None
    partial_rotary_factor: Share | None = None
    rope_parameters: RopeNumbers | None = None
    rope_scaling: RopeNumbers | None = None
    convolved: Annotated[int, Field(ge=2, le=64)] | None = Field(None, alias="conv_L_cache")
    conv_bias: bool | None = None
    block_auto_adjust_ff_dim: bool | None = None
    block_ffn_dim_multiplier: Positive | None = None
    block_multiple_of: Annotated[int, Field(ge=1, le=1 << 17)] | None = None
    block_ff_dim: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    full_attn_idxs: Annotated[list[Annotated[int, Field(ge=0, le=4096)]], Field(max_length=4096)] | None = None
    bos_token_id: Tokens | None = None
    eos_token_id: Tokens | None = None
    pad_token_id: Tokens | None = None


class TowerNumbers(Numbers):
    """Vision towers."""

    num_hidden_layers: Layers | None = None
    hidden_size: Width | None = None
    intermediate_size: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    num_attention_heads: Heads | None = None
    num_channels: Annotated[int, Field(ge=1, le=64)] | None = None
    image_size: Side | None = None
    patch_size: Side | None = None
    num_patches: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    layer_norm_eps: Epsilon | None = None
    hidden_act: str | None = None
    vision_use_head: bool | None = None


class TwoTowerNumbers(TowerNumbers):
    """A vision tower, alone or beside a text tower."""

    vision_config: TowerNumbers | None = None


class SizeNumbers(Numbers):
    """A size of an image processor."""

    height: Pixels | None = None
    width: Pixels | None = None
    longest_edge: Area | None = None
    shortest_edge: Area | None = None


class VisionLanguageNumbers(Numbers):
    """Vision-language models: what public families have in common."""

    vision_config: TowerNumbers | None = None
    text_config: LanguageNumbers | None = None
    vision_encoders: Annotated[dict[PlainWord, TowerNumbers], Field(max_length=8)] | None = None
    scale_factor: Annotated[int, Field(ge=1, le=64)] | None = None
    downsample_ratio: Share | None = None
    min_dynamic_patch: Pieces | None = None
    max_dynamic_patch: Pieces | None = None
    downsample_factor: Annotated[int, Field(ge=1, le=64)] | None = None
    projector_hidden_size: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    projector_use_layernorm: bool | None = None
    projector_bias: bool | None = None
    projector_hidden_act: str | None = None
    image_token_id: Token | None = None
    tie_word_embeddings: bool | None = None


class BlockNumbers(VisionLanguageNumbers):
    """Models whose image is a fixed number of visual tokens (Gemma 3)."""

    mm_tokens_per_image: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    boi_token_index: Token | None = None
    eoi_token_index: Token | None = None
    image_token_index: Token | None = None


class GridTowerNumbers(Numbers):
    """Vision towers over an image's own grid of patches; Qwen2-VL's `hidden_size` is the width of visual tokens."""

    depth: Layers | None = None
    embed_dim: Width | None = None
    hidden_size: Width | None = None
    out_hidden_size: Width | None = None
    intermediate_size: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] | None = None
    num_heads: Heads | None = None
    in_channels: Annotated[int, Field(ge=1, le=64)] | None = None
    patch_size: Side | None = None
    temporal_patch_size: Side | None = None
    spatial_merge_size: Annotated[int, Field(ge=1, le=64)] | None = None
    window_size: Pixels | None = None
    fullatt_block_indexes: Annotated[list[Annotated[int, Field(ge=0, le=256)]], Field(max_length=256)] | None = None
    deepstack_visual_indexes: Annotated[list[Annotated[int, Field(ge=0, le=256)]], Field(max_length=256)] | None = None
    num_position_embeddings: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    hidden_act: str | None = None
    rope_parameters: RopeNumbers | None = None


class GridNumbers(Numbers):
    """Vision-language models with such a tower."""

    vision_config: GridTowerNumbers | None = None
    text_config: LanguageNumbers | None = None
    image_token_id: Token | None = None
    video_token_id: Token | None = None
    vision_start_token_id: Token | None = None
    vision_end_token_id: Token | None = None
    tie_word_embeddings: bool | None = None


class PixtralTowerNumbers(TowerNumbers):
    """Pixtral's vision tower."""

    rope_theta: Positive | None = None
    rope_parameters: RopeNumbers | None = None


class PixtralNumbers(Numbers):
    """Vision-language models with such a tower."""

    vision_config: PixtralTowerNumbers | None = None
    text_config: LanguageNumbers | None = None
    spatial_merge_size: Annotated[int, Field(ge=1, le=64)] | None = None
    projector_hidden_act: str | None = None
    multimodal_projector_bias: bool | None = None
    image_token_id: Token | None = None
    image_token_index: Token | None = None
    tie_word_embeddings: bool | None = None


class ProcessorNumbers(Numbers):
    """Image processors; means and deviations are for values from 0 to 1."""

    do_normalize: bool | None = None
    do_rescale: bool | None = None
    rescale_factor: Annotated[float, Field(ge=1e-9, le=1e9)] | None = None
    resample: Annotated[int, Field(ge=0, le=5)] | None = None
    max_visual_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    tile_size: Pixels | None = None
    cell_size: Pixels | None = None
    proxy_size: Pixels | None = None
    size: SizeNumbers | None = None
    max_image_size: SizeNumbers | None = None
    min_patches: Pieces | None = None
    max_patches: Pieces | None = None
    min_pixels: Area | None = None
    max_pixels: Area | None = None
    patch_size: Pixels | SizeNumbers | None = None
    temporal_patch_size: Annotated[int, Field(ge=1, le=64)] | None = None
    merge_size: Annotated[int, Field(ge=1, le=64)] | None = None
    downsample_factor: Annotated[int, Field(ge=1, le=64)] | None = None
    min_tiles: Annotated[int, Field(ge=1, le=64)] | None = None
    max_tiles: Annotated[int, Field(ge=1, le=64)] | None = None
    min_image_tokens: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    max_image_tokens: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    encoder_patch_size: Pixels | None = None
    max_pixels_tolerance: Positive | None = None
    do_resize: bool | None = None
    do_center_crop: bool | None = None
    do_image_splitting: bool | None = None
    crop_to_patches: bool | None = None
    use_thumbnail: bool | None = None
    do_pan_and_scan: bool | None = None


def check_numbers(numbers: type[Numbers], settings: Any, source: str) -> None:
    """Hold settings against their bounds.

    Args:
        numbers: of which kind they are.
        settings: as their file has them.
        source: name of the file.

    Raises:
        UserError: something is outside; all of it at once.
    """
    try:
        numbers.model_validate(settings)
    except ValidationError as error:
        raise_all(list(_problems(error, source)))


def _problems(error: ValidationError, source: str) -> Iterator[HvlcError]:
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        said = problem["msg"].removeprefix("Value error, ")
        found = f" is {_shown(problem['input'])}" if place and not isinstance(problem["input"], dict) else ""
        said = said.replace("Input should", "it must").replace("must be a valid ", "must be of the type ")
        cause = f"{source}: {place}{found}: {said}" if place else f"{source}: {said}"
        yield UserError("checkpoint.config", cause, f"correct {source.rpartition('/')[2]}")


def channel_numbers(value: Any, channels: int, *, least: float, name: str) -> list[float]:
    """A number for each channel; one for all of them is repeated.

    Args:
        value: as the settings have it.
        channels: how many.
        least: smallest number.
        name: of the setting.

    Raises:
        UserError: it is something else, or a number is outside `least` to a million, which float32 divides by.
    """
    numbers = value if isinstance(value, list) else [value] * channels
    fits = len(numbers) == channels and all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
    if not fits or not all(least <= number <= 1e6 for number in numbers):
        cause = f"{name} of the image processor is {_shown(value)}, expected is a number from {least:g} to 1e+06"
        raise UserError("checkpoint.config", f"{cause} for each of {channels} channels", "save the processor again")
    return [float(number) for number in numbers]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
