"""Numbers of configurations are held against bounds before anything divides by them, indexes or counts to them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import UserError
from hvlc.export import export_bundle
from hvlc.models.numbers import LanguageNumbers, channel_numbers, check_numbers
from hvlc.weights.checkpoint import Checkpoint
from tests.export.tiny_families import save_text, save_vision
from tests.helpers.commands import Hvlc


def refusal(source: Path, target: Path, name: str, change: dict[str, Any]) -> UserError:
    """The error of a checkpoint with some settings of one file changed; a key's dots lead into sections."""
    directory = Path(shutil.copytree(source, target / "checkpoint"))
    content: Any = json.loads((directory / name).read_text("utf-8"))
    for key, value in change.items():
        *path, last = key.split(".")
        section = content
        for part in path:
            section = section[part]
        section[last] = value
    (directory / name).write_text(json.dumps(content), "utf-8")
    with pytest.raises(UserError) as error:
        export_bundle(Checkpoint.open(directory))
    assert error.value.exit_code == 2
    assert error.value.fix
    return error.value


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("llama") / "checkpoint", "llama")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_vision(tmp_path_factory.mktemp("siglip") / "checkpoint", "siglip")
    settings = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings), "utf-8")
    return directory


LANGUAGE: list[tuple[str, Any]] = [
    *[("num_hidden_layers", value) for value in (0, -1, 2**40, 2**63, 2.0, "2", True, None, [], float("nan"))],
    *[("hidden_size", value) for value in (0, 2**31, [64], {})],
    *[("num_attention_heads", value) for value in (0, 3, 2**31, True, "4")],
    *[("num_key_value_heads", value) for value in (0, -2, "2")],
    *[("vocab_size", value) for value in (0, 2**63, True)],
    *[("rms_norm_eps", value) for value in (0, -1e-6, 1, 2, float("nan"), float("inf"), "1e-6", True)],
    *[("max_position_embeddings", value) for value in (0, -1, 2**63, 1e4)],
    ("tie_word_embeddings", "no"),
    ("attention_bias", 1),
    ("eos_token_id", [True]),
    ("eos_token_id", 2**31),
    ("bos_token_id", "a"),
    ("hidden_act", ["silu"]),
    ("layer_types", "full"),
    *[("rope_parameters.rope_theta", value) for value in (0, -1, float("nan"), float("inf"), "a", True, 10**39)],
    ("rope_parameters.partial_rotary_factor", 0),
    ("rope_parameters.factor", -2),
    ("rope_parameters", 1),
    ("get_text_config", 1),
    ("to_dict", {}),
]


@pytest.mark.parametrize(("key", "value"), LANGUAGE)
def test_a_decoders_number_outside_its_bounds_is_refused(llama: Path, tmp_path: Path, key: str, value: Any) -> None:
    error = refusal(llama, tmp_path, "config.json", {key: value})
    assert error.code in ("checkpoint.config", "several")
    assert key.rpartition(".")[2] in error.cause or "heads" in error.cause


VISION: list[tuple[str, Any]] = [
    *[(f"vision_config.{key}", value) for key in ("patch_size", "image_size") for value in (0, -8, 2**31, "8", True)],
    ("vision_config.num_attention_heads", 2000),
    ("vision_config.num_attention_heads", 5),
    ("vision_config.image_size", 4),
    ("vision_config.image_size", [True, True]),
    ("vision_config.layer_norm_eps", 0),
    ("vision_config.num_channels", 0),
    ("vision_config", 3),
]


@pytest.mark.parametrize(("key", "value"), VISION)
def test_a_towers_number_outside_its_bounds_is_refused(siglip: Path, tmp_path: Path, key: str, value: Any) -> None:
    assert refusal(siglip, tmp_path, "config.json", {key: value}).code == "checkpoint.config"


