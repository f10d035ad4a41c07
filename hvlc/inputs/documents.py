"""JSON, YAML and TOML files, read strictly."""

import json
import tomllib
from pathlib import Path
from typing import Any

import yaml

from hvlc.errors import UserError


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys instead of keeping the last one."""


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    repeated = {str(key) for key in keys if keys.count(key) > 1}
    if repeated:
        raise yaml.constructor.ConstructorError(
            None, None, f"duplicate key {', '.join(sorted(repeated))}", node.start_mark
        )
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def read_yaml(path: Path) -> Any:
    """Parsed YAML, without code execution and without duplicate keys.

    Raises:
        UserError: unreadable or malformed.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 - derived from SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError("spec.unreadable", f"{path}: {error}", "check the path and the YAML syntax") from error


def yaml_line(text: str, *path: str | int) -> int:
    """The line, from 1, on which a value begins.

    Args:
        text: the YAML.
        path: keys and indices that lead to the value.

    Raises:
        KeyError: nothing is there.
    """
    node = yaml.compose(text, Loader=_StrictLoader)
    for part in path:
        node = _child(node, part)
        if node is None:
            raise KeyError(part)
    return node.start_mark.line + 1 if node else 1


def _child(node: yaml.Node | None, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and 0 <= part < len(node.value):
        return node.value[part]
    return None


def dump_yaml(data: Any) -> str:
    """Plain values as YAML, keys in their order, the innermost collections on a line each."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def read_toml(path: Path) -> Any:
    """Parsed TOML.

    Raises:
        UserError: unreadable or malformed.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError("spec.unreadable", f"{path}: {error}", "check the path and the TOML syntax") from error


def read_json(path: Path, code: str) -> Any:
    """Parsed JSON of a file, any failure as a `UserError` with `code`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(code, f"cannot read {path}: {error}", "check the directory") from error
