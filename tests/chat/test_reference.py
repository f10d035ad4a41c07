"""A checkpoint's chats, rendered as transformers does, all in one process."""

import json
import subprocess
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hvlc.chat.reference import CheckpointTemplate
from hvlc.errors import UserError
from hvlc.zoo import nano_checkpoint

DIES = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) if messages[0].content == 'die' }}{{ messages[0].content }}!"


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def checkpoint(directory: Path, template: str | None) -> Path:
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Processes that renderers start."""
    found: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def recorded(*arguments: object, **settings: object) -> subprocess.Popen[bytes]:
        found.append(start(*arguments, **settings))
        return found[-1]

    monkeypatch.setattr("hvlc.chat.renderer.subprocess.Popen", recorded)
    return found


def test_chats_are_those_of_transformers_in_one_process(started: list[subprocess.Popen[bytes]]) -> None:
    template, tokenizer = CheckpointTemplate(nano_checkpoint()), AutoTokenizer.from_pretrained(nano_checkpoint())
    for text in ("Hi", "What is 2 + 2?", "é\n\n<|im_end|>"):
        expected = tokenizer.apply_chat_template(chat(text), tokenize=False, add_generation_prompt=True)
        assert template.rendered(chat(text)) == expected
    assert len(started) == 1


def test_after_a_template_that_dies_the_next_chat_is_rendered(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    template = CheckpointTemplate(checkpoint(tmp_path, DIES))
    assert template.rendered(chat("a")) == "a!"
    with pytest.raises(UserError) as found:
        template.rendered(chat("die"))
    assert found.value.code == "checkpoint.template"
    assert template.rendered(chat("b")) == "b!"
    assert len(started) <= 2


def test_without_a_template_there_is_no_text_and_no_process(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    assert CheckpointTemplate(checkpoint(tmp_path, None)).rendered(chat("a")) is None
    assert not started
