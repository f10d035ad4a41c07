"""A package answers with the tokens of the torch model, however the image, the encoder and the batch are chosen."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image

from hvlc.errors import UserError
from hvlc.export.references import vision_language_checkpoint
from hvlc.manifest.manifest import MANIFEST
from hvlc.models.reference import Reference
from hvlc.results import Answered
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.settings import VisionSettings
from tests.helpers.packages import changed_graph, renewed
from tests.helpers.tiny import CONTEXT, picture

FAMILIES = ("hypervl",)
SIZES = [(100, 150), (33, 20), (1, 1), (16, 16), (200, 60), (31, 300), (10_000, 50)]
ASKED: dict[str, Any] = {"encoder": "base", "vrc": False, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    torch.set_num_threads(1)
    return vision_language_checkpoint(tiny_checkpoint).reference("checkpoint")


@pytest.fixture(scope="module")
def package(tiny_float32: Path) -> VisionLanguageModel:
    return VisionLanguageModel(tiny_float32, threads=1)


def same(one: Answered, other: Answered) -> bool:
    """Equal tokens and counts; equal text where the tokens are text (random bytes rarely are UTF-8)."""
    fields = ("tokens", "encoder", "tiles", "visual_tokens", "prompt_tokens")
    scales = np.allclose(one.scales, other.scales, atol=1e-6, rtol=0)
    text = one.text == other.text or "\N{REPLACEMENT CHARACTER}" in one.text + other.text
    return text and scales and all(getattr(one, f) == getattr(other, f) for f in fields)


@pytest.mark.parametrize("vrc", [False, True])
@pytest.mark.parametrize("encoder", ["base", "large", "auto"])
@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_those_of_the_torch_model(reference, package, size, encoder: str, vrc: bool) -> None:
    asked = ASKED | {"encoder": encoder, "vrc": vrc}
    expected = reference.answer("What?", [picture(*size)], **asked)
    assert same(package.answer("What?", [picture(*size)], **asked), expected)
    assert expected.visual_tokens > 0


@pytest.mark.parametrize("images", [0, 2, 3])
@pytest.mark.parametrize("prompt", ["What?", "Grüße, 你好!", " two  lines\n", "<|im_end|>"])
def test_any_number_of_images_and_any_text(reference, package, images: int, prompt: str) -> None:
    shown = [picture(40 + 30 * i, 70 - 20 * i, i) for i in range(images)]
    expected = reference.answer(prompt, shown, **ASKED)
    assert same(package.answer(prompt, shown, **ASKED), expected)
    assert expected.encoder == ("base" if images else "")


def test_the_comparison_has_something_to_compare(package) -> None:
    """Answers depend on image, order, encoder and scale; otherwise equal tokens would show little."""
    one, other = picture(100, 150, 1), picture(60, 80, 2)
    answers = [
        package.answer("What?", images, **(ASKED | change)).tokens
        for images, change in [
            ([one], {}),
            ([other], {}),
            ([one, other], {}),
            ([other, one], {}),
            ([one], {"encoder": "large"}),
            ([one], {"vrc": True}),
        ]
    ]
    assert len(set(answers)) >= 5
    assert len({token for answer in answers for token in answer}) > 8


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_tile_batch_changes_nothing(tiny_float32: Path, package, batch: int) -> None:
    other = VisionLanguageModel(tiny_float32, verify=False, vision=VisionSettings(batch), threads=1)
    image = picture(100, 150)
    assert same(other.answer("What?", [image], **ASKED), package.answer("What?", [image], **ASKED))


def test_switching_encoders_back_and_forth(package) -> None:
    image = picture(50, 50)
    answers = [package.answer("What?", [image], **(ASKED | {"encoder": e})).tokens for e in ("base", "large") * 2]
    assert answers[:2] == answers[2:]


@pytest.mark.parametrize("bound", [1, 4, 30])
@pytest.mark.parametrize("size", [(10_000, 50), (100, 150), (1, 1)])
def test_the_bound_of_visual_tokens_holds(package, size: tuple[int, int], bound: int) -> None:
    generation = package.start("What?", [picture(*size)], max_visual_tokens=bound, vrc=False, max_new_tokens=1)
    assert 1 <= generation.images[0].visual_tokens <= bound


def test_the_stream_adds_up_to_the_answer(package) -> None:
    generation = package.start("What?", [picture(50, 50)], max_new_tokens=8)
    assert "".join(generation) == generation.answered.text
    assert len(generation.answered.tokens) <= 8


def test_a_quantized_package_answers_and_is_smaller(tiny_w4a16: Path, tiny_float32: Path) -> None:
    answered = VisionLanguageModel(tiny_w4a16, threads=1).answer("What?", [picture(50, 50)], **ASKED)
    assert answered.tokens
    sizes = [(p / "model.onnx.data").stat().st_size for p in (tiny_w4a16, tiny_float32)]
    assert sizes[0] < 0.5 * sizes[1]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "placeholder in the prompt": ({"prompt": "look: <|image_pad|>"}, "request.placeholder"),
    "unknown encoder": ({"encoder": "larg"}, "request.encoder"),
    "long prompt": ({"prompt": "x" * CONTEXT}, "request.too_long"),
    "long answer": ({"max_new_tokens": CONTEXT}, "request.too_long"),
    "no answer": ({"max_new_tokens": 0}, "request.max_new_tokens"),
    "negative answer": ({"max_new_tokens": -1}, "request.max_new_tokens"),
    "no visual tokens": ({"max_visual_tokens": 0}, "request.max_visual_tokens"),
    "too many visual tokens": ({"max_visual_tokens": 2**63}, "request.max_visual_tokens"),
    "negative bound": ({"max_visual_tokens": -5}, "request.max_visual_tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_cannot_be_answered_is_refused(package, case: str) -> None:
    change, code = REFUSED[case]
    asked = {"prompt": "What?", "images": [picture(30, 30)], "max_new_tokens": 4} | change
    with pytest.raises(UserError) as error:
        package.start(**asked)
    assert error.value.code == code


def test_a_package_whose_template_drops_images_says_so(tiny_float32: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny_float32, tmp_path / "package")
    (copied / "chat_template.jinja").write_text("{% for m in messages %}{{ m['role'] }}{% endfor %}", "utf-8")
    model = VisionLanguageModel(copied, verify=False, threads=1)
    with pytest.raises(UserError, match="shows 0 of 1 images") as error:
        model.start("What?", [picture(30, 30)])
    assert error.value.code == "package.template"


def rewritten(package: Path, copy: Path, **images: Any) -> VisionLanguageModel:
    """A copy whose manifest says something else of images."""
    copied = Path(shutil.copytree(package, copy))
    manifest = json.loads((copied / MANIFEST).read_text("utf-8"))
    manifest["images"] |= images
    (copied / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return VisionLanguageModel(copied, threads=1)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("before", "after"), [("", ""), ("\n\n", ""), ("", "\n\n"), ("Grüße <|im_end|>", " b")])
def test_texts_that_join_an_image_are_encoded_with_the_text_around_it(
    tiny_float32: Path, tmp_path: Path, images: int, before: str, after: str
) -> None:
    model = rewritten(tiny_float32, tmp_path / "package", before=before, after=after)
    seen = [model._vision.see(np.asarray(picture(20 + 30 * i, 40)), compress=False) for i in range(images)]
    content = [{"type": "image"}] * images + [{"type": "text", "text": "What?"}]
    parts = model._tokenizer.rendered([{"role": "user", "content": content}]).split("<|image_pad|>")
    assert len(parts) == images + 1
    expected: list[int] = []
    for index, part in enumerate(parts):
        expected += model._tokenizer.encode(after * (index > 0) + part + before * (index < images))
        expected += seen[index].ids.tolist() if index < images else []
    assert model.prompt_ids("What?", seen).tolist() == expected
    text = [model._tokenizer.encode(joined) for joined in (before, after) if joined]
    assert len(expected) == len(rewritten(tiny_float32, tmp_path / "plain").prompt_ids("What?", seen)) + images * sum(
        map(len, text)
    )


def test_texts_that_join_an_image_are_not_read_without_one(tiny_float32: Path, tmp_path: Path, package) -> None:
    model = rewritten(tiny_float32, tmp_path / "package", before="\n\n", after="\n\n")
    assert model.prompt_ids("What?").tolist() == package.prompt_ids("What?").tolist()


def unbounded(model: onnx.ModelProto) -> None:
    """A front graph that does not obey the caller's bound, as a rule of one form of an image does not."""
    bound = numpy_helper.from_array(np.array([10_000], np.int64), "own_bound")
    model.graph.initializer.append(bound)
    for node in model.graph.node:
        node.input[:] = ["own_bound" if name == "max_visual_tokens" else name for name in node.input]


