"""Vocabularies of GGUF files as llama.cpp reads them: which tokens end an answer, and what stands before a text.

The expectations are written from `llama_vocab::impl::load` of llama.cpp's src/llama-vocab.cpp.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from hvlc.errors import UserError
from hvlc.weights.gguf.file import GgufFile, read_gguf
from hvlc.weights.gguf.vocabulary import end_tokens, read_vocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
MERGED = ("QQ", "RR", "QQRR")
END_OF_SENTENCE = "<\uff5cend\u2581of\u2581sentence\uff5c>"


Edit = Callable[[gguf.GGUFWriter], None]


def unchanged(writer: gguf.GGUFWriter) -> None:
    """Leave a file as it is."""


def saved(
    path: Path,
    tokens: list[str],
    model: str = "gpt2",
    types: list[int] | None = None,
    edit: Edit = unchanged,
    **values: Any,
) -> GgufFile:
    """A file with a tokenizer alone; `values` are further keys below tokenizer.ggml.

    A byte-level one gets three tokens and a merge of them at its end, unless `values` has merges.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    kinds = types or [CONTROL if t.startswith("<") else NORMAL for t in tokens]
    if tokens and model == "gpt2" and "merges" not in values:
        tokens, kinds = [*tokens, *MERGED], [*kinds, NORMAL, NORMAL, NORMAL]
        values["merges"] = [" ".join(MERGED[:2])]
    if tokens:
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
    edit(writer)
    for key, value in values.items():
        add(writer, f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_gguf(path)


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_int32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if value is not None:
        kinds[type(value)](key, value)


ENDS: dict[str, tuple[list[str], dict[str, Any], list[int]]] = {
    "the file's own": (["a", "<x>"], {"eos_token_id": 1}, [1]),
    "Llama 3": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"],
        {"eos_token_id": 1, "eot_token_id": 2},
        [1, 2, 3],
    ),
    "by text, without keys": (["a", "<|im_end|>", "<|im_start|>"], {}, [1]),
    "by text, of any type": (["a", "[EOT]", "[EOS]", "_<EOT>"], {"eos_token_id": 2}, [2, 1, 3]),
    "an end of a turn that no text says": (["a", "<x>", "<y>"], {"eos_token_id": 1, "eot_token_id": 2}, [1, 2]),
    "an end of a message": (["a", "<x>", "<y>"], {"eos_token_id": 1, "eom_token_id": 2}, [1, 2]),
    "Qwen's fill-in-the-middle": (
        ["<|endoftext|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
        {"eos_token_id": 1},
        [1, 3, 4, 5, 0],
    ),
    "stated padding of it": (["<|fim_pad|>", "<p>", "<x>"], {"eos_token_id": 2, "fim_pad_token_id": 1}, [2, 1]),
    "DeepSeek": (["a", END_OF_SENTENCE], {"eos_token_id": 1}, [1]),
    "harmony": (
        ["<|return|>", "<|call|>", "<|end|>", "<|start|>"],
        {"eos_token_id": 0},
        [0, 1],
    ),
    "Solar": (["<|flush|>", "<|calls|>", "<|end|>"], {"eos_token_id": 0}, [0, 1]),
    "an end that calls are not near": (["<|call|>", "<|end|>"], {"eos_token_id": 0}, [0, 1]),
    "Gemma 4": (["<|tool_response>", "</s>", "<turn|>"], {"eos_token_id": 2}, [2, 0]),
    "an id that is not there": (["a", "<|im_end|>"], {"eos_token_id": 7}, [1]),
    "a negative id": (["a", "<|im_end|>"], {"eos_token_id": -1}, [1]),
    "none": (["a", "b"], {}, []),
    "llama.cpp's default, where it is a control token": ([*"abcdefghijk", "<|x|>"], {}, [11]),
    "llama.cpp's default, where it is a letter": ([*"abcdefghijkl"], {}, []),
}


@pytest.mark.parametrize("case", ENDS)
def test_every_token_that_ends_an_answer_is_found(tmp_path: Path, case: str) -> None:
    tokens, values, expected = ENDS[case]
    assert end_tokens(saved(tmp_path / "m.gguf", tokens, **values)) == expected


def test_sentencepiece_ends_at_its_second_token(tmp_path: Path) -> None:
    assert end_tokens(saved(tmp_path / "m.gguf", ["<unk>", "<s>", "<end>"], "llama")) == [2]


def test_ends_are_the_files_where_it_holds_no_tokens(tmp_path: Path) -> None:
    assert end_tokens(saved(tmp_path / "m.gguf", [], eos_token_id=70_000, eot_token_id=9)) == [70_000, 9]


#: tokenizer.ggml.model, .pre, .add_bos_token; whether a text begins with the token of beginning.
BEGINNINGS = [
    ("gpt2", "llama-bpe", None, True),
    ("gpt2", "llama-bpe", False, False),
    ("gpt2", "llama3", None, True),
    ("gpt2", "falcon3", None, True),
    ("gpt2", "tekken", None, True),
    ("gpt2", "gpt-2", None, False),
    ("gpt2", "gpt-2", True, True),
    ("gpt2", "qwen2", None, False),
    ("gpt2", "deepseek-r1-qwen", None, False),
    ("gpt2", "smollm", None, False),
    ("gpt2", "dbrx", None, False),
    ("llama", None, None, True),
    ("llama", None, False, False),
]


@pytest.mark.parametrize(("model", "pre", "stated", "expected"), BEGINNINGS)
def test_texts_begin_as_in_llama_cpp(
    tmp_path: Path, model: str, pre: str | None, stated: bool | None, expected: bool
) -> None:
    file = saved(tmp_path / "m.gguf", ["<u>", "<s>", "<e>"], model, pre=pre, add_bos_token=stated, bos_token_id=1)
    found = read_vocabulary(file)
    assert (found.adds_bos, found.bos) == (expected, 1)
    assert found.whole_words == (pre in ("llama-bpe", "llama3", "falcon3", "tekken"))
    assert found.adds_space == (model == "llama")


def test_types_say_which_tokens_are_found_whole(tmp_path: Path) -> None:
    tokens, types = ["a", "<u>", "<c>", "<d>", "", "<|im_end|>"], [NORMAL, UNKNOWN, CONTROL, USER_DEFINED, 5, NORMAL]
    found = read_vocabulary(saved(tmp_path / "m.gguf", tokens, types=types))
    assert (found.special, found.user_defined) == ([1, 2, 5], [3])
    assert found.tokens[4] == "[EMPTY_4]"


DAMAGED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "another kind": (["a"], {"model": "bert"}, "its tokenizer is 'bert'"),
    "no tokens": ([], {}, "holds no tokens"),
    "a token twice": (["a", "b", "a"], {}, "the token 'a' is there twice"),
    "a merge of no tokens": (["a", "b"], {"merges": ["a b"]}, "'a b' is not of its tokens"),
    "a merge that is not a pair": (["a", "b"], {"merges": ["ab"]}, "'ab' is not of its tokens"),
    "types of some tokens": (["a", "b"], {"types": [1]}, "token_type has 4 of 5 values"),
    "scores of some tokens": (["a", "b"], {"scores": [1.0]}, "scores has 1 of 5 values"),
    "no merges": (["a", "b"], {"merges": None}, "holds no merges"),
    "numbers for merges": (["a"], {"merges": [1]}, "tokenizer.ggml.merges is an array of 1, not an array of str"),
    "an id of text": (["a"], {"eos_token_id": "1"}, "eos_token_id is '1', not a whole number"),
    "a number for a switch": (["a"], {"add_bos_token": 1}, "add_bos_token is 1, not true or false"),
    "a number for a splitting": (["a"], {"pre": 1}, "tokenizer.ggml.pre is 1, not a text"),
    "a beginning without a token": (["a"], {"add_bos_token": True}, "tokenizer.ggml.bos_token_id names none"),
    "a token of a million letters": (["a" * 1_000_000], {}, "longer, than those of any tokenizer"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_vocabulary_is_refused(tmp_path: Path, case: str) -> None:
    tokens, values, word = DAMAGED[case]
    options = {"model": values.get("model", "gpt2"), "types": values.get("types")}
    rest = {key: value for key, value in values.items() if key not in options}
    with pytest.raises(UserError, match=word) as error:
        read_vocabulary(saved(tmp_path / "m.gguf", tokens, **options, **rest))
    assert error.value.code == "checkpoint.tokenizer"
    assert "tokenizer.json" in error.value.fix
