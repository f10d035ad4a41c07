"""HyperVL: two SigLIP2 branches, one Qwen3, one Visual Resolution Compressor (arXiv 2512.14052).

What the paper leaves open is chosen here and stated in docs/hypervl.md: separate projectors,
pixel shuffle before the MLP, one raster over all tiles of an image, scale per side.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoModel,
    GenerationMixin,
    MobileNetV2Config,
    MobileNetV2Model,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

from hvlc.models.hypervl.configuration import BRANCHES, HyperVLConfig, HyperVLResolutionConfig


@dataclass
class HyperVLCausalLMOutputWithPast(ModelOutput):
    """Output of `HyperVLForConditionalGeneration`.

    Attributes:
        loss: scalar, when labels were given.
        logits: float `[batch, sequence, vocab]`.
        past_key_values: the key/value cache.
        hidden_states: per-layer states when asked for.
        attentions: per-layer attention maps when asked for.
        image_features: float `[visual tokens, hidden]`, when images were given.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_features: torch.Tensor | None = None


def pixel_shuffle(features: torch.Tensor, factor: int) -> torch.Tensor:
    """Join `factor x factor` neighbouring patches into one token.

    Args:
        features: float `[tiles, side * side, width]`, row-major patches.
        factor: side of the joined square.

    Returns:
        float `[tiles, (side / factor) ** 2, factor * factor * width]`, row-major cells; inside a
        cell the order is (row, column, channel).
    """
    tiles, patches, width = features.shape
    side = int(patches**0.5)
    cells = side // factor
    x = features.reshape(tiles, cells, factor, cells, factor, width)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(tiles, cells * cells, factor * factor * width)


class HyperVLProjector(nn.Module):
    """Two-layer MLP from a cell's patch features to the language model's width."""

    def __init__(self, config: HyperVLConfig, vision_width: int) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(vision_width * config.shuffle_factor**2, width)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """float `[..., factor**2 * vision width]` to float `[..., hidden]`."""
        return self.linear_2(self.act(self.linear_1(cells)))


