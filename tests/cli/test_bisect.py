"""`hvlc bisect`: exit codes, JSON, and the files that it writes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hvlc.results.bisection import Bisection
from tests.helpers.commands import Hvlc
from tests.helpers.faults import planted
from tests.helpers.tiny import picture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(hvlc: Hvlc) -> Run:
    """Exit code, stdout and stderr of `hvlc bisect ARGUMENTS`."""
    return lambda *arguments: hvlc("bisect", *arguments, "--max-new-tokens", "4")


def test_a_package_that_departs_ends_with_4_and_files(
    run: Run, tiny_float32: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    package = planted("scaled projector weight", tiny_float32, tmp_path / "package")
    picture(40, 70).save(tmp_path / "image.png")
    asked = [package, "--reference", tiny_checkpoint, "--image", tmp_path / "image.png", "--prompt", "What is it?"]
    code, out, err = run(*asked, "-o", tmp_path / "out", "--json")
    assert (code, err) == (4, "")
    found = Bisection.model_validate_json(out)
    assert found.departs == "projector"
    assert found.images == ("image.png",)  # no path of a machine
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"bisect.json", "bisect.md", "bisect.svg", "bisect.png"}
    assert Bisection.model_validate_json(files["bisect.json"]) == found
    assert files["bisect.md"].startswith(b"### package departs from checkpoint at projector")
    code, _, err = run(*asked, "-o", tmp_path / "out")
    assert code == 2
    assert "output.exists" in err


def test_a_package_that_is_right_ends_with_0(run: Run, tiny_w4a16: Path, tiny_checkpoint: Path) -> None:
    code, out, err = run(tiny_w4a16, "--reference", tiny_checkpoint, "--prompt", "What is it?")
    assert (code, err) == (0, "")
    assert "does not depart from checkpoint" in out
    assert "decoder.layers.1" in out


def test_bad_input_has_a_code_and_ends_with_2(run: Run, tiny_w4a16: Path, tmp_path: Path) -> None:
    asked = [tiny_w4a16, "--prompt", "What is it?", "--json"]
    for more, code in (
        (["--reference", tmp_path], "bisect.reference"),
        (["--reference", tiny_w4a16, "--image", tmp_path / "none.png"], "image.missing"),
        ([], "usage"),
    ):
        exit_code, out, _ = run(*asked, *more)
        assert (exit_code, json.loads(out)["error"]["code"]) == (2, code)
