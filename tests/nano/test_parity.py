"""The shipped checkpoint: transformers, package and the client without hvlc say the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hvlc.evaluation.documents import DocumentsTask
from hvlc.evaluation.task import Example
from hvlc.export.references import vision_language_checkpoint
from hvlc.models.reference import Reference
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.zoo import nano_checkpoint

ROOT = Path(__file__).parents[2]
DOCUMENTS = 64
CLIENT_DOCUMENTS = 3


@pytest.fixture(scope="module")
def reference() -> Reference:
    """The checkpoint in transformers."""
    return vision_language_checkpoint(nano_checkpoint()).reference("checkpoint")


@pytest.mark.parametrize("vrc", [True, False], ids=["vrc", "full-size"])
@pytest.mark.parametrize("encoder", ["base", "large"])
def test_float32_package_gives_the_tokens_of_transformers(
    packages: dict[str, Path], reference: Reference, encoder: str, vrc: bool
) -> None:
    torch.manual_seed(0)
    model, task = VisionLanguageModel(packages["float32"]), DocumentsTask(DOCUMENTS)
    different = []
    for index in range(DOCUMENTS):
        example = task.example(index)
        settings = {"encoder": encoder, "vrc": vrc, "max_new_tokens": 24}
        ours = model.answer(example.question, example.images, **settings)
        theirs = reference.answer(example.question, example.images, **settings)
        assert ours.prompt_tokens == theirs.prompt_tokens
        if ours.tokens != theirs.tokens:
            different.append((index, ours.text, theirs.text))
    assert different == []


@torch.no_grad()
def whole_chat(reference: Reference, example: Example, answer: str, question: str) -> tuple[list[int], int]:
    """transformers' tokens for a question after an answer about an image, and the length of the prompt."""
    loaded = reference.loaded
    content = [*[{"type": "image"}] * len(example.images), {"type": "text", "text": example.question}]
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    chat.append({"role": "user", "content": question})
    text = loaded.processor.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    inputs = dict(loaded.processor(images=example.images, text=text, scales=loaded.scales(example.images, vrc=True)))
    made = loaded.model.generate(**inputs, **loaded.chosen("base"), max_new_tokens=24, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return made[0, length:].tolist(), length


def test_a_second_question_gives_the_tokens_of_transformers(packages: dict[str, Path], reference: Reference) -> None:
    """Asked what the next document is asked; the chat is rendered, with the answer's text, and tokenized as a whole."""
    model, task = VisionLanguageModel(packages["float32"]), DocumentsTask(DOCUMENTS)
    for index in range(8):
        example, question = task.example(index), task.example(index + 1).question
        first = model.start(example.question, example.images, encoder="base", max_new_tokens=24, room=256)
        answer = "".join(first)
        assert first.ended
        second = model.follow(first, question, max_new_tokens=24)
        assert "".join(second) == second.text
        tokens, length = whole_chat(reference, example, answer, question)
        assert (second.tokens, second.prompt_tokens) == (tokens, length)


@pytest.mark.parametrize("recipe", ["float32", "w4a16"])
@pytest.mark.parametrize("encoder", ["base", "large"])
def test_client_without_hvlc_gives_the_answers_of_hvlc_run(
    packages: dict[str, Path], tmp_path: Path, recipe: str, encoder: str
) -> None:
    model, task = VisionLanguageModel(packages[recipe]), DocumentsTask(CLIENT_DOCUMENTS)
    for index in range(CLIENT_DOCUMENTS):
        example = task.example(index)
        image = tmp_path / f"{index}.png"
        example.images[0].save(image)
        command = [sys.executable, "-I", str(ROOT / "examples" / "ask_package.py"), str(packages[recipe])]
        command += [example.question, str(image), "--encoder", encoder]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        ours = model.answer(example.question, example.images, encoder=encoder, vrc=True, max_new_tokens=64)
        assert printed.rstrip("\n") == ours.text


def test_client_imports_nothing_of_hvlc() -> None:
    source = (ROOT / "examples" / "ask_package.py").read_text("utf-8")
    assert "import hvlc" not in source
    assert "from hvlc" not in source


def test_the_example_in_python_runs(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, ROOT / "examples" / "notebook.py"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    size, answer, reference, quantized = found.stdout.splitlines()
    assert "4.5" in size
    assert "expected" in answer
    assert all("% right" in line for line in (reference, quantized))
