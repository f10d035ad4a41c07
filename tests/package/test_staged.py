"""What fills the last window of a prompt."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import UserError
from hvlc.graphs.facts import Facts
from hvlc.package.staged import padding_token
from tests.helpers.facts import image_facts, text_facts

TEXT = text_facts(vocab_size=8, eos_token_id=[5], bos_token_id=4, pad_token_id=4)
FACTS = Facts(text=TEXT, image=image_facts(image_token_id=6, special_ids=frozenset({6})))
ADDED = {4: "<begin>", 5: "<end>", 6: "<image>", 7: "<user>"}


def write(directory: Path, *, added: dict[int, str], template: str = "", **content: Any) -> Path:
    tokens = [{"id": number, "content": text} for number, text in added.items()]
    vocabulary = {"a": 0, "b": 1, "c": 2, "d": 3}
    whole = {"added_tokens": tokens, "model": {"type": "BPE", "vocab": vocabulary}, **content}
    (directory / "tokenizer.json").write_text(json.dumps(whole), "utf-8")
    if template:
        (directory / "chat_template.jinja").write_text(template, "utf-8")
    return directory


def opening(token: int) -> dict[str, Any]:
    pieces = [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "post_processor": {"type": "TemplateProcessing", "single": pieces, "special_tokens": {"x": {"ids": [token]}}}
    }


@pytest.mark.parametrize(
    ("facts", "written", "padding"),
    [
        ({}, {"added": ADDED}, 4),  # the checkpoint's own
        ({"vocab_size": 20}, {"added": ADDED}, 19),  # a row for which there is no token
        ({}, {"added": ADDED, **opening(4)}, 7),  # 4 opens every text
        ({}, {"added": ADDED, "template": "{{ bos_token }}"}, 7),
        ({}, {"added": ADDED, "template": "<begin>"}, 7),
        ({"pad_token_id": None}, {"added": ADDED}, 4),
        ({"pad_token_id": 5, "eos_token_id": 5}, {"added": ADDED}, 4),  # an answer's end is in every turn
        ({"pad_token_id": 5}, {"added": {5: "<end>", 6: "<image>"}, "template": ""}, 5),  # nothing else is left
    ],
)
def test_the_padding_is_no_token_of_a_prompt(
    tmp_path: Path, facts: dict[str, Any], written: dict[str, Any], padding: int
) -> None:
    changed = replace(TEXT, **facts)
    if len(written["added"]) < len(ADDED):
        changed = replace(changed, vocab_size=7)
    assert padding_token(write(tmp_path, **written), replace(FACTS, text=changed)) == padding


@pytest.mark.parametrize("content", ['{"added_tokens": [{"id": "x"}]}', "[]", "nothing"])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, "utf-8")
    with pytest.raises(UserError, match=r"checkpoint\.tokenizer"):
        padding_token(tmp_path, FACTS)
