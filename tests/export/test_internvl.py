"""InternVL and Qianfan-OCR: packages answer as transformers does, from the processor's first byte to the last token."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.vision import Seen
from hvlc.tracing.package import PackageTracer
from tests.helpers.answers import Reference, asked_of_transformers, check_answer, check_bound, packaged, sizes
from tests.helpers.damages import changed, refused, renamed, with_part, with_tensor, without_processor
from tests.helpers.tiny import picture
from tests.helpers.tiny_vision_language import ratio_processor, save_ratio

DYNAMIC = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0}

#: Settings of checkpoints, one of each kind somewhere.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "qwen2": {"text": {"rope_parameters": DYNAMIC}},
    "qwen3-qk-norm": {"decoder": "qwen3", "text": {"head_dim": 16}, "vision": {"use_qk_norm": True}, "tied": True},
    "llama-rms-norm": {
        "decoder": "llama",
        "vision": {"norm_type": "rms_norm", "attention_bias": True, "layer_norm_eps": 1e-5},
        "pictures": {"min_patches": 2, "max_patches": 4, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        "dtype": "bfloat16",
        "seed": 1,
    },
    "last-norm": {"vision": {"use_mean_pooling": False, "use_absolute_position_embeddings": False}, "seed": 2},
    "ratio-quarter": {"ratio": 0.25, "tile": 24, "patch": 3, "pictures": {"max_patches": 1}, "seed": 3},
    "mask-token": {"vision": {"use_mask_token": True}, "pictures": {"resample": 2}, "seed": 4},
    "qianfan": {"family": "qianfan_ocr", "decoder": "qwen3", "text": {"head_dim": 16}, "seed": 5},
}

FAMILIES = (*sorted({settings.get("family", "internvl") for settings in CHECKPOINTS.values()}), "internvl_chat")

#: Heights and widths that reach every branch: one tile, whole tiles, ties by area, wide, tall, tiny, one side alone.
SIZES = [(32, 32), (64, 64), (30, 31), (40, 90), (90, 40), (1, 1), (5, 200), (300, 20), (64, 33)]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ratio(tmp_path_factory.mktemp(request.param) / "checkpoint", **CHECKPOINTS[request.param])


@pytest.fixture(scope="module")
def package(checkpoint: Path) -> VisionLanguageModel:
    return packaged(checkpoint)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return asked_of_transformers(checkpoint, ratio_processor(checkpoint))


#: One image of every size, two images, none.
ASKED = [*([picture(*size)] for size in SIZES), [picture(50, 90), picture(33, 30)], []]


def pieces(seen: list[Seen]) -> np.ndarray:
    """The tiles of all images."""
    return np.concatenate([one.pieces for one in seen])


@pytest.mark.parametrize("images", ASKED, ids=sizes)
def test_package_answers_as_transformers(
    package: VisionLanguageModel, reference: Reference, images: list[Image.Image]
) -> None:
    check_answer(package, reference, images, pieces)


@pytest.mark.parametrize("limit", [4, 16, 17, 48, 64, 112])
def test_bound_of_visual_tokens_is_kept(tmp_path_factory: pytest.TempPathFactory, limit: int) -> None:
    package = packaged(save_ratio(tmp_path_factory.mktemp("bound") / "checkpoint"))
    check_bound(package, limit, fewest=16)


#: Names of transformers' modules and of the original ones, as regular expressions and what replaces them.
ORIGINAL = (
    (r"^(model\.)?vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
    (r"^(model\.)?vision_tower\.", "vision_model."),
    (r"^(model\.)?multi_modal_projector\.layer_norm", "mlp1.0"),
    (r"^(model\.)?multi_modal_projector\.linear_1", "mlp1.1"),
    (r"^(model\.)?multi_modal_projector\.linear_2", "mlp1.3"),
    (r"attention\.projection_layer", "attn.proj"),
    (r"attention\.([qk]_norm)", r"attn.\1"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"lambda_([12])$", r"ls\1"),
    (r"cls_token", "class_embedding"),
    (r"position_embeddings", "position_embedding"),
    (r"patch_embeddings\.projection", "patch_embedding"),
)


def as_remote_code(directory: Path) -> Path:
    """A copy of an InternVL with the names and keys of OpenGVLab's remote code."""
    output = directory.parent / "original"
    output.mkdir()
    for file in directory.iterdir():
        if file.name not in ("config.json", "model.safetensors", "processor_config.json"):
            (output / file.name).write_bytes(file.read_bytes())
    tensors = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        for pattern, new in ORIGINAL:
            name = re.sub(pattern, new, name)
        tensors[name] = tensor
    for name in [name for name in tensors if ".attention.q_proj." in name]:
        parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        tensors[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    save_file(tensors, output / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text("utf-8"))
    vision, side = config["vision_config"], config["vision_config"]["image_size"][0]
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "norm_type", "hidden_act")
    tower = {key: vision[key] for key in (*kept, "layer_norm_eps")}
    tower |= {"image_size": side, "patch_size": vision["patch_size"][0], "model_type": "intern_vit_6b"}
    tower |= {"qkv_bias": vision["attention_bias"], "qk_normalization": vision["use_qk_norm"]}
    pictures = json.loads((directory / "preprocessor_config.json").read_text("utf-8"))
    whole = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "vision_config": tower,
        "llm_config": config["text_config"] | {"eos_token_id": config["text_config"]["bos_token_id"]},
        "downsample_ratio": config["downsample_ratio"],
        "force_image_size": side,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "use_thumbnail": True,
        "dynamic_image_size": True,
        "min_dynamic_patch": pictures.pop("min_patches"),
        "max_dynamic_patch": pictures.pop("max_patches"),
    }
    (output / "config.json").write_text(json.dumps(whole), "utf-8")
    saved = pictures | {"size": side, "crop_size": side, "image_processor_type": "CLIPImageProcessor"}
    (output / "preprocessor_config.json").write_text(json.dumps(saved), "utf-8")
    (output / "generation_config.json").unlink()
    return output


