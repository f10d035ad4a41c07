"""The tokenizer of a GGUF file, in files: the same tokens, or an error."""

import errno
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from hvlc.errors import UserError
from hvlc.export.gguf_tokenizer import write_gguf_tokenizer
from hvlc.inputs.tokenizer import opening_tokens
from hvlc.training.tokenizer import build_nano_tokenizer
from tests.weights.gguf import test_vocabulary as vocabulary
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


SENTENCE = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"


def rebuilt(directory: Path, tokens: list[str], types: list[int], **values: Any) -> Tokenizer:
    """The tokenizer of a GGUF file with this vocabulary, as its tokenizer.json says it."""
    values = {"bos_token_id": tokens.index("<s>")} | values
    vocabulary.saved(directory / "model.gguf", tokens, types=types, **values)
    write_gguf_tokenizer(directory / "model.gguf", directory / "text")
    return Tokenizer.from_file(str(directory / "text" / "tokenizer.json"))


def byte_level(*more: str) -> tuple[list[str], list[int]]:
    """All bytes, the given control tokens behind them, and "<s>"."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*alphabet, *more, "<s>"], [1] * len(alphabet) + [3] * (len(more) + 1)


def test_control_tokens_outside_the_byte_alphabet_keep_their_ids(tmp_path: Path) -> None:
    tokens, types = byte_level(SENTENCE)
    found = rebuilt(tmp_path, tokens, types, pre="deepseek-r1-qwen")
    assert found.encode(f"{SENTENCE}a").ids == [256, tokens.index("a")]
    assert found.get_vocab_size() == len(tokens) + len(vocabulary.MERGED)


def test_tokens_that_a_user_defined_are_found_whole_and_stay_visible(tmp_path: Path) -> None:
    tokens, types = byte_level("<think>")
    types[256] = 4
    found = rebuilt(tmp_path, tokens, types, pre="qwen2")
    assert found.encode("a<think>b").ids == [tokens.index("a"), 256, tokens.index("b")]
    assert found.decode([256]) == "<think>"
    assert found.decode([257]) == ""


@pytest.mark.parametrize(("pre", "begins", "whole"), [("llama-bpe", True, True), ("qwen2", False, False)])
def test_texts_begin_and_words_are_found_as_the_splitting_says(
    tmp_path: Path, pre: str, begins: bool, whole: bool
) -> None:
    tokens, types = byte_level("<x>")
    tokens[256], types[256] = "hello", 1  # no merge leads to it
    found = rebuilt(tmp_path, tokens, types, pre=pre)
    words = [256] if whole else [tokens.index(letter) for letter in "hello"]
    assert found.encode("hello").ids == [*([257] if begins else []), *words]
    assert found.encode("hello", add_special_tokens=False).ids == words
    assert opening_tokens(tmp_path / "text", "checkpoint.tokenizer") == ([257] if begins else [])


def pieces() -> tuple[list[str], list[int], list[float]]:
    """A SentencePiece vocabulary: control tokens, all bytes, some pieces with scores, higher ones first."""
    letters = ["\u2581", "h", "i", "a", "\u2581h", "\u2581hi", "\u2581\u2581", "hi"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    types = [2, 3, 3, *[6] * 256, *[1] * len(letters)]
    scores = [0.0] * 259 + [-20.0, -20.0, -20.0, -20.0, -2.0, -3.0, -1.0, -4.0]
    return tokens, types, scores


@pytest.mark.parametrize("space", [None, True, False])
def test_sentencepiece_puts_a_space_before_every_piece_of_text(tmp_path: Path, space: bool | None) -> None:
    """llama.cpp: before the text and after each token that is found whole, even if a space is there."""
    tokens, types, scores = pieces()
    found = rebuilt(tmp_path, tokens, types, model="llama", scores=scores, add_space_prefix=space)
    first, apart = tokens.index("\u2581hi"), [tokens.index("hi")]
    if space is False:
        assert found.encode("hi").ids == [1, *apart]
        assert found.encode("hi</s>hi").ids == [1, *apart, 2, *apart]
    else:
        assert found.encode("hi").ids == [1, first]
        assert found.encode("hi</s>hi").ids == [1, first, 2, first]
        assert found.encode("  hi").ids == [1, tokens.index("\u2581\u2581"), first]
        assert found.decode([first]) == "hi"
    assert found.encode("\u00e9").ids[-2:] == [3 + 0xC3, 3 + 0xA9]


def test_runs_of_spaces_and_lines_are_found_whole_as_in_gemmas_files(tmp_path: Path) -> None:
    """llama.cpp's converter writes the spaces of tokens that a user defined as spaces."""
    tokens, types, scores = pieces()
    tokens[tokens.index("\u2581\u2581")] = "  "
    tokens += ["   ", "\n\n", "<start_of_turn>"]
    types = [4 if token.isspace() else kind for token, kind in zip(tokens, [*types, 4, 4, 3], strict=True)]
    values: dict[str, Any] = {"model": "llama", "scores": [*scores, -1000.0, -1000.0, -1000.0]}
    found = rebuilt(tmp_path, tokens, types, add_space_prefix=False, **values)
    two, three, lines, turn = (tokens.index(text) for text in ("  ", "   ", "\n\n", "<start_of_turn>"))
    first, apart, line = tokens.index("\u2581hi"), tokens.index("hi"), 3 + ord("\n")
    assert found.encode("hi hi").ids == [1, apart, first]
    assert found.encode("hi  hi").ids == [1, apart, two, apart]
    assert found.encode("hi    hi").ids == [1, apart, three, first]  # the longest first
    assert found.encode("<start_of_turn>hi\n\n\nhi").ids == [1, turn, apart, lines, line, apart]
    assert found.decode([apart, two, apart, first]) == "hi  hi hi"


CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['content'] }}{% endfor %}"
OWN = "{{ bos_token }}" + CHATML


@pytest.mark.parametrize(
    ("pre", "template", "begins"),
    [("llama-bpe", CHATML, 1), ("llama-bpe", OWN, 1), ("llama-bpe", "<s>" + CHATML, 1), ("qwen2", CHATML, 0)],
)
def test_a_chat_begins_as_a_text_does(tmp_path: Path, pre: str, template: str, begins: int) -> None:
    tokens, types = byte_level("<|im_start|>")

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_chat_template(template)

    vocabulary.saved(tmp_path / "model.gguf", tokens, types=types, pre=pre, bos_token_id=257, edit=edit)
    write_gguf_tokenizer(tmp_path / "model.gguf", tmp_path / "text")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "text")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert text == "<s>" * begins + "<|im_start|>a"


def test_a_model_that_ends_texts_is_refused(tmp_path: Path) -> None:
    tokens, types = byte_level("<e>")
    with pytest.raises(UserError, match="add_eos_token is true"):
        rebuilt(tmp_path, tokens, types, pre="qwen2", add_eos_token=True, eos_token_id=256)


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        tokens = writer.kv_data[0]["tokenizer.ggml.tokens"].value
        tokens += [f"more{i}" for i in range(9)]
        types = writer.kv_data[0]["tokenizer.ggml.token_type"].value
        types += [1] * 9

    save_gguf(tmp_path / "model.gguf", "Q4_0", edit=edit)
    with pytest.raises(UserError, match=r"rows in token_embd\.weight") as error:
        write_gguf_tokenizer(tmp_path / "model.gguf", tmp_path / "text")
    assert error.value.code == "checkpoint.tokenizer"


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_0")

    def full(*arguments: object, **options: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"the disk of the file's tokenizer in .*text is full") as error:
        write_gguf_tokenizer(tmp_path / "model.gguf", tmp_path / "text")
    assert error.value.code == "output.disk_full"
