"""Load target files: shipped targets, a user's own TOML file, and the family files that they extend."""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from hvlc.errors import UserError, nearest
from hvlc.files.reading import SOURCE, read_text
from hvlc.inputs.documents import read_toml
from hvlc.targets.schema import Target

_FAMILIES = "families"
_CPU = "cpu"  # what runs beside every target


def _directory() -> Path:
    return Path(str(resources.files("hvlc") / "targets"))


def shipped_targets() -> dict[str, Path]:
    """The targets that come with hvlc, by name."""
    return {path.stem: path for path in sorted(_directory().glob("*.toml"))}


def target_path(name: str) -> Path:
    """The file of a shipped target, or a user's own file.

    Raises:
        UserError: unknown name.
    """
    shipped = shipped_targets()
    path = shipped.get(name) or (Path(name) if name.endswith(".toml") else None)
    if path is None:
        raise UserError("target.unknown", f"no target {name!r}", nearest(name, shipped))
    return path


def load_target(name: str) -> Target:
    """A target by name or path, with what it extends.

    Raises:
        UserError: unknown name, or an invalid file.
    """
    path = target_path(name)
    return Target.parse(_resolved(read_toml(path), path, ()), path.name)


def target_text(name: str) -> str:
    """The text of a target's own file, by name or path; what it extends is part of hvlc.

    Raises:
        UserError: unknown name, or a file that cannot be read.
    """
    return read_text(target_path(name), "spec.unreadable", limit=SOURCE)


def target_for(role: str, target: Target) -> Target:
    """Target of a component of a role: the CPU where the target leaves the role, or nodes of it, to that."""
    return _cpu() if target.partial or target.leaves_to_cpu(role) else target


@cache
def _cpu() -> Target:
    return load_target(_CPU)


def _resolved(own: dict[str, Any], path: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    """A file's content over what it extends.

    A file extends a shipped target or a family, never a file of the user: so its own text and hvlc's code are all that
    a package must remember of it.

    Raises:
        UserError: it extends something unknown, or itself.
    """
    base = own.get("extends")
    if not isinstance(base, str):
        return own
    families = {found.stem: found for found in sorted((_directory() / _FAMILIES).glob("*.toml"))}
    known = {**shipped_targets(), **families}
    if base not in known:
        raise UserError("target.extends", f"{path.name}: extends: no target {base!r}", nearest(base, known))
    if base in seen:
        raise UserError("target.extends", f"{path.name}: extends itself by way of {base!r}", "extend another target")
    under = _resolved(read_toml(known[base]), known[base], (*seen, base))
    return _merged({key: value for key, value in under.items() if key != "extends"}, own)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables key by key; anything else is replaced."""
    both = {
        key: _merged(under[key], over[key])
        for key in under.keys() & over.keys()
        if isinstance(under[key], dict) and isinstance(over[key], dict)
    }
    return {**under, **over, **both}
