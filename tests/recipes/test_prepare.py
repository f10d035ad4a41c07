"""What a recipe may ask to be done to the float model first."""

from pathlib import Path

import pytest
import yaml

from hvlc.errors import UserError
from hvlc.graphs.bundle import Role
from hvlc.recipes.loading import load_recipe
from hvlc.recipes.schema import AwqSpec, Preparation, Recipe, RotateSpec, SmoothSpec

HEAD = "schema_version: 1\nname: mine\ndescription: one line\n"


def recipe(directory: Path, text: str) -> Recipe:
    (directory / "mine.yaml").write_text(HEAD + text)
    return load_recipe(str(directory / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Preparation()),
        ("prepare: {rotate: {}}", Preparation(rotate=RotateSpec(seed=0, heads=True, untie=False))),
        ("prepare: {rotate: {seed: 3, untie: true}}", Preparation(rotate=RotateSpec(seed=3, untie=True))),
        ("prepare: {smooth: {exponent: 0.8}}", Preparation(smooth=SmoothSpec(exponent=0.8))),
        (
            "prepare: {awq: {roles: [decoder, vision_encoder]}}",
            Preparation(awq=AwqSpec(roles=(Role.DECODER, Role.VISION_ENCODER), exponents=20, rows=128)),
        ),
    ],
)
def test_a_preparation_is_read_and_survives_dumping(tmp_path: Path, text: str, expected: Preparation) -> None:
    found = recipe(tmp_path, text)
    assert found.prepare == expected
    assert Recipe.parse(yaml.safe_load(yaml.safe_dump(found.model_dump(mode="json"))), "dumped") == found


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prepare: {rotat: {}}", "prepare.rotat: unknown key, did you mean 'rotate'?"),
        ("prepare: {awq: {exponent: 3}}", "prepare.awq.exponent: unknown key, did you mean 'exponents'?"),
        ("prepare: {awq: {exponents: 1}}", "prepare.awq.exponents: "),
        ("prepare: {awq: {rows: 0}}", "prepare.awq.rows: "),
        ("prepare: {awq: {roles: [decoders]}}", "prepare.awq.roles.0: "),
        ("prepare: {smooth: {exponent: 1.5}}", "prepare.smooth.exponent: "),
        ("prepare: {rotate: {seed: -1}}", "prepare.rotate.seed: "),
        ("prepare: [awq]", "prepare: "),
    ],
)
def test_a_wrong_preparation_is_refused_with_its_key(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        recipe(tmp_path, text)
    assert error.value.code == "spec.invalid"
    assert complaint in error.value.cause
