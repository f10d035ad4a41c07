"""The shipped checkpoint for a Snapdragon, its graphs left to the CPU: the tokens of the package for the CPU."""

from pathlib import Path

import pytest

from hvlc.evaluation.documents import DocumentsTask
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from hvlc.workflows.evaluate.evaluate import Setting, evaluate_directory
from hvlc.zoo import nano_checkpoint

pytestmark = pytest.mark.slow
DOCUMENTS, CACHED = 16, 64


@pytest.mark.parametrize("recipe", ["float32", "w4a16-rtn"])
def test_a_package_of_fixed_shapes_gives_the_tokens_of_the_dynamic_one(tmp_path: Path, recipe: str) -> None:
    dynamic, fixed = (
        VisionLanguageModel(build(open_request(nano_checkpoint(), target, recipe, tmp_path / target, aot=False)).output)
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


def test_a_cache_of_8_bits_costs_no_answer(tmp_path: Path) -> None:
    counts = []
    for recipe in ("npu-w4a16", "npu-w4a16-kv8"):
        package = build(open_request(nano_checkpoint(), "qnn-sm8750", recipe, tmp_path / recipe, aot=False)).output
        found = evaluate_directory(package, DocumentsTask(CACHED), [Setting("large", True)])[0].summary
        counts.append(round(found.exact_match.value * CACHED))
    assert counts[0] > 0.9 * CACHED
    assert abs(counts[1] - counts[0]) <= 1
