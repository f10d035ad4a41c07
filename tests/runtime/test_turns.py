"""Later turns of a chat: the tokens of transformers for the whole chat, without running again what came before."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from hvlc.errors import UserError
from hvlc.export.references import vision_language_checkpoint
from hvlc.models.loaded import followed
from hvlc.runtime.generation import Generation, LanguageModel, open_model
from hvlc.runtime.turns import text_after
from hvlc.runtime.vision import Encoded, Seen, Vision
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import CONTEXT, save_text
from tests.helpers.fixed_shapes import write_target
from tests.helpers.tiny import picture, save_tiny
from tests.helpers.tiny_naflex import save_naflex
from tests.helpers.tiny_vision_language import save_grid, save_overview, save_pixtral, save_ratio
from tests.helpers.tolerances import GRAPH_FLOAT32

#: The first question and those after it.
QUESTIONS = ("Why?", "And so?", "Grüße, ok?")
NEW = 5
MARK = "\u2020"  # an answer, in chats that are rendered for the text after it

#: transformers' greedy tokens after the first prompt and some ids, and its logits before the first of them.
Goes = Callable[[list[int]], tuple[list[int], np.ndarray]]


def written_after(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Ids that transformers' template puts from the end of an answer to where the next one begins."""
    chat = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", MARK), ("user", question))]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text.partition(MARK)[2], add_special_tokens=False)


def check_chat(model: LanguageModel, first: Generation, tokenizer: PreTrainedTokenizerBase, goes: Goes) -> list[int]:
    """Compare every turn of a chat with transformers' answer to all tokens before it.

    Returns:
        How many tokens each answer has, and so whether it has its end token.
    """
    generation, later, counts = first, list[int](), []
    for question in (*QUESTIONS[1:], None):
        expected, logits = goes(later)
        found = np.array(generation.generator.get_logits(), np.float32).reshape(-1)
        np.testing.assert_allclose(found, logits, atol=GRAPH_FLOAT32 * 10, rtol=0)
        pieces, answer = list(generation), generation.tokens
        assert (answer, generation.text) == (expected, "".join(pieces))
        assert generation.answered.prompt_tokens == first.prompt_tokens + len(later)
        counts.append(len(answer))
        if question is None:
            break
        later += [token for token in answer if token not in first.end_tokens] + written_after(tokenizer, question)
        generation = model.follow(generation, question, max_new_tokens=NEW)
    return counts


def saved_text(directory: Path, family: str, ends: Sequence[int]) -> Path:
    """A text decoder that ends its answers with any of some tokens; 257 is its template's."""
    return save_text(directory, family, eos_token_id=list(ends), max_position_embeddings=192)


def speaks(checkpoint: Path) -> tuple[PreTrainedTokenizerBase, Goes]:
    """A text decoder of transformers, asked the first question."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)

    @torch.no_grad()
    def goes(later: list[int]) -> tuple[list[int], np.ndarray]:
        ids = torch.tensor([prompt + later])
        made = model.generate(ids, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :].tolist()
        return made, model(ids, logits_to_keep=1).logits[0, 0].numpy()

    return tokenizer, goes


#: Targets of text packages: graphs of any shape, and of fixed ones, which run a later question token by token.
TARGETS = ("cpu", "fixed")


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return "cpu" if request.param == "cpu" else write_target(tmp_path_factory.mktemp("target") / "npu.toml")


def packaged(checkpoint: Path, target: str = "cpu") -> LanguageModel:
    output = checkpoint.parent / f"{checkpoint.name}-package"
    return open_model(build(open_request(checkpoint, target, "float32", output, threads=1)).output)


def test_a_text_chat_has_the_tokens_of_transformers(tmp_path: Path, target: str) -> None:
    """Answers that were cut, that ended with the template's token, and that ended with one it does not write."""
    plain = saved_text(tmp_path / "plain", "llama", [257])
    said, _ = speaks(plain)[1]([])
    assert len(set(said)) > 2
    other = next(token for token in said[1:] if token != said[0])
    for name, ends in {"cut": [257], "own": [257, other]}.items():
        checkpoint = saved_text(tmp_path / name, "llama", ends)
        tokenizer, goes = speaks(checkpoint)
        model = packaged(checkpoint, target)
        room = model.room_for(QUESTIONS[0], QUESTIONS[1:], max_new_tokens=NEW)
        first = model.start(QUESTIONS[0], max_new_tokens=NEW, room=room)
        counts = check_chat(model, first, tokenizer, goes)
        assert (counts[0] < NEW) is (name == "own")


