"""Calibration feeds what packages and transformers feed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from hvlc.calibration.prompts import Prompts
from hvlc.errors import UserError
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.training.tokenizer import build_nano_tokenizer, special_token_id
from tests.calibration.conftest import END, READS, SEES
from tests.helpers.tiny import picture

CHATML = (
    "{%- for message in messages -%}\n"
    "    {%- if loop.first and message['role'] != 'system' -%}{{ bos_token }}{%- endif -%}\n"
    "{{ '<|user|>' + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}\n"
    "{%- if loop.index > 20 -%}{%- break -%}{%- endif -%}\n"
    "{% endfor %}\n"
    "  {% if messages %}\n  {% endif %}\n"  # lines of blocks alone leave nothing
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def saved(directory: Path, template: str | None, opening: bool = False) -> Path:
    tokenizer = build_nano_tokenizer()
    tokenizer.chat_template = template
    if opening:
        first = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)])
        tokenizer.backend_tokenizer.post_processor = first
    tokenizer.save_pretrained(directory)
    return directory


def code_of(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    return error.value.code


@pytest.mark.parametrize(("height", "width"), [(40, 40), (50, 90), (100, 30)])
@pytest.mark.parametrize("question", ["Total?", " Größe <|im_end|> ? \n", "?"])
def test_an_image_question_is_what_a_package_is_fed(
    tiny_checkpoint: Path, tiny_float32: Path, height: int, width: int, question: str
) -> None:
    model = VisionLanguageModel(tiny_float32)
    seen = model._vision.see(np.asarray(picture(height, width)), compress=False)
    fed = model.prompt_ids(question, [seen])
    prompt = Prompts(tiny_checkpoint, SEES).image(question, None)
    assert prompt.ids(seen.ids).tolist() == fed.tolist()
    assert prompt.length + len(seen.ids) == len(fed)


def test_a_text_question_is_what_a_package_is_fed(tiny_checkpoint: Path, tiny_float32: Path) -> None:
    fed = VisionLanguageModel(tiny_float32).prompt_ids("What is 2 + 2?")
    assert Prompts(tiny_checkpoint, SEES).prompt("What is 2 + 2?", None).tolist() == fed.tolist()


def test_an_answer_follows_and_is_ended(tokenizer_files: Path) -> None:
    prompts = Prompts(tokenizer_files, SEES)
    plain, answered = prompts.image("Total?", None), prompts.image("Total?", "9.90")
    assert answered.before.tolist() == plain.before.tolist()
    assert answered.after.tolist() == [*plain.after.tolist(), *b"9.90", END]
    assert prompts.prompt("a", "b").tolist() == [*prompts.prompt("a", None).tolist(), *b"b", END]


def test_what_the_front_graph_says_stands_in_the_place_of_the_placeholder(tokenizer_files: Path) -> None:
    names = ("<|user|>", "<|vision_start|>", "<|image_pad|>", "<|vision_pad|>", "<|vision_end|>", "<|assistant|>")
    user, start, image, row, end, assistant = map(special_token_id, names)
    seen = [image, image, image, row] * 2
    ids = Prompts(tokenizer_files, SEES).image("a", "b").ids(np.array(seen, np.int64))
    assert ids.tolist() == [user, start, *seen, end, *b"a", END, assistant, *b"b", END]
    assert ids.dtype == np.int64


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Hi  "}],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}],
        [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "Größe\n"}],
    ],
)
def test_chats_are_rendered_as_transformers_renders_them(tmp_path: Path, messages: list[dict[str, str]]) -> None:
    directory = saved(tmp_path / "checkpoint", CHATML)
    expected = AutoTokenizer.from_pretrained(directory, local_files_only=True).apply_chat_template(
        messages, add_generation_prompt=messages[-1]["role"] == "user", tokenize=True, return_dict=False
    )
    assert Prompts(directory, READS).chat(messages).tolist() == list(expected)


def test_the_end_is_the_one_that_the_template_writes(tmp_path: Path) -> None:
    prompts = Prompts(saved(tmp_path / "checkpoint", CHATML), READS)
    assert prompts.prompt("a", "b").tolist()[-1] == END
    assert Prompts(saved(tmp_path / "bare", None), READS).prompt("a", "b").tolist()[-1] == 256


@pytest.mark.parametrize("opening", [False, True])
def test_without_a_template_a_prompt_is_plain_text(tmp_path: Path, opening: bool) -> None:
    directory = saved(tmp_path / "checkpoint", None, opening)
    prompts = Prompts(directory, READS)
    expected = AutoTokenizer.from_pretrained(directory, local_files_only=True)("Once")["input_ids"]
    assert prompts.text("Once").tolist() == prompts.prompt("Once", None).tolist() == expected
    assert prompts.opening == ((256,) if opening else ())
    assert prompts.prompt("Once", "x").tolist() == [*expected, *b"x", 256]
    assert code_of(prompts.chat, [{"role": "user", "content": "a"}]) == "calibration.template"


def test_truncation_that_was_saved_is_not_applied(tokenizer_files: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tokenizer_files, tmp_path / "checkpoint")
    content = json.loads((copied / "tokenizer.json").read_text("utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 4},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    (copied / "tokenizer.json").write_text(json.dumps(content))
    prompts = Prompts(copied, READS)
    assert prompts.encode("abcdef") == list(b"abcdef")
    assert prompts.encode("a") == list(b"a")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[0].nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for %}",
        "{{ messages[0]['content'] + 1 }}",
    ],
)
def test_a_template_that_fails_is_the_users_error(tmp_path: Path, template: str) -> None:
    directory = saved(tmp_path / "checkpoint", template)
    assert code_of(lambda: Prompts(directory, READS).prompt("a", None)) == "calibration.template"


def test_a_template_that_writes_the_date_writes_the_same_every_day(tmp_path: Path) -> None:
    directory = saved(tmp_path / "checkpoint", "{{ strftime_now('%d %B %Y') }} {{ messages | tojson }}")
    text = bytes(Prompts(directory, READS).prompt("<ö>", None).tolist()).decode()
    assert text == '26 July 2024 [{"role": "user", "content": "<ö>"}]'


def test_questions_with_placeholders_are_refused(tokenizer_files: Path) -> None:
    prompts = Prompts(tokenizer_files, SEES)
    assert code_of(prompts.image, "a <|image_pad|>", None) == "calibration.placeholder"
    assert code_of(prompts.image, "a", "<|image_pad|>") == "calibration.placeholder"


def test_a_template_that_drops_the_image_is_refused(tmp_path: Path) -> None:
    dropping = "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}"
    assert code_of(Prompts(saved(tmp_path / "a", dropping), SEES).image, "a", None) == "calibration.template"
    assert code_of(Prompts(saved(tmp_path / "b", None), SEES).image, "a", None) == "calibration.template"


@pytest.mark.parametrize("content", [None, b"{", b"{}", b"\xff"])
def test_a_damaged_tokenizer_is_the_users_error(tokenizer_files: Path, tmp_path: Path, content: bytes | None) -> None:
    copied = shutil.copytree(tokenizer_files, tmp_path / "checkpoint")
    if content is None:
        (copied / "tokenizer.json").unlink()
    else:
        (copied / "tokenizer.json").write_bytes(content)
    assert code_of(Prompts, copied, READS) == "checkpoint.tokenizer"
