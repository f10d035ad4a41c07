"""The runtime makes the tokens that the tokenizer's own library makes; where it does not, that is said or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hvlc.chat.texts import ORDINARY, RARE
from hvlc.chat.tokenizing import Tokenizing, check_text, normalization, normalized, settle_tokens
from hvlc.errors import UserError

#: Qwen's and Llama 3's way of cutting a text before merging.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ROWS = 600
SPECIAL = ["<|im_start|>", "<|im_end|>", "<｜User｜>"]


def byte_level(cut: Any = None, normalizer: Any = None) -> dict[str, Any]:
    """A trained byte-level tokenizer as JSON."""
    tokenizer = Tokenizer(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut or pre_tokenizers.Split(Regex(SPLIT), "isolated"), whole])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 8, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator([*ORDINARY, *RARE.values()] * 2, trainer)
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return byte_level()


def saved(directory: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "tokenizer.json").write_text(text, "utf-8")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}', "utf-8")
    return directory


def test_a_tokenizer_of_the_runtimes_kind_is_taken_as_it_is(tmp_path: Path, plain: dict[str, Any]) -> None:
    assert settle_tokens(saved(tmp_path, plain), ROWS) == Tokenizing()


@pytest.mark.parametrize(
    "normalizer", [normalizers.NFC(), normalizers.Sequence([normalizers.NFC()]), normalizers.NFD()]
)
def test_a_unicode_form_is_left_to_the_host(tmp_path: Path, normalizer: Any) -> None:
    directory = saved(tmp_path, byte_level(normalizer=normalizer))
    found = settle_tokens(directory, ROWS)
    assert found == Tokenizing(normalization(directory))
    assert found.form == ("NFD" if isinstance(normalizer, normalizers.NFD) else "NFC")


def test_without_the_form_the_difference_would_be_said(tmp_path: Path) -> None:
    several = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("zebra", "horse")])
    found = settle_tokens(saved(tmp_path, byte_level(normalizer=several)), ROWS)
    assert found == Tokenizing(None, ("decomposed letters", "compatibility characters"))


def test_a_form_that_would_change_an_added_token_is_not_left_to_the_host(tmp_path: Path) -> None:
    found = settle_tokens(saved(tmp_path, byte_level(normalizer=normalizers.NFKC())), ROWS)
    assert found.form is None
    assert "compatibility characters" in found.differing


def test_forms_compose_letters_as_the_library_does() -> None:
    assert normalized("cafe\u0301", "NFC") == normalizers.NFC().normalize_str("cafe\u0301") == "caf\u00e9"
    assert normalized("cafe\u0301", None) == "cafe\u0301"


def lowered(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def prepended(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


OTHER_TOKENS = {"lower case": lowered, "a space in front": prepended}


@pytest.mark.parametrize("change", OTHER_TOKENS)
def test_other_tokens_of_ordinary_texts_are_refused(tmp_path: Path, plain: dict[str, Any], change: str) -> None:
    content = json.loads(json.dumps(plain))
    OTHER_TOKENS[change](content)
    with pytest.raises(UserError) as found:
        settle_tokens(saved(tmp_path, content), ROWS)
    assert found.value.code == "checkpoint.tokenizer"
    assert "other tokens" in found.value.cause


def beyond(content: dict[str, Any]) -> None:
    content["added_tokens"].append(content["added_tokens"][0] | {"id": ROWS, "content": "[PAD]"})


def no_vocabulary(content: dict[str, Any]) -> None:
    content["model"]["vocab"] = None


def texts_for_ids(content: dict[str, Any]) -> None:
    content["model"]["vocab"] = {text: str(i) for text, i in content["model"]["vocab"].items()}


def no_added(content: dict[str, Any]) -> None:
    content["added_tokens"] = {"a": 1}


def added_without_text(content: dict[str, Any]) -> None:
    del content["added_tokens"][0]["content"]


def word_pieces(content: dict[str, Any]) -> None:
    content["model"] = {
        "type": "WordPiece",
        "unk_token": "a",
        "vocab": {"a": 0, "##b": 1},
        "max_input_chars_per_word": 9,
    }


def merges_of_nothing(content: dict[str, Any]) -> None:
    content["model"]["merges"].append(["no", "where"])


def numbers_for_merges(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [1, 2, 3]


def unknown_model(content: dict[str, Any]) -> None:
    content["model"]["type"] = 7


def hostile_split(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+("},
        "behavior": "Isolated",
        "invert": False,
    }


DAMAGED: dict[str, Callable[[dict[str, Any]], None]] = {
    change.__name__: change
    for change in (
        beyond,
        no_vocabulary,
        texts_for_ids,
        no_added,
        added_without_text,
        word_pieces,
        merges_of_nothing,
        numbers_for_merges,
        unknown_model,
        hostile_split,
    )
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_tokenizer_is_the_users_error(tmp_path: Path, plain: dict[str, Any], damage: str) -> None:
    content = json.loads(json.dumps(plain))
    DAMAGED[damage](content)
    with pytest.raises(UserError) as found:
        settle_tokens(saved(tmp_path, content), ROWS)
    assert found.value.code == "checkpoint.tokenizer"


def test_tokens_beyond_the_table_are_named(tmp_path: Path, plain: dict[str, Any]) -> None:
    content = json.loads(json.dumps(plain))
    beyond(content)
    with pytest.raises(UserError) as found:
        settle_tokens(saved(tmp_path, content), ROWS)
    assert f"[PAD] ({ROWS})" in found.value.cause
    assert f"{ROWS} rows" in found.value.cause


@pytest.mark.parametrize("content", ["[]", "3", "{", "", '{"added_tokens": []}', "null"])
def test_a_file_that_is_no_tokenizer_is_the_users_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError) as found:
        settle_tokens(saved(tmp_path, content), ROWS)
    assert found.value.code == "checkpoint.tokenizer"


@pytest.mark.parametrize(
    ("text", "cause"), [("a\0b", "NUL at character 2"), ("a\ud800", "half of a character"), ("\0", "NUL")]
)
def test_texts_that_the_runtime_would_cut_are_refused(text: str, cause: str) -> None:
    with pytest.raises(UserError) as found:
        check_text(text, "request.text")
    assert found.value.code == "request.text"
    assert cause in found.value.cause


@pytest.mark.parametrize("text", ["", *ORDINARY, *RARE.values()])
def test_every_other_text_is_taken(text: str) -> None:
    check_text(text, "request.text")