@pytest.mark.parametrize("family", ["gemma3_text", "lfm2", "mistral", "qwen3"])
def test_windows_and_states_go_on_too(tmp_path: Path, family: str) -> None:
    checkpoint = saved_text(tmp_path / family, family, [257])
    tokenizer, goes = speaks(checkpoint)
    model = packaged(checkpoint)
    first = model.start(QUESTIONS[0], max_new_tokens=NEW, room=CONTEXT)
    check_chat(model, first, tokenizer, goes)


#: Checkpoints that see; each is a family whose images become tokens, and tokens positions, in another way.
SEEING: dict[str, Callable[[Path], Path]] = {
    "hypervl": save_tiny,
    "smolvlm": save_overview,
    "internvl": save_ratio,
    "qwen2_5_vl": lambda directory: save_grid(directory, "qwen2_5_vl"),
    "qwen3_vl": save_grid,
    "lfm2_vl": save_naflex,
    "lighton_ocr": save_pixtral,
}
IMAGES = {"none": [], "one": [picture(70, 40)], "two": [picture(20, 90), picture(64, 33)]}


@pytest.fixture(scope="module", params=SEEING)
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel]:
    checkpoint = SEEING[request.param](tmp_path_factory.mktemp(request.param) / "checkpoint")
    return checkpoint, packaged(checkpoint)


def sees(checkpoint: Path, images: list[Image.Image]) -> tuple[PreTrainedTokenizerBase, Goes]:
    """A model of transformers, asked the first question about some images."""
    torch.set_num_threads(1)
    loaded = vision_language_checkpoint(checkpoint).reference("checkpoint").loaded
    inputs = loaded.inputs(QUESTIONS[0], images, loaded.scales(images, vrc=False))
    chosen = loaded.chosen(loaded.encoder("auto")) if images else {}

    @torch.no_grad()
    def goes(later: list[int]) -> tuple[list[int], np.ndarray]:
        longer = followed(inputs, torch.tensor([later], dtype=torch.long))
        made = loaded.model.generate(**longer, **chosen, max_new_tokens=NEW, do_sample=False)
        logits = loaded.model(**longer, **chosen, logits_to_keep=1).logits[0, 0].numpy()
        return made[0, longer["input_ids"].shape[1] :].tolist(), logits

    return loaded.processor.tokenizer, goes


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """As many entries as images were encoded."""
    runs: list[None] = []
    encode = Vision.encode

    def counted(vision: Vision, images: Sequence[Seen], encoder: str) -> Encoded:
        runs.extend([None] * len(images))
        return encode(vision, images, encoder)

    monkeypatch.setattr(Vision, "encode", counted)
    return runs


@pytest.mark.parametrize("shown", IMAGES)
def test_a_chat_about_images_encodes_them_once(
    seeing: tuple[Path, LanguageModel], encoded: list[None], shown: str
) -> None:
    checkpoint, model = seeing
    images = IMAGES[shown]
    tokenizer, goes = sees(checkpoint, images)
    room = model.room_for(QUESTIONS[0], QUESTIONS[1:], images=len(images), max_new_tokens=NEW)
    first = model.start(QUESTIONS[0], images, encoder="auto", vrc=False, max_new_tokens=NEW, room=room)
    assert len(encoded) == len(images)
    check_chat(model, first, tokenizer, goes)
    assert len(encoded) == len(images)


