"""The shipped checkpoint for a Snapdragon, its graphs left to the CPU: the tokens of the package for the CPU."""

from pathlib import Path

import pytest

from hvlc.evaluation.documents import DocumentsTask
from hvlc.pipeline.build import build
from hvlc.pipeline.request import BuildRequest
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.zoo import nano_checkpoint

pytestmark = pytest.mark.slow
DOCUMENTS = 16


@pytest.mark.parametrize("recipe", ["float32", "w4a16-rtn"])
def test_a_package_of_fixed_shapes_gives_the_tokens_of_the_dynamic_one(tmp_path: Path, recipe: str) -> None:
    dynamic, fixed = (
        VisionLanguageModel(build(BuildRequest(nano_checkpoint(), target, recipe, tmp_path / target, aot=False)).output)
        for target in ("cpu", "qnn-sm8750")
    )
    task = DocumentsTask(DOCUMENTS)
    different = []
    for index in range(DOCUMENTS):
        example = task.example(index)
        for encoder in ("base", "large"):
            ours, theirs = (
                m.answer(example.question, example.images, encoder=encoder, vrc=True, max_new_tokens=24)
                for m in (fixed, dynamic)
            )
            assert ours.visual_tokens == theirs.visual_tokens
            if ours.tokens != theirs.tokens:
                different.append((index, encoder, ours.text, theirs.text))
    assert different == []