class HyperVLVisionBranch(nn.Module):
    """A SigLIP2 tower without pooling head, pixel shuffle, projector: tiles to visual tokens."""

    def __init__(self, config: HyperVLConfig, branch: str) -> None:
        super().__init__()
        vision_config = config.vision_config(branch)
        self.shuffle_factor = config.shuffle_factor
        self.tower = SiglipVisionModel(vision_config)
        self.projector = HyperVLProjector(config, vision_config.hidden_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float `[tiles, 3, T, T]` in [-1, 1] to float `[tiles, cells per tile, hidden]`."""
        patches = self.tower(pixel_values).last_hidden_state
        return self.projector(pixel_shuffle(patches, self.shuffle_factor))


def stitch(tile_features: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """Lay the tiles of each image side by side as one raster and crop the padding cells.

    Args:
        tile_features: float `[tiles, t * t, hidden]`, tiles of all images one after the other, row-major.
        grids: int64 `[images, 2]`, rows and columns of cells that hold image.

    Returns:
        float `[sum(rows * columns), hidden]`, each image in raster order.
    """
    _, cells, width = tile_features.shape
    t = int(cells**0.5)
    rasters, start = [], 0
    for rows, columns in grids.tolist():
        down, across = -(-rows // t), -(-columns // t)
        image = tile_features[start : start + down * across].reshape(down, across, t, t, width)
        raster = image.permute(0, 2, 1, 3, 4).reshape(down * t, across * t, width)
        rasters.append(raster[:rows, :columns].reshape(rows * columns, width))
        start += down * across
    if start != tile_features.shape[0]:
        raise ValueError(f"image_grids ask for {start} tiles, pixel_values holds {tile_features.shape[0]}")
    return torch.cat(rasters)


class HyperVLResolutionCompressor(PreTrainedModel):
    """Predicts how far an image may be shrunk before its answers suffer.

    The network sees a fixed-size proxy and answers with the wanted absolute size in units of the
    proxy (docs/hypervl.md, "What the compressor predicts"), so that equal text gets equal pixels
    whatever the image's size.
    """

    config_class = HyperVLResolutionConfig
    main_input_name = "proxy_values"

    def __init__(self, config: HyperVLResolutionConfig) -> None:
        super().__init__(config)
        backbone = MobileNetV2Config(
            image_size=config.proxy_size,
            depth_multiplier=config.depth_multiplier,
            finegrained_output=False,
            tf_padding=False,
            layer_norm_eps=config.layer_norm_eps,
        )
        self.backbone = MobileNetV2Model(backbone, add_pooling_layer=False)
        width = self.backbone.conv_1x1.convolution.out_channels
        self.attention = nn.Conv2d(width, 1, 1)
        self.linear_1 = nn.Linear(width, config.hidden_size)
        self.act = nn.ReLU()
        self.linear_2 = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, proxy_values: torch.Tensor) -> torch.Tensor:
        """float `[images, 3, P, P]` to float `[images]`: log of (wanted longest side / proxy side)."""
        features = self.backbone(proxy_values).last_hidden_state
        weights = self.attention(features).flatten(2).softmax(-1)
        pooled = (features.flatten(2) * weights).sum(-1)
        return self.linear_2(self.act(self.linear_1(pooled))).squeeze(-1)

    def scale(self, proxy_values: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
        """Scale per side in `[min_scale, 1]`, a multiple of `scale_step`.

        Args:
            proxy_values: float `[images, 3, P, P]`.
            image_sizes: int64 `[images, 2]`, height and width of the originals in pixels.

        Returns:
            float32 `[images]`.
        """
        wanted = torch.exp(self(proxy_values).float()) * self.config.proxy_size
        raw = wanted / image_sizes.amax(-1).to(wanted)
        step = torch.tensor(self.config.scale_step, dtype=torch.float32)
        steps = torch.floor(raw.clamp(self.config.min_scale, 1.0) / step + 0.5)
        return (steps * step).clamp(self.config.min_scale, 1.0)


class HyperVLPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialization shared by the HyperVL classes."""

    config_class = HyperVLConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["SiglipEncoderLayer", "Qwen3DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]


class HyperVLModel(HyperVLPreTrainedModel):
    """HyperVL without the language-model head."""

    def __init__(self, config: HyperVLConfig) -> None:
        super().__init__(config)
        self.branches = nn.ModuleDict({name: HyperVLVisionBranch(config, name) for name in BRANCHES})
        self.resolution_compressor = HyperVLResolutionCompressor(config.resolution_config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def stitch(self, tile_features: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """See `stitch`."""
        return stitch(tile_features, grids)

    def get_image_features(
        self, pixel_values: torch.Tensor, image_grids: torch.Tensor, branch: str | None = None
    ) -> torch.Tensor:
        """Visual tokens of all images, float `[sum(rows * columns), hidden]`.

        Args:
            pixel_values: float `[tiles, 3, T, T]`.
            image_grids: int64 `[images, 2]`.
            branch: "base" or "large"; the configuration's default when None.

        Raises:
            ValueError: the branch does not exist, or the grids do not fit the tiles.
        """
        name = branch or self.config.default_branch
        if name not in self.branches:
            raise ValueError(f"unknown vision branch {name!r}; there are {', '.join(BRANCHES)}")
        return stitch(self.branches[name](pixel_values), image_grids)

    def merge(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        """Embed `input_ids` `[batch, sequence]` with the image placeholders replaced in order."""
        embeds = self.get_input_embeddings()(input_ids)
        mask = input_ids == self.config.image_token_id
        if int(mask.sum()) != image_features.shape[0]:
            raise ValueError(f"{int(mask.sum())} image placeholders but {image_features.shape[0]} visual tokens")
        return embeds.masked_scatter(mask.unsqueeze(-1), image_features.to(embeds.dtype))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grids: torch.Tensor | None = None,
        branch: str | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[BaseModelOutputWithPast, torch.Tensor | None]:
        """Run the chosen branch, merge, run the language model."""
        image_features = None
        if inputs_embeds is None:
            if pixel_values is not None:
                image_features = self.get_image_features(pixel_values, image_grids, branch)
                inputs_embeds = self.merge(input_ids, image_features)
            else:
                inputs_embeds = self.get_input_embeddings()(input_ids)
        return self.language_model(inputs_embeds=inputs_embeds, **kwargs), image_features


class HyperVLForConditionalGeneration(HyperVLPreTrainedModel, GenerationMixin):
    """HyperVL with its language-model head; `generate` takes `branch="base"|"large"`."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: HyperVLConfig) -> None:
        super().__init__(config)
        self.model = HyperVLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    @torch.no_grad()
    def predict_scale(self, proxy_values: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
        """Scale per side that the compressor chooses for each image, float32 `[images]`."""
        return self.model.resolution_compressor.scale(proxy_values, image_sizes)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grids: torch.Tensor | None = None,
        branch: str | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> HyperVLCausalLMOutputWithPast:
        """Next-token logits.

        Args:
            input_ids: int64 `[batch, sequence]` with one image placeholder per visual token.
            pixel_values: float `[tiles, 3, T, T]`, tiles of all images in order.
            image_grids: int64 `[images, 2]`, rows and columns of cells of each image.
            branch: "base" or "large".
            attention_mask: `[batch, total]`, or a 4-D additive mask.
            position_ids: int64 `[batch, sequence]`.
            past_key_values: cache of earlier steps.
            inputs_embeds: float `[batch, sequence, hidden]` in place of `input_ids` and images.
            labels: int64 `[batch, sequence]`, -100 where no loss is taken.
            logits_to_keep: compute the head for the last so many positions only (0 = all).
            **kwargs: passed to the language model.
        """
        outputs, image_features = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_grids=image_grids,
            branch=branch,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size)
        return HyperVLCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=image_features,
        )
