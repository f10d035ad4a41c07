"""A recipe that extends another is the other with what it says itself: one document, whoever said what."""

import json
from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.recipes import loading
from hvlc.recipes.loading import load_recipe, parse_recipe, recipe_text, shipped_recipes

RESOLVED = json.loads(Path(__file__).with_name("resolved.json").read_text("utf-8"))
HEAD = "schema_version: 1\nextends: w4a16\nname: mine\ndescription: one line\n"
INT8 = "{bits: 8, block_size: 16}"


def write(directory: Path, text: str) -> str:
    path = directory / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_is_what_it_was(name: str) -> None:
    """The documents from before recipes could extend each other (rewrite the file when a recipe is meant to change)."""
    assert load_recipe(name).model_dump(mode="json", exclude_defaults=True) == RESOLVED[name]


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_text_of_a_recipe_needs_no_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, recipe = recipe_text(name), load_recipe(name)
    monkeypatch.setattr(loading, "shipped_recipes", dict)
    assert parse_recipe(text, "text") == recipe


def test_a_recipe_that_extends_nothing_keeps_its_text(tmp_path: Path) -> None:
    text = "# mine\nschema_version: 1\nname: mine\ndescription: one line\n"
    assert recipe_text(write(tmp_path, text)) == text


def test_settings_are_merged_key_by_key(tmp_path: Path) -> None:
    mine = load_recipe(write(tmp_path, HEAD + "kv_cache: int8\ncalibration: {samples: 7}\n"))
    base = load_recipe("w4a16")
    assert (mine.name, mine.description, mine.kv_cache) == ("mine", "one line", "int8")
    assert (mine.calibration.samples, mine.calibration.tokens) == (7, base.calibration.tokens)
    assert mine.rules == base.rules


def test_a_rule_for_the_same_weights_takes_the_others_place(tmp_path: Path) -> None:
    rule = f"{{role: decoder, weights: lm_head.weight, quantize: {INT8}}}"
    mine = load_recipe(write(tmp_path, HEAD + f"rules: [{rule}]\n"))
    base = load_recipe("w4a16")
    assert [(r.role, r.weights) for r in mine.rules] == [(r.role, r.weights) for r in base.rules]
    assert mine.rules[1].quantize.bits == 8
    assert [*mine.rules[:1], *mine.rules[2:]] == [*base.rules[:1], *base.rules[2:]]


def test_a_rule_for_other_weights_decides_before_all_others(tmp_path: Path) -> None:
    mine = load_recipe(
        write(tmp_path, HEAD + f"rules: [{{role: decoder, weights: '*.o_proj.weight', quantize: {INT8}}}]\n")
    )
    assert mine.rules[0].weights == "*.o_proj.weight"
    assert mine.rules[1:] == load_recipe("w4a16").rules


@pytest.mark.parametrize(
    ("text", "code", "complaint"),
    [
        (HEAD.replace("w4a16", "w4a61"), "recipe.extends", "no recipe 'w4a61'"),
        (HEAD.replace("w4a16", "mine.yaml"), "recipe.extends", "no recipe 'mine.yaml'"),
        (HEAD.replace("w4a16", "[w4a16]"), "recipe.extends", "no recipe"),
        (HEAD.replace("name: mine\n", ""), "spec.invalid", "name missing"),
        (HEAD.replace("description: one line\n", ""), "spec.invalid", "description missing"),
        (HEAD + "rules: 3\n", "spec.invalid", "rules"),
        (HEAD + "rules: [3]\n", "spec.invalid", "rules"),
        (HEAD + "kv_cash: int8\n", "spec.invalid", "kv_cash: unknown key"),
    ],
)
def test_a_wrong_extension_is_refused(tmp_path: Path, text: str, code: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, text))
    assert caught.value.code == code
    assert complaint in caught.value.cause
    assert "mine.yaml" in caught.value.cause


def test_a_circle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(HEAD.replace("w4a16", base).replace("mine", name))
    monkeypatch.setattr(loading, "shipped_recipes", lambda: {n: tmp_path / f"{n}.yaml" for n in "ab"})
    with pytest.raises(UserError, match="extends itself"):
        load_recipe("a")
