"""Configuration of HyperVL: two SigLIP2 towers, one Qwen3, one Visual Resolution Compressor."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, Qwen3Config, SiglipVisionConfig
from transformers.configuration_utils import SubConfigSpec

BRANCHES = ("base", "large")


@strict
class HyperVLResolutionConfig(PreTrainedConfig):
    """The Visual Resolution Compressor (VRC): a MobileNetV2 backbone and a one-scalar head.

    Attributes:
        proxy_size: side in pixels of the square view of the image that the network sees.
        depth_multiplier: width of the MobileNetV2 backbone.
        hidden_size: width of the two-layer head.
        min_scale: smallest scale per image side (arXiv 2512.14052: 10 %).
        scale_step: the predicted scale is rounded to multiples of this.
    """

    model_type = "hypervl_resolution"
    base_config_key = "resolution_config"

    proxy_size: int = 256
    depth_multiplier: float = 0.35
    hidden_size: int = 64
    min_scale: float = 0.1
    scale_step: float = 0.05
    layer_norm_eps: float = 1e-3


@strict
class HyperVLConfig(PreTrainedConfig):
    """All of HyperVL.

    One visual token covers a square *cell* of `patch_size * shuffle_factor` pixels; a tile is
    the (fixed) input of a vision tower and holds `(tile_size / cell_size) ** 2` cells.

    Attributes:
        base_vision_config: the small SigLIP2 tower.
        large_vision_config: the large SigLIP2 tower; same tile and patch size as the small one.
        text_config: the shared Qwen3.
        resolution_config: the Visual Resolution Compressor.
        shuffle_factor: side of the pixel shuffle; 2 keeps a quarter of the patches as tokens.
        image_token_id: placeholder that is replaced by one visual token.
        row_token_id: ordinary text token that ends each row of cells.
        max_visual_tokens: upper bound of visual tokens for one image; larger images are shrunk.
        default_branch: tower that answers when a caller names none.
    """

    model_type = "hypervl"
    sub_configs_defaults = {
        "base_vision_config": SubConfigSpec(config_class=SiglipVisionConfig, init_kwargs={"vision_use_head": False}),
        "large_vision_config": SubConfigSpec(
            config_class=SiglipVisionConfig,
            init_kwargs={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "vision_use_head": False,
            },
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3"),
        "resolution_config": SubConfigSpec(config_class=HyperVLResolutionConfig),
    }

    base_vision_config: dict | PreTrainedConfig | None = None
    large_vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    resolution_config: dict | PreTrainedConfig | None = None
    shuffle_factor: int = 2
    projector_hidden_act: str = "gelu"
    image_token_id: int = 151655
    row_token_id: int = 151654
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    max_visual_tokens: int = 4096
    default_branch: str = "large"
    tie_word_embeddings: bool = True

    def validate_architecture(self) -> None:
        """Refuse towers that cannot feed one language model over one tile grid.

        Raises:
            ValueError: tile or patch sizes differ, or a tile is not a whole number of cells.
        """
        base, large = self.base_vision_config, self.large_vision_config
        if (base.image_size, base.patch_size) != (large.image_size, large.patch_size):
            raise ValueError(
                f"both vision towers must share tile and patch size, got {base.image_size}/{base.patch_size} "
                f"(base) and {large.image_size}/{large.patch_size} (large)"
            )
        if base.image_size % (base.patch_size * self.shuffle_factor):
            raise ValueError(
                f"tile size {base.image_size} is not a multiple of patch size {base.patch_size} "
                f"x shuffle {self.shuffle_factor}"
            )
        if self.default_branch not in BRANCHES:
            raise ValueError(f"default_branch must be one of {BRANCHES}, got {self.default_branch!r}")

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self.base_vision_config.image_size

    @property
    def cell_size(self) -> int:
        """Side in pixels of the square that one visual token covers."""
        return self.base_vision_config.patch_size * self.shuffle_factor

    def vision_config(self, branch: str) -> SiglipVisionConfig:
        """The tower configuration of `branch` ("base" or "large")."""
        return {"base": self.base_vision_config, "large": self.large_vision_config}[branch]


def paper_config() -> HyperVLConfig:
    """The size of the paper: SigLIP2-Base and -Large at patch 16, Qwen3-1.7B (docs/hypervl.md).

    The tile side of 256 is a choice (the paper's is not known): stock SigLIP2 checkpoints exist at it.
    """
    tile = {"image_size": 256, "patch_size": 16, "vision_use_head": False}
    return HyperVLConfig(
        base_vision_config=SiglipVisionConfig(**tile),
        large_vision_config=SiglipVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, **tile
        ),
        text_config=Qwen3Config(
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            tie_word_embeddings=True,
            eos_token_id=151645,
            bos_token_id=151643,
            pad_token_id=151643,
        ),
        resolution_config=HyperVLResolutionConfig(proxy_size=256, depth_multiplier=1.0),
    )
