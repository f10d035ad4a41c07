import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, processors

from hvlc.errors import UserError
from hvlc.inputs.tokenizer import chat_template, opening_tokens, tokenizer_config

CODE = "checkpoint.tokenizer"
SPECIAL = [("<s>", 1), ("<b>", 2), ("</s>", 3)]


@pytest.mark.parametrize(
    ("config", "found", "beside_a_file"),
    [
        (None, None, "{{ file }}"),
        ({}, None, "{{ file }}"),
        ({"chat_template": None}, None, None),
        ({"chat_template": ""}, None, None),
        ({"chat_template": "{{ a }}"}, "{{ a }}", "{{ a }}"),
        ({"chat_template": [{"name": "default", "template": "d"}]}, None, None),
        ({"chat_template": []}, None, None),
    ],
)
def test_the_template_of_a_package_is_where_the_runtime_looks(
    tmp_path: Path, config: Any, found: str | None, beside_a_file: str | None
) -> None:
    """tokenizer_config.json first, and there a text alone; tests/chat/test_source.py has transformers' order."""
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat_template(tmp_path, CODE) == found
    (tmp_path / "chat_template.jinja").write_text("{{ file }}")
    assert chat_template(tmp_path, CODE) == beside_a_file


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_file_that_is_no_text_is_the_users_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError) as error:
        chat_template(tmp_path, CODE)
    assert error.value.code == CODE


def test_a_configuration_of_another_kind_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    assert tokenizer_config(tmp_path, CODE) == {}


@pytest.mark.parametrize("template", ["$A", "<s> $A", "<s> <b> $A", "<s> $A </s>", "$A </s>"])
@pytest.mark.parametrize("inside", [False, True])
def test_opening_tokens_are_those_that_the_tokenizer_writes_first(tmp_path: Path, template: str, inside: bool) -> None:
    tokenizer = Tokenizer(models.WordLevel({"x": 0, **dict(SPECIAL)}, unk_token="x"))
    tokenizer.add_special_tokens([name for name, _ in SPECIAL])
    post = processors.TemplateProcessing(template, special_tokens=SPECIAL)
    tokenizer.post_processor = processors.Sequence([post]) if inside else post
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("x").ids
    assert opening_tokens(tmp_path, CODE) == ids[: ids.index(0)]