#: Components that stay on the CPU beside a decoder of fixed shapes.
NATIVE = ["front", "vision_router", "vision_merger", "embedding", "vision_encoder"]


def test_a_chat_about_an_image_goes_on_in_fixed_shapes(tmp_path: Path) -> None:
    checkpoint = save_grid(tmp_path / "checkpoint")
    target = write_target(tmp_path / "npu.toml", cpu_roles=NATIVE)
    request = open_request(checkpoint, target, "float32", tmp_path / "package", context=512, threads=1)
    model, images = open_model(build(request).output), IMAGES["one"]
    tokenizer, goes = sees(checkpoint, images)
    first = model.start(QUESTIONS[0], images, encoder="auto", vrc=False, max_new_tokens=NEW)
    check_chat(model, first, tokenizer, goes)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return packaged(saved_text(tmp_path_factory.mktemp("language") / "checkpoint", "llama", [257]))


def answered(model: LanguageModel, **asked: Any) -> Generation:
    """A first answer, of one token."""
    generation = model.start(QUESTIONS[0], **{"max_new_tokens": 1, "room": 100} | asked)
    list(generation)
    return generation


def test_the_runtime_leaves_the_last_token_out_unless_logits_are_asked_for(language: LanguageModel) -> None:
    """Why `Generation.append` asks for them. Where this fails, onnxruntime-genai was corrected."""
    logits = []
    for asks in (True, False):
        generation = answered(language, max_new_tokens=3)
        if asks:
            generation.generator.get_logits()
        generation.generator.append_tokens(np.array([65, 66], np.int32))
        logits.append(np.array(generation.generator.get_logits()).reshape(-1))
    prompt = language.prompt_ids(QUESTIONS[0]).tolist() + answered(language, max_new_tokens=3).tokens + [65, 66]
    with torch.no_grad():
        checkpoint = language.directory.parent / "checkpoint"
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        expected = model(torch.tensor([prompt])).logits[0, -1].numpy()
    np.testing.assert_allclose(logits[0], expected, atol=GRAPH_FLOAT32 * 10, rtol=0)
    assert np.abs(logits[1] - expected).max() > 0.01


