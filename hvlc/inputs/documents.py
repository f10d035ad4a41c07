"""JSON, YAML and TOML: read strictly, in linear time, within bounds of size, depth and numbers.

One reader for all of them, because each parser fails in its own way on what nobody wrote by hand: integers of
thousands of digits, thousands of brackets, dates that do not exist, aliases that multiply.
"""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hvlc.errors import UserError
from hvlc.files.reading import DOCUMENT, SOURCE, read_text, shown

_DEEPEST = 64  # containers within each other
_TOO_DEEP = f"more than {_DEEPEST} levels within each other"
_LONGEST = 500  # characters of an error
_MOST_DIGITS = 40  # of an integer: tokenizers say int(1e30) where they mean "without bound"
_MOST_NODES = 200_000  # of a YAML document, aliases counted as often as they are used
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
#: Errors that parsers raise besides their own: by numbers, tags, nesting, keys that cannot be hashed.
_PARSER_ERRORS = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError)


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: the JSON.
        unique: refuse an object that has a key twice (of files whose writer we are); otherwise the last one counts.

    Raises:
        ValueError: not JSON or not UTF-8, nested too deeply, an integer of too many digits, half a character, or a
            key that is there twice. `json.JSONDecodeError` where it is not JSON.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    try:
        found = json.loads(text, object_pairs_hook=_unique if unique else None, parse_int=_integer)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check(found, surrogates=_ESCAPED_SURROGATE.search(text) is not None)
    return found


def read_json(path: Path, code: str, *, limit: int = DOCUMENT, unique: bool = False) -> Any:
    """Parsed JSON of a file, any failure as a `UserError` with `code`.

    Args:
        path: the file.
        code: of the error.
        limit: largest size of the file in bytes.
        unique: see `parse_json`.
    """
    text = read_text(path, code, limit=limit, fix="check the directory")
    try:
        return parse_json(text, unique=unique)
    except ValueError as error:
        raise UserError(code, f"cannot read {shown(path)}: {error}", "check the directory") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text: strings, numbers, booleans, lists and mappings; dates stay strings.

    Raises:
        ValueError: not YAML, a tag or key that hvlc does not read, a key that is there twice, or too large.
    """
    return _strictly(lambda: _yaml(text))


def read_yaml(path: Path) -> Any:
    """Parsed YAML of a file, without code execution and without duplicate keys.

    Raises:
        UserError: unreadable or malformed.
    """
    return _read(path, parse_yaml, "YAML")


def yaml_line(text: str, *path: str | int) -> int:
    """The line, from 1, on which a value begins.

    Args:
        text: the YAML.
        path: keys and indices that lead to the value.

    Raises:
        KeyError: nothing is there.
    """
    node = _node(text, path)
    return node.start_mark.line + 1 if node else 1


def yaml_lines(text: str, *path: str | int) -> list[int]:
    """The lines, from 1, on which the elements of a list begin.

    Args:
        text: the YAML.
        path: keys and indices that lead to the list.

    Raises:
        KeyError: nothing is there.
    """
    node = _node(text, path)
    return [element.start_mark.line + 1 for element in node.value] if isinstance(node, yaml.SequenceNode) else []


def _node(text: str, path: tuple[str | int, ...]) -> yaml.Node | None:
    node = yaml.compose(text, Loader=_StrictLoader)
    for part in path:
        node = _child(node, part)
        if node is None:
            raise KeyError(part)
    return node


def dump_yaml(data: Any) -> str:
    """Plain values as YAML, keys in their order, the innermost collections on a line each."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def parse_toml(text: str) -> Any:
    """The value of a TOML text.

    Raises:
        ValueError: not TOML, or too large a number or nesting.
    """
    return _strictly(lambda: tomllib.loads(text))


def read_toml(path: Path) -> Any:
    """Parsed TOML of a file.

    Raises:
        UserError: unreadable or malformed.
    """
    return _read(path, parse_toml, "TOML")


def _read(path: Path, parse: Callable[[str], Any], syntax: str) -> Any:
    fix = f"check the path and the {syntax} syntax"
    text = read_text(path, "spec.unreadable", limit=SOURCE, fix=fix)
    try:
        return parse(text)
    except ValueError as error:
        raise UserError("spec.unreadable", f"{shown(path)}: {error}", fix) from error


def _strictly(parse: Callable[[], Any]) -> Any:
    """Call a parser of YAML or TOML, with its many errors as one ValueError."""
    try:
        found = parse()
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    except (yaml.YAMLError, *_PARSER_ERRORS) as error:
        raise ValueError(_said(error)) from error
    _check(found, surrogates=True)
    return found


def _said(error: Exception) -> str:
    """Message of a parser in a few lines; keys and values that it quotes may be as long as the file."""
    text = str(error)
    if "set_int_max_str_digits" in text:  # Python's advice is for programmers
        return f"an integer of more than {_MOST_DIGITS} digits"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key[:100]!r} is given twice")
            seen.add(key)
    return found


def _check(value: Any, *, surrogates: bool) -> None:
    """Refuse what would break a later step: depth, giant integers, halves of characters; linear in the value's size.

    Raises:
        ValueError: what was found.
    """
    level = [value]
    for _ in range(_DEEPEST + 1):
        below: list[Any] = []
        for found in level:
            if isinstance(found, dict):
                below += found.values()
                if surrogates:
                    below += found
            elif isinstance(found, list):
                below += found
            elif isinstance(found, int):
                if abs(found) >= 10**_MOST_DIGITS:
                    raise ValueError(f"an integer of more than {_MOST_DIGITS} digits")
            elif surrogates and isinstance(found, str):
                found.encode()  # UnicodeEncodeError is a ValueError
        if not below:
            return
        level = below
    raise ValueError(_TOO_DEEP)


class _StrictLoader(yaml.SafeLoader):
    """YAML's core types: no dates, binaries, sets; duplicate keys are refused instead of the last one kept."""


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _yaml(text: str) -> Any:
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_size(node: yaml.Node) -> None:
    """Refuse a document whose aliases multiply, or lead back to themselves; what is counted is bounded."""
    level, count = [node], 0
    for _ in range(_DEEPEST + 1):
        below: list[yaml.Node] = []
        for found in level:
            if isinstance(found, yaml.MappingNode):
                below += (part for pair in found.value for part in pair)
            elif isinstance(found, yaml.SequenceNode):
                below += found.value
            if count + len(below) > _MOST_NODES:
                raise ValueError(f"more than {_MOST_NODES} values, aliases counted as often as they are used")
        count += len(below)
        if not below:
            return
        level = below
    raise ValueError(_TOO_DEEP)


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if isinstance(key, list | dict) or key in seen:
            what = "a key that is a list or mapping" if isinstance(key, list | dict) else f"duplicate key {key}"
            raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def _child(node: yaml.Node | None, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and 0 <= part < len(node.value):
        return node.value[part]
    return None
