"""Key paths of plain values that differ."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.package.settings import changed_values

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.sampled_from("abc"), max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, [("a.b", "1", "2")]),
        ({}, {"rules": [{"bits": 4}]}, [("rules[0].bits", None, "4")]),
        ({"r": [{"x": 1}]}, {"r": [{"x": 1}, {"y": [3]}]}, [("r[1].y", None, "[3]")]),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, [("a", "[1, 2]", "[1, 2, 3]")]),
        ({"a": 1}, {"a": True}, [("a", "1", "true")]),
        ({"a": {}}, {}, [("a", "{}", None)]),
        ({"a": None}, {}, [("a", "null", None)]),
    ],
)
def test_paths_lead_to_what_differs(a: Any, b: Any, expected: list[tuple[str, str | None, str | None]]) -> None:
    assert [(change.key, change.a, change.b) for change in changed_values(a, b)] == expected


@given(a=st.dictionaries(st.text(max_size=2), PLAIN, max_size=4))
def test_equal_values_have_no_path(a: dict[str, Any]) -> None:
    assert not list(changed_values(a, dict(reversed(a.items()))))


@given(a=PLAIN, b=PLAIN)
def test_different_values_have_a_path_and_swapping_swaps(a: Any, b: Any) -> None:
    there, back = list(changed_values(a, b)), list(changed_values(b, a))
    assert {(c.key, c.a, c.b) for c in there} == {(c.key, c.b, c.a) for c in back}
    assert bool(there) == (json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True))