def test_an_image_that_makes_more_visual_tokens_than_are_allowed_is_refused(tiny_float32: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_float32, tmp_path / "package"))
    changed_graph(copied / "front.onnx", unbounded)
    model = VisionLanguageModel(renewed(copied), threads=1)
    asked = {"images": [picture(100, 60)], "vrc": False, "max_new_tokens": 1}
    made = model.start("What?", **asked, max_visual_tokens=28).images[0].visual_tokens
    assert made == 7 * 4
    with pytest.raises(UserError, match="makes at least 28 visual tokens, and 27 are allowed") as error:
        model.start("What?", **asked, max_visual_tokens=27)
    assert error.value.code == "request.max_visual_tokens"


def more_ids(model: onnx.ModelProto) -> None:
    """A front graph that says every token twice."""
    maker = next(node for node in model.graph.node if "image_ids" in node.output)
    maker.output[:] = ["ids" if name == "image_ids" else name for name in maker.output]
    model.graph.node.append(helper.make_node("Concat", ["ids", "ids"], ["image_ids"], axis=0))


def no_ids(model: onnx.ModelProto) -> None:
    """A front graph that has another token in the place of every placeholder."""
    maker = next(node for node in model.graph.node if "image_ids" in node.output)
    maker.output[:] = ["ids" if name == "image_ids" else name for name in maker.output]
    model.graph.node.append(helper.make_node("Sub", ["ids", "ids"], ["image_ids"]))


