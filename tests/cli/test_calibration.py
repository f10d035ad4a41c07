"""`hvlc calibration show`."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.export.tiny_families import save_text
from tests.helpers.commands import Hvlc
from tests.helpers.tiny import picture

Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def show(hvlc: Hvlc) -> Show:
    """Exit code, stdout and stderr of `hvlc calibration show ARGUMENTS`."""
    return partial(hvlc, "calibration", "show")


def test_documents_are_counted_as_the_package_counts_them(
    show: Show, tiny_checkpoint: Path, tiny_float32: Path, tmp_path: Path
) -> None:
    from hvlc.inputs.images import to_array
    from hvlc.runtime.generation import VisionLanguageModel

    for number in range(3):
        picture(40 + 30 * number, 60).save(tmp_path / f"{number}.png")
    code, out, _ = show(tmp_path, "--checkpoint", tiny_checkpoint, "--json")
    found = json.loads(out)
    model = VisionLanguageModel(tiny_float32)
    seen = [model._vision.see(to_array(picture(40 + 30 * n, 60)), compress=False) for n in range(3)]
    assert code == 0
    assert found["samples"] == 3
    assert found["tiles"]["total"] == sum(len(s.pieces) for s in seen)
    assert found["visual_tokens"]["total"] == sum(s.visual_tokens for s in seen)
    prompts = [len(model.prompt_ids("Describe the image.", [s])) for s in seen]
    assert found["tokens"]["total"] == sum(prompts)


def test_the_tables_have_counts_shares_and_warnings(show: Show, tiny_checkpoint: Path) -> None:
    code, out, _ = show("documents", "--samples", 4, "--checkpoint", tiny_checkpoint)
    assert code == 0
    for text in ("documents: 4 samples", "visual tokens of an image", "width to height", "share", "%", "4 samples are"):
        assert text in out


def test_a_language_model_reads_the_built_in_text(show: Show, tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "checkpoint", "llama")
    arguments = ("text", "--checkpoint", checkpoint, "--samples", 20, "--tokens", 64)
    code, out, _ = show(*arguments, "--json")
    assert code == 0
    assert json.loads(out)["tokens"] == {"least": 64, "median": 64, "most": 64, "total": 1280}
    assert show(*arguments)[1].count("64") >= 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("txt",), "calibration.unknown"),
        (("documents", "--samples", 1), "calibration.one_sample"),
        (("text", "--tokens", 99999), "calibration.tokens"),
        (("text", "--tokens", 0), "usage"),
        ((), "usage"),
    ],
)
def test_errors_have_a_code(show: Show, tiny_checkpoint: Path, arguments: tuple[object, ...], code: str) -> None:
    exit_code, out, _ = show(*arguments, "--checkpoint", tiny_checkpoint, "--json")
    assert exit_code == 2
    assert json.loads(out)["error"]["code"] == code