#: Later turns that are refused, and their codes; the room of the chat has 100 tokens, the context 192.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an image": ({"images": [picture(30, 30)]}, "request.image"),
    "no answer": ({"max_new_tokens": 0}, "request.max_new_tokens"),
    "more than the room": ({"max_new_tokens": 98}, "request.too_long"),
    "a long question": ({"prompt": "x" * 100}, "request.too_long"),
    "a text that would be cut": ({"prompt": "a\0b"}, "request.text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_turn_that_is_refused_leaves_the_chat_as_it_was(language: LanguageModel, case: str) -> None:
    change, code = REFUSED[case]
    first = answered(language)
    with pytest.raises(UserError) as error:
        language.follow(first, **{"prompt": QUESTIONS[1]} | change)
    assert error.value.code == code
    tokens = []
    for generation in (first, answered(language)):
        later = language.follow(generation, QUESTIONS[1], max_new_tokens=NEW)
        list(later)
        tokens.append(later.tokens)
    assert tokens[0] == tokens[1] != []


def test_the_room_is_as_large_as_it_is_said_to_be(language: LanguageModel) -> None:
    room = language.room_for(QUESTIONS[0], QUESTIONS[1:2], max_new_tokens=NEW)
    for missing in (0, 1):
        first = answered(language, room=room - missing)
        if missing:
            with pytest.raises(UserError, match="the room of this chat"):
                language.follow(first, QUESTIONS[1], max_new_tokens=NEW)
        else:
            language.follow(first, QUESTIONS[1], max_new_tokens=NEW)


def test_a_chat_ends_with_the_context(language: LanguageModel) -> None:
    first = answered(language, room=10_000)
    assert first.length == 192
    with pytest.raises(UserError, match="the context, 192") as error:
        language.follow(first, QUESTIONS[1], max_new_tokens=192)
    assert error.value.code == "request.too_long"


def test_an_answer_is_followed_once_and_ends_there(language: LanguageModel) -> None:
    first = language.start(QUESTIONS[0], max_new_tokens=3, room=100)
    next(iter(first))
    language.follow(first, QUESTIONS[1], max_new_tokens=1)
    assert list(first) == []
    with pytest.raises(UserError) as error:
        language.follow(first, QUESTIONS[1])
    assert error.value.code == "request.turn"


def test_a_placeholder_in_a_later_turn_is_refused(tiny_float32: Path) -> None:
    model = open_model(tiny_float32)
    first = answered(model)
    with pytest.raises(UserError) as error:
        model.follow(first, "a <|image_pad|> b")
    assert error.value.code == "request.placeholder"


USER = "{% if m.role == 'user' %}<|user|>{{ m.content }}<|im_end|>{% else %}"
#: Templates that write an earlier answer otherwise than it was given, or nothing of it.
CHANGING = {
    "drops the answer": USER + "<|assistant|><|im_end|>",
    "another beginning": USER + "<|vision_start|>{{ m.content }}<|im_end|>",
    "another answer": USER + "<|assistant|>It was {{ m.content }}<|im_end|>",
    "drops later questions": "{% if m.role == 'user' and loop.first %}<|user|>{{ m.content }}<|im_end|>"
    "{% elif m.role == 'assistant' %}<|assistant|>{{ m.content }}<|im_end|>",
    "drops earlier questions": "{% if m.role == 'user' and loop.last %}<|user|>{{ m.content }}<|im_end|>"
    "{% elif m.role == 'assistant' %}<|assistant|>{{ m.content }}<|im_end|>",
}


def with_template(language: LanguageModel, directory: Path, template: str | None) -> LanguageModel:
    """The package with another template, or none."""
    copied = shutil.copytree(language.directory, directory)
    (copied / "chat_template.jinja").unlink()
    if template is not None:
        (copied / "chat_template.jinja").write_text(template, "utf-8")
    return LanguageModel(copied, verify=False)


@pytest.mark.parametrize("case", CHANGING)
def test_a_template_that_changes_earlier_turns_is_refused(language: LanguageModel, tmp_path: Path, case: str) -> None:
    loop = "{% for m in messages %}" + CHANGING[case] + "{% endif %}{% endfor %}"
    template = loop + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    model = with_template(language, tmp_path / "package", template)
    first = answered(model)
    first.text = "yes"
    with pytest.raises(UserError) as error:
        model.follow(first, QUESTIONS[1])
    assert error.value.code == "package.turns"


def test_a_template_that_wants_contents_in_parts_gets_them(language: LanguageModel, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.content is not string %}{{ m.content[0].text }}{% endif %}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    model = with_template(language, tmp_path / "package", template)
    later = model.follow(answered(model), QUESTIONS[1], max_new_tokens=1)
    assert later.chat[-1]["content"] == [{"type": "text", "text": QUESTIONS[1]}]


def test_a_package_without_a_template_knows_no_turns(language: LanguageModel, tmp_path: Path) -> None:
    model = with_template(language, tmp_path / "package", None)
    with pytest.raises(UserError) as error:
        model.follow(answered(model), QUESTIONS[1])
    assert error.value.code == "package.turns"


@given(st.text(max_size=8), st.text(max_size=4), st.text(max_size=8), st.sampled_from(["", " ", "\n"]))
def test_the_text_after_an_answer_is_found_with_and_without_the_space_around_it(
    answer: str, before: str, after: str, lead: str
) -> None:
    assume(answer.strip() and after == after.lstrip())
    for written in (answer, answer.strip()):
        assert text_after(before + lead + written + after, before, answer) == after


def test_a_chat_that_does_not_begin_with_the_shorter_one_has_no_text_after() -> None:
    assert text_after("axyz", "b", "x") is None
    assert text_after("abx", "a", "x") is None
    assert text_after("a xyz", "a", "x") == "yz"