@pytest.mark.parametrize(("change", "size"), [(more_ids, (32, 32)), (no_ids, (32, 32)), (more_ids, (40, 40))])
def test_a_front_graph_whose_tokens_are_not_those_of_its_pieces_is_refused(
    tiny_float32: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], size: tuple[int, int]
) -> None:
    copied = Path(shutil.copytree(tiny_float32, tmp_path / "package"))
    changed_graph(copied / "front.onnx", change)
    model = VisionLanguageModel(renewed(copied), threads=1)
    with pytest.raises(UserError, match="visual tokens of") as error:
        model.start("What?", [picture(*size)], vrc=False, max_new_tokens=1)
    assert error.value.code == "package.graph"


def test_the_context_can_be_filled_to_the_last_token(package) -> None:
    used = package.start("", max_new_tokens=1).prompt_tokens
    generation = package.start("x" * (CONTEXT - used - 1), max_new_tokens=1)
    assert generation.prompt_tokens == CONTEXT - 1
    list(generation)
    with pytest.raises(UserError, match="exceed the context"):
        package.start("x" * (CONTEXT - used), max_new_tokens=1)


def test_a_tampered_package_is_not_opened(tiny_float32: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny_float32, tmp_path / "package")
    weights = bytearray((copied / "vision.onnx.data").read_bytes())
    weights[100] ^= 1
    (copied / "vision.onnx.data").write_bytes(weights)
    with pytest.raises(UserError, match=r"vision\.onnx\.data") as error:
        VisionLanguageModel(copied)
    assert error.value.code == "package.digest"
    (copied / MANIFEST).unlink()
    with pytest.raises(UserError) as error:
        VisionLanguageModel(copied)
    assert error.value.code == "package.missing"


def test_text_that_looks_like_code_points_survives_the_stream(package) -> None:
    """Bytes of one character that come as several tokens are joined, not replaced."""
    ids = package.prompt_ids("Grüße", [])
    assert bytes(i for i in ids.tolist() if i < 256).decode() == "Grüße"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_every_mode_can_be_shown(package, mode: str) -> None:
    assert package.answer("What?", [picture(30, 30).convert(mode)], **ASKED).visual_tokens == 4


def test_neither_torch_nor_transformers_is_imported(tiny_float32: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from PIL import Image
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.settings import VisionSettings
model = VisionLanguageModel(Path({str(tiny_float32)!r}), threads=1)
print(len(model.answer("?", [Image.new("RGB", (40, 40))], encoder="auto", vrc=True, max_new_tokens=2).tokens))
sys.exit(" ".join({{"torch", "transformers", "optimum", "onnx_ir"}} & set(sys.modules)) or 0)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip() in ("1", "2")


def test_larger_images_cost_more_visual_tokens(package) -> None:
    counts = [package.answer("?", [Image.new("RGB", (s, s))], **ASKED).visual_tokens for s in (16, 40, 80, 200)]
    assert all(a < b for a, b in pairwise(counts))
