"""`--variant`: what a package offers is taken, everything else is named."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvlc.cli.variants import merged
from hvlc.errors import UserError
from tests.helpers.commands import Hvlc, commands
from tests.helpers.tiny import picture

ONE: dict[str, Any] = {"encoder": "auto", "no_vrc": False}
MANY: dict[str, Any] = {"encoders": (), "no_vrc": False}


@pytest.fixture
def hvlc(capsys: pytest.CaptureFixture[str]) -> Iterator[Hvlc]:
    yield from commands(capsys)


@pytest.mark.parametrize(
    ("variants", "options", "expected"),
    [
        ([], ONE, ONE),
        ([("encoder", "base")], ONE, {"encoder": "base", "no_vrc": False}),
        ([("encoder", "base")], ONE | {"encoder": "base"}, {"encoder": "base", "no_vrc": False}),
        ([("vrc", "off")], ONE, {"encoder": "auto", "no_vrc": True}),
        ([("vrc", "on")], ONE, ONE),
        ([("vrc", "off")], ONE | {"no_vrc": True}, {"encoder": "auto", "no_vrc": True}),
        ([("encoder", "base"), ("encoder", "large")], MANY, {"encoders": ("base", "large"), "no_vrc": False}),
        ([("encoder", "base")], MANY | {"encoders": ("base",)}, {"encoders": ("base",), "no_vrc": False}),
    ],
)
def test_variants_are_the_options(variants: list[tuple[str, str]], options: dict[str, Any], expected: Any) -> None:
    assert merged(variants, options) == expected


@pytest.mark.parametrize(
    ("variants", "options"),
    [
        ([("tiles", "4")], ONE),
        ([("vrc", "maybe")], ONE),
        ([("vrc", "on"), ("vrc", "off")], ONE),
        ([("vrc", "on")], ONE | {"no_vrc": True}),
        ([("encoder", "base"), ("encoder", "large")], ONE),
        ([("encoder", "base")], ONE | {"encoder": "large"}),
    ],
)
def test_contradictions_are_refused(variants: list[tuple[str, str]], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"request\.variant"):
        merged(variants, options)


def test_a_package_answers_with_what_is_chosen(hvlc: Hvlc, tiny_float32: Path, tmp_path: Path) -> None:
    picture(40, 60).save(tmp_path / "image.png")
    asked = ["run", tiny_float32, "--prompt", "What?", "--image", tmp_path / "image.png", "--max-new-tokens", 2]
    long = hvlc(*asked, "--variant", "encoder=base", "--variant", "vrc=off", "--json").json
    short = hvlc(*asked, "--encoder", "base", "--no-vrc", "--json").json
    assert long["encoder"] == short["encoder"] == "base"
    assert long["tokens"] == short["tokens"]
    assert long["scales"] == short["scales"] == [1.0]


@pytest.mark.parametrize("wrong", ["encoder=huge", "tiles=4", "encoder", "=base", "vrc=maybe"])
def test_what_a_package_does_not_offer_is_named(hvlc: Hvlc, tiny_float32: Path, wrong: str) -> None:
    found = hvlc("run", tiny_float32, "--prompt", "What?", "--variant", wrong)
    assert found.code == 2
    assert wrong.partition("=")[2] in found.err
