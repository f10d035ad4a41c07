"""Lines of a recipe that a broken gate points at: weights with large errors, and the rules that chose their format."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from hvlc.errors import UserError
from hvlc.files.reading import SOURCE, is_file, read_text
from hvlc.graphs.bundle import Role
from hvlc.graphs.layers import LayerName
from hvlc.manifest.lock import LOCK, Lock
from hvlc.manifest.manifest import MANIFEST
from hvlc.opening.package import open_package
from hvlc.recipes.loading import parse_recipe, recipe_text
from hvlc.recipes.schema import Recipe
from hvlc.results.gates import Origin, RecipeText, Suspect


def worst_weights(package: Path, errors: Iterable[tuple[str, str, float]], *, count: int = 3) -> tuple[Suspect, ...]:
    """The weights of a package with the largest errors, worst first, and the rules that speak of them.

    Args:
        package: what `hvlc build` wrote.
        errors: component, the parameter's dotted name in the checkpoint, and relative root-mean-square error of every
            weight; weights without error are not suspected.
        count: how many at most.

    Raises:
        UserError: the package or its lock is damaged.
    """
    roles = {name: component.role for name, component in open_package(package).manifest.components.items()}
    recipe = _recipe(Lock.load(package).recipe, package)
    worst = sorted((found for found in errors if found[2] > 0), key=lambda found: -found[2])[:count]
    return tuple(
        Suspect(
            layer=_layer(roles[component], weight),
            weight=weight,
            rule_index=_rule_index(recipe, roles[component], weight),
            error=error,
        )
        for component, weight, error in worst
    )


def _layer(role: str, weight: str) -> str:
    found = LayerName.of(weight)
    return f"{role}.layers.{found.index}" if found else role


def _rule_index(recipe: Recipe, role: str, weight: str) -> int | None:
    if role not in list(Role):  # a package of another version
        return None
    matching = (index for index, rule in enumerate(recipe.rules) if rule.matches(Role(role), weight))
    return next(matching, None)


def _recipe(text: str, package: Path) -> Recipe:
    return parse_recipe(text, f"the recipe in {package / LOCK}", "package.lock", "build the package again")


def origin_of(model: Path, suspects: Sequence[Suspect] = (), recipe: Path | None = None) -> Origin:
    """Origin of a model, for locations in SARIF files.

    Args:
        model: a package, a checkpoint, or the file of an evaluation.
        suspects: weights of it with the largest errors.
        recipe: a file that may be the package's recipe.

    Raises:
        UserError: the package's lock is damaged.
    """
    if not is_file(model / LOCK):
        return Origin(path=str(model), suspects=tuple(suspects))
    text = Lock.load(model).recipe
    same = recipe is not None and _text(recipe) == text  # the file's own lines, so not of one that extends another
    found = RecipeText(name=_recipe(text, model).name, text=text, path=str(recipe) if same else None)
    return Origin(path=str(model / MANIFEST), recipe=found, suspects=tuple(suspects))


def require_recipe(recipe: Path, models: Iterable[Path]) -> None:
    """Refuse a recipe file whose lines are not those that any of the models was built by.

    Raises:
        UserError: "gate.recipe", or the file cannot be read.
    """
    packages = [model for model in models if is_file(model / LOCK)]
    texts = {_text(recipe), recipe_text(str(recipe))}
    if all(Lock.load(package).recipe not in texts for package in packages):
        named = ", ".join(map(str, packages)) or "a package with a lock"
        cause = f"{recipe} is not the recipe that {named} was built from"
        raise UserError("gate.recipe", cause, f"build again, or name the file with the recipe in {LOCK}")


def _text(path: Path) -> str:
    return read_text(path, "gate.recipe", limit=SOURCE)
