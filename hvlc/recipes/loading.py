"""Load recipes by name or file, and resolve `extends`.

A recipe extends a shipped recipe, never a user's file: so the resolved document is all that a package has to record.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from hvlc.errors import UserError, nearest
from hvlc.files.reading import SOURCE, read_text
from hvlc.inputs.documents import dump_yaml, parse_yaml, read_yaml
from hvlc.recipes.schema import Recipe

_EXTENDS = "extends"
_OWN = ("name", "description")  # what a recipe says for itself


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with hvlc, by name."""
    directory = Path(str(resources.files("hvlc") / "recipes"))
    return {path.stem: path for path in sorted(directory.glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe, or a user's own file.

    Raises:
        UserError: unknown name.
    """
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    raise UserError("recipe.unknown", f"no recipe {name!r}", nearest(name, shipped))


def recipe_text(name: str) -> str:
    """A recipe by name or path as one YAML document: the file's own text, or the resolved one where it extends another.

    Raises:
        UserError: unknown name, or a file that cannot be read or extends what it must not.
    """
    path = recipe_path(name)
    own = read_yaml(path)
    if not isinstance(own, dict) or _EXTENDS not in own:
        return read_text(path, "spec.unreadable", limit=SOURCE)
    return dump_yaml(_resolved(own, path.name, ()))


def load_recipe(name: str) -> Recipe:
    """A recipe by name or path, with what it extends.

    Raises:
        UserError: unknown name, or an invalid file.
    """
    path = recipe_path(name)
    return Recipe.parse(_resolved(read_yaml(path), path.name, ()), path.name)


def parse_recipe(text: str, source: str, code: str = "spec.unreadable", fix: str = "correct the file") -> Recipe:
    """A recipe from the text that `recipe_text` gave.

    Args:
        text: a YAML document that extends nothing.
        source: where it stands, for errors.
        code: of the error about a text that is not YAML.
        fix: way out of that error.

    Raises:
        UserError: an invalid document.
    """
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(code, f"{source}: {error}", fix) from error
    return Recipe.parse(content, source)


def _resolved(own: Any, source: str, seen: tuple[str, ...]) -> Any:
    """A document merged over what it extends.

    Raises:
        UserError: it extends something unknown or itself, or has no name or description of its own.
    """
    if not isinstance(own, dict) or _EXTENDS not in own:
        return own
    base, shipped = own[_EXTENDS], shipped_recipes()
    if not isinstance(base, str) or base not in shipped:
        raise UserError("recipe.extends", f"{source}: extends: no recipe {base!r}", nearest(str(base), shipped))
    if base in seen:
        raise UserError("recipe.extends", f"{source}: extends itself by way of {base!r}", "extend another recipe")
    missing = [key for key in _OWN if key not in own]
    if missing:
        cause = f"{source}: {' and '.join(missing)} missing; neither comes from {base!r}"
        raise UserError("spec.invalid", cause, f"give it {' and '.join(missing)}")
    under = _resolved(read_yaml(shipped[base]), base, (*seen, base))
    return _merged(under, {key: value for key, value in own.items() if key != _EXTENDS})


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `over`, then those of `under` that it does not have; mappings key by key, rules one by one."""
    both = dict(over) | {key: value for key, value in under.items() if key not in over}
    for key in under.keys() & over.keys():
        if isinstance(under[key], dict) and isinstance(over[key], dict):
            both[key] = _merged(under[key], over[key])
    if isinstance(over.get("rules"), list):
        both["rules"] = _merged_rules(under.get("rules", []), over["rules"])
    return {key: both[key] for key in sorted(both, key=_place)}


def _merged_rules(under: list[Any], over: list[Any]) -> list[Any]:
    """A rule for the same weights takes the other's place; new rules stand first, where they decide before the rest."""
    replacing = {_subject(rule): rule for rule in over}
    kept = [replacing.get(_subject(rule), rule) for rule in under]
    taken = {_subject(rule) for rule in under}
    return [*(rule for rule in over if _subject(rule) not in taken), *kept]


def _subject(rule: Any) -> str:
    """Subject of a rule: its role and weights, as text."""
    return repr((rule.get("role"), rule.get("weights"))) if isinstance(rule, dict) else repr(rule)


def _place(key: str) -> int:
    """Position of a setting in a document: the schema's order, so that a document does not depend on who says what."""
    fields = list(Recipe.model_fields)
    return fields.index(key) if key in fields else len(fields)