@pytest.mark.parametrize("kind", ["qwen2", "qwen3-qk-norm", "llama-rms-norm"])
@pytest.mark.parametrize("placeholder", ["<image>", "<IMG_CONTEXT>"])
def test_original_names_and_keys_are_the_same_model(tmp_path: Path, kind: str, placeholder: str) -> None:
    directory = save_ratio(tmp_path / "checkpoint", **CHECKPOINTS[kind])
    original = as_remote_code(directory)
    template = original / "chat_template.jinja"
    template.write_text(template.read_text("utf-8").replace("<IMG_CONTEXT>", placeholder), "utf-8")
    package, reference = packaged(original), asked_of_transformers(directory, ratio_processor(directory))
    for images in ([picture(40, 90)], [picture(50, 90), picture(33, 30)], []):
        check_answer(package, reference, images, pieces)


DAMAGES = [
    (without_processor, "checkpoint.processor"),
    (changed("preprocessor_config.json", size={"height": 48, "width": 48}), "takes 32 x 32 pixels"),
    (changed("preprocessor_config.json", size={"shortest_edge": 32}), "checkpoint.processor"),
    (changed("preprocessor_config.json", do_resize=False), "do_resize is false"),
    (changed("preprocessor_config.json", resample=4), "checkpoint.processor"),
    (changed("preprocessor_config.json", image_std=[0, 1, 1]), "image_std"),
    (changed("preprocessor_config.json", min_patches=9), "min_patches is 9"),
    (changed("processor_config.json", image_seq_length=256), "image_seq_length is 256"),
    (changed("config.json", image_token_id=3), "image_token_id is 3"),
    (changed("config.json", downsample_ratio=0.3), "downsample_ratio is 0.3"),
    (changed("config.json", downsample_ratio=0), "downsample_ratio"),
    (changed("config.json", vision_feature_layer=-2), "vision_feature_layer is -2"),
    (changed("config.json", vision_feature_layer=[-1, -2]), "vision_feature_layer"),
    (changed("config.json", vision_feature_select_strategy="full"), "vision_feature_select_strategy is 'full'"),
    (changed("config.json", projector_hidden_act="relu"), "projector_hidden_act"),
    (with_part("vision_config", patch_size=[5, 5]), "patch_size 5"),
    (with_part("vision_config", patch_size=[4, 8]), "patch_size"),
    (with_part("vision_config", image_size=[34, 34]), "34 pixels"),
    (with_tensor("vision_tower.encoder.layer.3.layernorm_before.weight", 48), "checkpoint.surplus"),
    (with_part("vision_config", image_size=[36, 36], patch_size=[12, 12]), "3 patches a side"),
    (with_part("vision_config", norm_type="group_norm"), "norm_type"),
    (with_part("vision_config", num_attention_heads=5), "5 heads"),
    (with_part("text_config", model_type="gemma"), "export.text_model"),
    (renamed("<IMG_CONTEXT>", "<picture>"), "no token <IMG_CONTEXT>"),
    (renamed("</img>", "</picture>"), "</img>"),
    (with_tensor("vision_tower.encoder.layer.0.attention.q_norm.weight", 48), "checkpoint.unread"),
    (with_tensor("vision_tower.encoder.layer.0.attention.v_proj.bias", 48), "checkpoint.surplus"),
    (with_tensor("vision_tower.layernorm.weight", 48), "checkpoint.unread"),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_what_contradicts_itself_is_refused(tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    directory = save_ratio(tmp_path / "checkpoint")
    damage(directory)
    assert expected in refused(directory)


ORIGINAL_DAMAGES = [
    (without_processor, "checkpoint.processor"),
    (changed("preprocessor_config.json", image_mean=None), "image_mean"),
    (changed("config.json", llm_config=None), "llm_config is missing"),
    (changed("config.json", ps_version=None), "ps_version is None"),
    (changed("config.json", select_layer=-4), "select_layer is -4"),
    (changed("config.json", use_thumbnail=False), "use_thumbnail is False"),
    (changed("config.json", force_image_size=64), "force_image_size is 64"),
    (changed("config.json", min_dynamic_patch=7), "min_patches is 7"),
    (changed("config.json", max_dynamic_patch="many"), "max_dynamic_patch"),
    (with_part("vision_config", qkv_bias=None), "no qkv_bias"),
    (with_part("vision_config", qk_normalization=True, layer_norm_eps=1e-5), "layer_norm_eps is 1e-05"),
    (with_part("llm_config", model_type="internlm2"), "export.text_model"),
    (renamed("<IMG_CONTEXT>", "<picture>"), "no token <IMG_CONTEXT>"),
    (with_tensor("vision_model.encoder.layers.0.attn.qkv.weight", 40, 48), "[40, 48]"),
    (with_tensor("vision_model.encoder.layers.0.attn.qkv.weight", 48, 48), "q_proj.weight is [16, 48]"),
    (with_tensor("mlp1.4.weight", 4), "mlp1.4.weight"),
]


@pytest.mark.parametrize(("damage", "expected"), ORIGINAL_DAMAGES)
def test_original_that_contradicts_itself_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], expected: str
) -> None:
    directory = as_remote_code(save_ratio(tmp_path / "checkpoint"))
    damage(directory)
    assert expected in refused(directory)


def test_tower_is_found_at_its_layers(package: VisionLanguageModel) -> None:
    assert PackageTracer(package.directory).layout.vision == {"main": (48, 3)}