HYPERVL: list[tuple[str, Any]] = [
    ("base_vision_config.num_attention_heads", 2000),
    ("large_vision_config.num_attention_heads", 5),
    ("base_vision_config.num_channels", 4),
    ("shuffle_factor", 0),
    ("shuffle_factor", 2**63),
    ("image_token_id", 10**6),
    ("image_token_id", -1),
    ("resolution_config.proxy_size", 0),
    ("resolution_config.min_scale", 0),
    ("resolution_config.scale_step", 0),
    ("resolution_config.scale_step", float("nan")),
    ("max_visual_tokens", 0),
    ("default_branch", "huge"),
    ("text_config.num_hidden_layers", 2**40),
    ("text_config", 7),
]


@pytest.mark.parametrize(("key", "value"), HYPERVL)
def test_a_number_of_a_hypervl_outside_its_bounds_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, key: str, value: Any
) -> None:
    assert refusal(tiny_checkpoint, tmp_path, "config.json", {key: value}).code in (
        "checkpoint.config",
        "export.text_model",
        "several",
    )


def test_two_tokens_of_one_id_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text("utf-8"))
    change = {"row_token_id": config["image_token_id"]}
    assert "row_token_id" in refusal(tiny_checkpoint, tmp_path, "config.json", change).cause


PROCESSOR: list[tuple[str, Any]] = [
    *[
        (key, value)
        for key in ("image_mean", "image_std")
        for value in ({"a": 1}, "x", [float("nan"), 1, 1], [1], [1] * 4, [float("inf"), 1, 1], [[1], 1, 1], [True] * 3)
    ],
    *[("image_std", value) for value in ([0, 0, 0], 0, [0.5, 0.5, -0.5], [1e-300] * 3)],
    *[("rescale_factor", value) for value in (0, -1, float("nan"), "a", True)],
    *[("resample", value) for value in (-1, 6, "bicubic", 2.0)],
    ("do_normalize", "yes"),
]


@pytest.mark.parametrize(("key", "value"), PROCESSOR)
def test_a_processors_number_outside_its_bounds_is_refused(siglip: Path, tmp_path: Path, key: str, value: Any) -> None:
    error = refusal(siglip, tmp_path, "preprocessor_config.json", {key: value})
    assert error.code == "checkpoint.config"
    assert key in error.cause


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_std", [0, 0, 0]), ("image_mean", "x"), ("max_visual_tokens", 0), ("tile_size", 64), ("cell_size", True)],
)
def test_a_hypervls_processor_is_held_against_bounds_and_configuration(
    tiny_checkpoint: Path, tmp_path: Path, key: str, value: Any
) -> None:
    change = {f"image_processor.{key}": value}
    error = refusal(tiny_checkpoint, tmp_path, "processor_config.json", change)
    assert error.code == "checkpoint.config"
    assert key in error.cause


def test_a_number_for_all_channels_is_repeated() -> None:
    assert channel_numbers(0.5, 3, least=1e-6, name="image_std") == [0.5, 0.5, 0.5]


def test_all_numbers_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        check_numbers(
            LanguageNumbers, {"hidden_size": 0, "vocab_size": -1, "rope_scaling": {"factor": 0}}, "config.json"
        )
    assert [p.cause.split()[1] for p in error.value.problems] == ["hidden_size", "vocab_size", "rope_scaling.factor"]


def test_absent_keys_and_settings_of_public_checkpoints_are_taken() -> None:
    """As Llama 3.1, TinyLlama and Qwen2.5 have them."""
    check_numbers(LanguageNumbers, {"model_type": "llama"}, "config.json")
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
    public = {
        "rope_scaling": scaling | {"original_max_position_embeddings": 8192},
        "eos_token_id": [128001, 128008, 128009],
        "pad_token_id": -1,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "sliding_window": 131072,
        "max_window_layers": 28,
        "use_sliding_window": False,
        "rms_norm_eps": 1e-05,
        "head_dim": None,
    }
    check_numbers(LanguageNumbers, public, "config.json")


def test_a_plan_ends_at_once_whatever_a_configuration_counts(llama: Path, tmp_path: Path, hvlc: Hvlc) -> None:
    directory = Path(shutil.copytree(llama, tmp_path / "checkpoint"))
    content = json.loads((directory / "config.json").read_text("utf-8"))
    (directory / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 256}), "utf-8")
    result = hvlc("plan", directory, "--recipe", "float32")
    assert result.code == 2
    assert "model.layers.2" in result.err
