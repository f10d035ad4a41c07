"""JSON, YAML and TOML are read within bounds, and nothing but ValueError comes out of a parser."""

import contextlib
import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.errors import UserError
from hvlc.inputs.documents import (
    dump_yaml,
    parse_json,
    parse_toml,
    parse_yaml,
    read_json,
    read_toml,
    read_yaml,
    yaml_line,
)

NINES = "9" * 5000


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (f'{{"a": {NINES}}}', "5000 digits"),
        (f'{{"a": -{"9" * 41}}}', "digits"),
        ("[" * 66 + "]" * 66, "64 levels"),
        ("[" * 100_000 + "]" * 100_000, "64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "64 levels"),
        (r'["\ud800"]', "surrogates not allowed"),
        (r'{"\uDC00": 1}', "surrogates not allowed"),
        (b'["\xff"]', "utf-8"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_json_that_is_refused(text: str | bytes, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        parse_json(text)


@pytest.mark.parametrize(
    "text", ['{"a": 1000000000000000019884624838656}', "[" * 64 + "]" * 64, r'"\ud83d\ude00"', '{"a": 1, "a": 2}']
)
def test_json_that_is_taken_as_python_takes_it(text: str) -> None:
    assert parse_json(text) == json.loads(text)


def test_a_mark_and_infinity_are_read_as_transformers_writes_them() -> None:
    assert parse_json("\ufeff[1]".encode()) == [1]
    assert parse_json("[0.0, Infinity]") == [0.0, math.inf]


def test_a_key_twice_is_refused_where_hvlc_wrote_the_file() -> None:
    with pytest.raises(ValueError, match="key 'a' is given twice"):
        parse_json('{"a": 1, "a": 2}', unique=True)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(), st.lists, max_leaves=20))
def test_json_round_trips(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (f"a: {NINES}", "digits"),
        (f"a: {'9' * 41}", "40 digits"),
        ("[" * 3000 + "]" * 3000, "levels within each other"),
        ("a: &a [*a]", "levels within each other"),
        ("a: !!bool x", "x"),
        ("a: !!int x", "x"),
        ("a: !!float x", "x"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("{[1]: 2}", "list or mapping"),
        ("{{a: 1}: 2}", "list or mapping"),
        ("a: 1\na: 2", "duplicate key a"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "duplicate key c"),
        ("\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else '1'}]" for i in range(9)), "aliases"),
        ("a: \x01", "special characters"),
        ("a: [", "flow"),
    ],
)
def test_yaml_that_is_refused(text: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 2024-13-45", {"a": "2024-13-45"}),
        ("a: 2024-01-01", {"a": "2024-01-01"}),
        ("a: &x [1, 2.5, true, null]\nb: *x", {"a": [1, 2.5, True, None], "b": [1, 2.5, True, None]}),
    ],
)
def test_yaml_that_is_taken(text: str, value: object) -> None:
    assert parse_yaml(text) == value


def test_yaml_that_is_written_is_read() -> None:
    value = {"a": [1, 2], "b": {"c": "2024-01-01", "d": None}}
    assert parse_yaml(dump_yaml(value)) == value


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (f"a = {NINES}", "digits"),
        (f"a = {'9' * 41}", "40 digits"),
        ("a = " + "[" * 4000 + "]" * 4000, "within each other"),
        ("a = 2024-13-45", "Expected newline"),
        ("a = 1\na = 2", "overwrite"),
        (".".join(["a"] * 100) + " = 1", "levels within each other"),
    ],
)
def test_toml_that_is_refused(text: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        parse_toml(text)


@pytest.mark.parametrize("parse", [parse_json, parse_yaml, parse_toml])
@given(text=st.text(st.sampled_from("[]{}:,-\"'&*!?|>#%@\\ \n\tab1.e+_T="), max_size=60))
def test_nothing_but_a_value_error_comes_out(parse, text: str) -> None:
    with contextlib.suppress(ValueError):
        parse(text)


def test_many_keys_are_read_in_linear_time() -> None:
    def seconds(count: int) -> float:
        text = "{" + ",".join(f'"k{i}":1' for i in range(count)) + "}"
        began = time.process_time()
        assert len(parse_json(text, unique=True)) == count
        return time.process_time() - began

    assert seconds(200_000) < 5  # some 0.2 s; the square of that would be hours


@pytest.mark.parametrize(
    ("read", "content"),
    [
        (lambda path: read_json(path, "thing"), b'{"a": 1}' + b" " * 20_000_000),
        (read_yaml, b"a: 1" + b"\n" * 1_000_000),
        (read_toml, b"a = 1" + b"\n" * 1_000_000),
    ],
)
def test_a_file_beyond_its_bound_is_not_parsed(tmp_path: Path, read, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match="that such a file may have"):
        read(path)


def test_lines_of_values() -> None:
    text = "a: 1\nb:\n  - c: 2\n  - d: 3\n"
    assert yaml_line(text, "b", 1, "d") == 4
    with pytest.raises(KeyError):
        yaml_line(text, "b", 5)
