"""Which template and which special tokens a checkpoint has: what transformers says is held against what is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hvlc.chat.source import ChatTemplate, read_specials, read_template
from hvlc.errors import UserError
from hvlc.training.tokenizer import build_nano_tokenizer

A, B, TOOLS = "A {{ messages[0].content }}", "B {{ messages[0].content }}", "T {{ messages[0].content }}"


def saved(directory: Path, config: dict[str, Any], files: dict[str, str]) -> Path:
    tokenizer = build_nano_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    content = json.loads(path.read_text("utf-8")) | config
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}), "utf-8")
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(text.encode())
    return directory


NAMED = [{"name": "default", "template": A}, {"name": "tool_use", "template": TOOLS}]

PLACES: dict[str, tuple[dict[str, Any], dict[str, str], ChatTemplate | None]] = {
    "none": ({}, {}, None),
    "a null": ({"chat_template": None}, {}, None),
    "configuration": ({"chat_template": A}, {}, ChatTemplate(A, "tokenizer_config.json")),
    "file": ({}, {"chat_template.jinja": A}, ChatTemplate(A, "chat_template.jinja")),
    "both": ({"chat_template": B}, {"chat_template.jinja": A}, ChatTemplate(A, "chat_template.jinja")),
    "a list": ({"chat_template": NAMED}, {}, ChatTemplate(A, "tokenizer_config.json", ("tool_use",))),
    "names": (
        {"chat_template": {"default": A, "rag": B}},
        {},
        ChatTemplate(A, "tokenizer_config.json", ("rag",)),
    ),
    "files with names": (
        {"chat_template": B},
        {"chat_template.jinja": A, "additional_chat_templates/tool_use.jinja": TOOLS},
        ChatTemplate(A, "chat_template.jinja", ("tool_use",)),
    ),
    "line ends of other systems": (
        {},
        {"chat_template.jinja": "A\r\n{{ messages[0].content }}\rB"},
        ChatTemplate("A\n{{ messages[0].content }}\nB", "chat_template.jinja"),
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_template_is_the_one_that_transformers_takes(tmp_path: Path, place: str) -> None:
    config, files, expected = PLACES[place]
    directory = saved(tmp_path, config, files)
    assert read_template(directory) == expected
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if expected is None:
        assert tokenizer.chat_template is None
    else:
        assert tokenizer.get_chat_template() == expected.text


def test_a_processors_template_counts_where_there_is_no_other(tmp_path: Path) -> None:
    directory = saved(tmp_path, {}, {"chat_template.json": json.dumps({"chat_template": A})})
    assert read_template(directory) == ChatTemplate(A, "chat_template.json")


WRONG: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "no default": ({"chat_template": NAMED[1:]}, {}, "tool_use, and none is named default"),
    "files without default": ({}, {"additional_chat_templates/rag.jinja": A}, "rag, and none is named default"),
    "a number": ({"chat_template": 3}, {}, "neither a text nor a list"),
    "a list of texts": ({"chat_template": [A]}, {}, "neither a text nor a list"),
    "a name without text": ({"chat_template": [{"name": "default"}]}, {}, "neither a text nor a list"),
    "too large": ({}, {"chat_template.jinja": "x" * 1_100_000}, "more than"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_a_template_is_the_users_error(tmp_path: Path, case: str) -> None:
    config, files, cause = WRONG[case]
    with pytest.raises(UserError) as found:
        read_template(saved(tmp_path, config, files))
    assert found.value.code == "checkpoint.template"
    assert cause in found.value.cause


def test_bytes_that_are_not_text_are_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError) as found:
        read_template(tmp_path)
    assert found.value.code == "checkpoint.template"


MAP = json.dumps({"bos_token": {"content": "<|vision_pad|>", "special": True}, "sep_token": "<|user|>"})
SPECIALS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "configuration": ({}, {}),
    "an object": ({"bos_token": {"content": "<|user|>", "__type": "AddedToken"}}, {}),
    "a map alone": ({"bos_token": "absent", "eos_token": "absent"}, {"special_tokens_map.json": MAP}),
    "a map besides": ({}, {"special_tokens_map.json": MAP}),
    "a map that added tokens silence": (
        {"added_tokens_decoder": {"256": {"content": "<|endoftext|>", "special": True}}},
        {"special_tokens_map.json": MAP},
    ),
    "a token of its own": ({"image_token": "<|image_pad|>"}, {}),
    "named extras": ({"extra_special_tokens": {"image_token": "<|image_pad|>"}}, {}),
    "a null": ({"bos_token": None}, {}),
}


@pytest.mark.parametrize("case", SPECIALS)
def test_special_tokens_are_those_that_transformers_passes(tmp_path: Path, case: str) -> None:
    directory = saved(tmp_path, *SPECIALS[case])
    expected = AutoTokenizer.from_pretrained(directory).special_tokens_map
    texts = {name: text for name, text in expected.items() if isinstance(text, str)}
    assert read_specials(directory) == texts


@pytest.mark.parametrize("read", [read_template, read_specials])
def test_a_configuration_that_is_none_is_the_users_error(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "tokenizer_config.json").write_text("[]", "utf-8")
    with pytest.raises(UserError) as found:
        read(tmp_path)
    assert found.value.code == "checkpoint.tokenizer"
