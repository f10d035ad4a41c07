"""Files of a tokenizer have the form that libraries count on, before one of them reads them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import UserError
from hvlc.opening.tokenizer import check_tokenizer
from tests.helpers.packages import changed_json


@pytest.fixture
def copied(tiny_w4a16: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_w4a16, tmp_path / "package")


def test_the_tokenizer_of_a_package_passes(tiny_w4a16: Path) -> None:
    check_tokenizer(tiny_w4a16)


def post(**processor: Any) -> Callable[[Any], None]:
    return lambda c: c.update(post_processor={"type": "TemplateProcessing", **processor})


BROKEN: dict[str, Callable[[Any], object]] = {
    "no model": lambda c: c.pop("model"),
    "a model that is not one": lambda c: c.update(model=[1]),
    "a model of another type": lambda c: c["model"].update(type="Evil"),
    "no vocabulary": lambda c: c["model"].pop("vocab"),
    "an id that is text": lambda c: c["model"]["vocab"].update(x="1"),
    "an id below 0": lambda c: c["model"]["vocab"].update(x=-1),
    "an id without end": lambda c: c["model"]["vocab"].update(x=2**31),
    "pieces without scores": lambda c: c["model"].update(vocab=[["a"]]),
    "merges of three": lambda c: c["model"].update(merges=[["a", "b", "c"]]),
    "merges of numbers": lambda c: c["model"].update(merges=[1]),
    "an added token without an id": lambda c: c["added_tokens"].append({"content": "x"}),
    "an added token that is a number": lambda c: c["added_tokens"].append(1),
    "processors that are not a list": lambda c: c.update(post_processor={"processors": 1}),
    "a template without special tokens": post(single=[]),
    "a template of texts": post(single=["x"], special_tokens={}),
    "a template of an unknown token": post(single=[{"SpecialToken": {"id": "x"}}], special_tokens={}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_another_form_is_refused(copied: Path, case: str) -> None:
    changed_json(copied / "tokenizer.json", BROKEN[case])
    with pytest.raises(UserError) as error:
        check_tokenizer(copied)
    assert error.value.code == "package.tokenizer"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"[1]", b"\xff", b"{", json.dumps({"a": 1}).encode()[:-1], b"[" * 5000])
def test_damaged_files_are_refused(copied: Path, name: str, content: bytes) -> None:
    (copied / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        check_tokenizer(copied)
    assert error.value.code == "package.tokenizer"


def test_a_template_that_is_not_text_is_refused(copied: Path) -> None:
    (copied / "chat_template.jinja").write_bytes(b"{{ '\xe2\x28' }}")
    with pytest.raises(UserError) as error:
        check_tokenizer(copied)
    assert error.value.code == "package.template"


def test_a_template_that_the_runtime_would_cut_is_refused(copied: Path) -> None:
    (copied / "chat_template.jinja").write_bytes(b"{{ messages[0]['content'] }}\0 and more")
    with pytest.raises(UserError, match="NUL") as error:
        check_tokenizer(copied)
    assert error.value.code == "package.template"
