"""Recipes, on the command line."""

from pathlib import Path

import click

from hvlc.cli.common import json_option, show
from hvlc.cli.options import PLACE, WORDS
from hvlc.cli.streams import say


@click.group(short_help="List, show and check recipes.")
def recipes() -> None:
    """The shipped quantization recipes."""


@recipes.command(name="list", short_help="List the shipped recipes.")
@json_option
def list_recipes(as_json: bool) -> None:
    """Names and descriptions."""
    from hvlc.recipes.loading import load_recipe, shipped_recipes
    from hvlc.report.builds import named_table

    rows = {name: load_recipe(name).description for name in shipped_recipes()}
    show(rows, as_json, lambda console: console.print(named_table(rows)))


@recipes.command(name="show", short_help="Print a recipe with what it extends.")
@click.argument("name", type=WORDS)
@json_option
def show_recipe(name: str, as_json: bool) -> None:
    """The recipe NAME (or a YAML file), checked, with what it extends."""
    from hvlc.recipes.loading import load_recipe, recipe_text

    recipe, text = load_recipe(name), recipe_text(name)
    show(recipe.model_dump(mode="json"), as_json, lambda _: say(text, end=""))


@recipes.command(name="check", short_help="Check a recipe, alone or on a checkpoint.")
@click.argument("name", type=WORDS)
@click.option("--checkpoint", type=PLACE, help="Hold every rule against this checkpoint too.")
@click.option("--target", type=WORDS, default="cpu", show_default=True, help="Name of a target, or a TOML file.")
@json_option
def check_recipe(name: str, checkpoint: Path | None, target: str, as_json: bool) -> None:
    """Check the recipe NAME (or a YAML file): its form, and with --checkpoint every rule, solver and format."""
    from hvlc.recipes.loading import load_recipe
    from hvlc.report.builds import plan_table
    from hvlc.workflows.build.build import plan_build
    from hvlc.workflows.build.request import open_request

    recipe = load_recipe(name)
    if checkpoint is None:
        show({"recipe": recipe.name, "rules": len(recipe.rules)}, as_json, lambda c: c.print(f"{recipe.name}: valid"))
        return
    planned = plan_build(open_request(checkpoint, target, name, Path("package"), anywhere=True), anywhere=True)
    quantized = planned.plan.bits_per_weight(None)
    data = {"recipe": recipe.name, "rules": len(recipe.rules), "bits_per_weight": quantized}
    show(data, as_json, lambda c: c.print(plan_table(planned.plan, planned.estimate, each=False)))
