"""llama.cpp's names and settings as transformers'."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hvlc.errors import UserError
from hvlc.training.tokenizer import special_token_id
from hvlc.weights.gguf.file import read_gguf
from hvlc.weights.gguf.names import ARCHITECTURES, derived_config, interleaved_heads, parameter_name
from tests.weights.prequantized.tiny_quantized import save_gguf

Edit = Callable[[gguf.GGUFWriter], None]


def test_the_config_is_transformers_own(tmp_path: Path) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_0")
    ours = derived_config(read_gguf(tmp_path / "model.gguf"))
    theirs = AutoConfig.from_pretrained(tmp_path, gguf_file="model.gguf").to_dict()
    assert ours.pop("rope_parameters")["rope_theta"] == theirs["rope_parameters"]["rope_theta"]
    assert ours.pop("eos_token_id") == [theirs["eos_token_id"], special_token_id("<|endoftext|>")]
    assert ours == {key: theirs[key] for key in ours}
    assert ours["tie_word_embeddings"]


def test_gguf_names_are_those_of_the_gguf_package() -> None:
    for architecture in ARCHITECTURES:
        number = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
        table = gguf.get_tensor_name_map(number, 3)
        for name in ("token_embd", "output_norm", "output", *(f"blk.2.{part}" for part in PARTS)):
            if "q_norm" in name and architecture not in ("gemma3", "qwen3"):
                continue
            ours = parameter_name(f"{name}.weight", architecture)
            assert ours is not None
            assert table.get_name(ours.removesuffix(".weight")) == name


def test_norms_after_attention_and_mlp_are_those_of_gemma_alone() -> None:
    number = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}["gemma3"]
    table = gguf.get_tensor_name_map(number, 3)
    for part in ("post_attention_norm", "ffn_norm", "post_ffw_norm"):
        ours = parameter_name(f"blk.1.{part}.weight", "gemma3")
        assert ours is not None
        assert table.get_name(ours.removesuffix(".weight")) == f"blk.1.{part}"
        assert parameter_name(f"blk.1.{part}.weight", "llama") in (
            None,
            "model.layers.1.post_attention_layernorm.weight",
        )


PARTS = "attn_norm attn_q attn_k attn_v attn_output attn_q_norm ffn_norm ffn_gate ffn_up ffn_down".split()


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.1.ffn_gate_exps.weight", "blk.x.attn_q.weight", "output"])
def test_other_names_are_no_parameters(name: str) -> None:
    assert parameter_name(name, "llama") is None


def test_queries_and_keys_of_llama_alone_are_interleaved(tmp_path: Path) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_0")
    file = read_gguf(tmp_path / "model.gguf")
    found = {name: interleaved_heads(file, name) for name in file.entries}
    assert {name: heads for name, heads in found.items() if heads} == {
        "blk.0.attn_q.weight": 4,
        "blk.0.attn_k.weight": 2,
    }
    other = replace(file, metadata=dict(file.metadata) | {"general.architecture": "qwen2"})
    assert interleaved_heads(other, "blk.0.attn_q.weight") == 0


REFUSED: dict[str, tuple[Edit, str]] = {
    "experts": (lambda writer: writer.add_expert_count(8), "expert_count is 8, which is not read"),
    "scaled rotation": (
        lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        "rope.scaling.type is 'yarn'",
    ),
    "values of another width": (
        lambda writer: writer.add_value_length(32),
        "attention.value_length is 32, heads are 64",
    ),
    "frequencies": (
        lambda writer: writer.add_tensor("rope_freqs.weight", np.full(32, 3, np.float32)),
        "rope_freqs.weight holds other numbers than those of Llama 3",
    ),
    "adapters": (
        lambda writer: writer.add_tensor("blk.0.attn_q.lora_a", np.ones(32, np.float32)),
        "the tensor blk.0.attn_q.lora_a is not read",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_the_numbers_is_refused(tmp_path: Path, case: str) -> None:
    edit, word = REFUSED[case]
    save_gguf(tmp_path / "model.gguf", "Q4_0", edit=edit)
    with pytest.raises(UserError, match=word) as error:
        derived_config(read_gguf(tmp_path / "model.gguf"))
    assert error.value.code == "checkpoint.config"
    assert "config.json beside the file" in error.value.fix


def test_another_architecture_and_missing_values_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="'mamba', read are gemma3, llama, qwen2, qwen3"):
        derived_config(read_gguf(tmp_path / "a.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError) as error:
        derived_config(read_gguf(tmp_path / "b.gguf"))
    causes = [problem.cause for problem in error.value.problems]
    assert any("block_count is None" in cause for cause in causes)
    assert any("token_embd.weight is missing" in cause for cause in causes)


def test_the_scaled_rotation_of_llama_3_is_recognized(tmp_path: Path) -> None:
    rope = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    plain, scaled = (
        LlamaRotaryEmbedding(config=LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=settings))
        for settings in ({"rope_theta": 500000.0, "rope_type": "default"}, rope)
    )
    divisors = (plain.inv_freq / scaled.inv_freq).numpy()
    assert divisors.max() == pytest.approx(32)

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["llama.rope.freq_base"] = gguf.GGUFValue(500000.0, gguf.GGUFValueType.FLOAT32)
        writer.add_tensor("rope_freqs.weight", divisors)

    save_gguf(tmp_path / "model.gguf", "Q4_0", edit=edit)
    found = derived_config(read_gguf(tmp_path / "model.gguf"))["rope_parameters"]
    assert found.pop("factor") == pytest.approx(32)
    assert found == {key: value for key, value in rope.items() if key != "factor"}


def numbers(**values: int | float | list[int]) -> Edit:
    """Change metadata below "llama."; underscores stand for dots but in the last part."""

    def edit(writer: gguf.GGUFWriter) -> None:
        for name, value in values.items():
            key = "llama." + name.replace("__", ".")
            writer.kv_data[0].pop(key, None)
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, int):
                writer.add_int64(key, value) if abs(value) > 2**31 - 1 else writer.add_int32(key, value)
            else:
                writer.add_float64(key, value)

    return edit


OUT_OF_BOUNDS = {
    "no layers": (numbers(block_count=0), "block_count is 0, expected is a whole number from 1"),
    "endless layers": (numbers(block_count=2**40), "block_count is 1099511627776"),
    "no heads": (numbers(attention__head_count=0), "attention.head_count is 0"),
    "negative heads": (numbers(attention__head_count_kv=-2), "attention.head_count_kv is -2"),
    "half a layer": (numbers(block_count=1.5), r"block_count is 1\.5"),
    "a frequency of nothing": (numbers(rope__freq_base=0.0), r"rope\.freq_base is 0\.0"),
    "an endless frequency": (numbers(rope__freq_base=float("inf")), r"rope\.freq_base is inf"),
    "a number that is none": (numbers(attention__layer_norm_rms_epsilon=float("nan")), "epsilon is nan"),
    "other widths": (numbers(feed_forward_length=[512, 256]), "feed_forward_length is an array of 2"),
}


@pytest.mark.parametrize("case", OUT_OF_BOUNDS)
def test_a_number_out_of_bounds_is_refused(tmp_path: Path, case: str) -> None:
    edit, word = OUT_OF_BOUNDS[case]
    save_gguf(tmp_path / "model.gguf", "Q4_0", edit=edit)
    with pytest.raises(UserError, match=word) as error:
        derived_config(read_gguf(tmp_path / "model.gguf"))
    assert error.value.code == "checkpoint.config"


def test_the_same_number_for_every_layer_is_one_number(tmp_path: Path) -> None:
    edit = numbers(feed_forward_length=[512, 512], attention__head_count=[4, 4], attention__head_count_kv=[2, 2])
    save_gguf(tmp_path / "model.gguf", "Q4_0", edit=edit)
    file = read_gguf(tmp_path / "model.gguf")
    found = derived_config(file)
    assert [found[k] for k in ("intermediate_size", "num_attention_heads", "num_key_value_heads")] == [512, 4, 2]
    assert interleaved_heads(file, "blk.0.attn_k.weight") == 2


def test_a_padding_token_that_there_is_not_is_left_out(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop("tokenizer.ggml.padding_token_id")
        writer.add_pad_token_id(2**31)

    save_gguf(tmp_path / "model.gguf", "Q4_0", edit=edit)
    assert derived_config(read_gguf(tmp_path / "model.gguf"))["pad_token_id"] is None
