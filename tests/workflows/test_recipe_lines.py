import shutil
from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.manifest.lock import Lock
from hvlc.recipes.loading import recipe_path
from hvlc.report.sarif import recipe_line
from hvlc.workflows.evaluate.recipe_lines import origin_of, require_recipe, worst_weights
from tests.helpers.measurements import measured

ERRORS = [
    ("model", "model.layers.1.mlp.up_proj.weight", 0.3),
    ("model", "model.layers.0.mlp.up_proj.weight", 0.1),
    ("model", "model.norm.weight", 0.0),
    ("model", "model.embed_tokens.weight", 0.2),
    ("vision_base", "vision_base.layers.4.mlp.fc1.weight", 0.4),
]


def test_the_worst_weights_come_with_the_rule_that_speaks_of_them(tiny_w4a16: Path) -> None:
    found = worst_weights(tiny_w4a16, ERRORS)
    assert [(suspect.layer, suspect.error) for suspect in found] == [
        ("vision_encoder.layers.4", 0.4),
        ("decoder.layers.1", 0.3),
        ("decoder", 0.2),
    ]
    recipe = Lock.load(tiny_w4a16).recipe
    lines = [recipe.splitlines()[recipe_line(recipe, suspect.rule_index or 0) - 1] for suspect in found]
    assert "role: vision_encoder" in lines[0]
    assert "role: decoder" in lines[1]
    assert "embed_tokens" not in lines[1]
    assert [suspect.weight for suspect in worst_weights(tiny_w4a16, ERRORS, count=1)] == [ERRORS[-1][1]]
    assert worst_weights(tiny_w4a16, ERRORS[2:3]) == ()


def test_a_package_knows_its_recipe_and_a_file_may_hold_it(tiny_w4a16: Path, tmp_path: Path) -> None:
    origin = origin_of(tiny_w4a16, recipe=recipe_path("w4a16-rtn"))
    assert origin.path == str(tiny_w4a16 / "hvlc.json")
    assert origin.recipe is not None
    assert (origin.recipe.name, origin.recipe.path) == ("w4a16-rtn", str(recipe_path("w4a16-rtn")))
    other = origin_of(tiny_w4a16, recipe=recipe_path("float32")).recipe
    assert other is not None
    assert other.path is None
    file = tmp_path / "evaluation.json"
    file.write_text(measured([True]).model_dump_json())
    assert (origin_of(file).path, origin_of(file).recipe) == (str(file), None)


def test_lines_of_another_recipe_are_refused(tiny_w4a16: Path, tiny_float32: Path, tmp_path: Path) -> None:
    require_recipe(recipe_path("w4a16-rtn"), [tiny_float32, tiny_w4a16])
    changed = tmp_path / "mine.yaml"
    changed.write_text("# mine\n" + recipe_path("w4a16-rtn").read_text("utf-8"))
    for recipe, models in ((changed, [tiny_w4a16]), (tmp_path / "none.yaml", [tiny_w4a16]), (changed, [tmp_path])):
        with pytest.raises(UserError, match=r"gate\.recipe"):
            require_recipe(recipe, models)


def test_a_damaged_lock_is_an_error(tiny_w4a16: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_w4a16, tmp_path / "package")
    (copy / "hvlc.lock.json").write_text("{")
    with pytest.raises(UserError, match=r"package\.lock"):
        origin_of(copy)
