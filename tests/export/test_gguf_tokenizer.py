"""The tokenizer of a GGUF file, in files: the same tokens, or an error."""

import json
from pathlib import Path

import gguf
import pytest
from transformers import AutoTokenizer

from hvlc.errors import UserError
from hvlc.export.gguf_tokenizer import write_gguf_tokenizer
from hvlc.training.tokenizer import build_nano_tokenizer
from tests.weights.prequantized.tiny_quantized import save_gguf


def test_the_files_give_the_tokens_of_the_tokenizer(tmp_path: Path) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_0")
    write_gguf_tokenizer(tmp_path / "model.gguf", tmp_path / "text")
    found, expected = AutoTokenizer.from_pretrained(tmp_path / "text"), build_nano_tokenizer()
    for text in ("A plain line.", "12 + 345", "<|user|>é\n<|im_end|>", "  two  spaces"):
        assert found(text).input_ids == expected(text).input_ids
    assert found("cab").input_ids == [ord("c"), 255]  # the file's own merge
    assert (found.eos_token, found.bos_token) == (expected.eos_token, expected.bos_token)


def test_digits_stand_alone_where_the_file_says_smollm(tmp_path: Path) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_0")
    write_gguf_tokenizer(tmp_path / "model.gguf", tmp_path / "text")
    content = json.loads((tmp_path / "text" / "tokenizer.json").read_text())
    kinds = [part["type"] for part in content["pre_tokenizer"]["pretokenizers"]]
    assert kinds == ["Digits", "ByteLevel"]


@pytest.mark.parametrize(("key", "value"), [("tokenizer.ggml.pre", "moon"), ("tokenizer.ggml.model", "wordpiece")])
def test_an_unknown_tokenizer_is_refused(tmp_path: Path, key: str, value: str) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0][key] = gguf.GGUFValue(value, gguf.GGUFValueType.STRING)

    save_gguf(tmp_path / "model.gguf", "Q4_0", edit=edit)
    with pytest.raises(UserError, match=value) as error:
        write_gguf_tokenizer(tmp_path / "model.gguf", tmp_path / "text")
    assert error.value.code == "checkpoint.tokenizer"


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, key: str) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_0", edit=lambda writer: writer.kv_data[0].pop(key))
    with pytest.raises(UserError, match="damaged"):
        write_gguf_tokenizer(tmp_path / "model.gguf", tmp_path / "text")
