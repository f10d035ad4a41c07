"""A request is obeyed or refused with its reason, whatever bytes it has."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.errors import UserError
from hvlc.serving.requests import ChatRequest, parse_request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [*ChatRequest.model_fields, "n", "tools", "user", "logit_bias", "unknown"]


def request(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}).encode()


@given(st.binary(max_size=64))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    with pytest.raises(UserError) as refused:
        parse_request(data)
    assert refused.value.code == "request.body"


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
def test_any_object_is_a_request_or_refused(fields: dict[str, Any]) -> None:
    data = request(**fields)
    try:
        found = parse_request(data)
    except UserError:
        with pytest.raises(UserError, match=r"^\[request\.(body|unsupported)\]"):
            parse_request(data)
    else:
        assert found.messages[-1].role == "user"


def test_the_words_of_the_protocol_are_hvlcs() -> None:
    found = parse_request(request(max_tokens=9, max_completion_tokens=7, stop="x", temperature=0, user="me", n=1))
    assert found.new_tokens(100) == 7
    assert found.new_tokens(5) == 5
    assert found.stops == ("x",)
    assert parse_request(request()).new_tokens(64) == 64


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"n": True},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"frequency_penalty": 0.5},
        {"logit_bias": {"1": 2}},
        {"prediction": {"type": "content"}},
    ],
)
def test_what_cannot_be_obeyed_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(fields))) as refused:
        parse_request(request(**fields))
    assert refused.value.code == "request.unsupported"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"unknown": 1}, "unknown"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "last message"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"max_visual_tokens": 0}, "max_visual_tokens"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        parse_request(request(**fields))
    assert refused.value.code == "request.body"


def test_images_are_the_users() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    said = [{"role": "system", "content": [image]}, {"role": "user", "content": "x"}]
    with pytest.raises(UserError, match="not the user's"):
        parse_request(request(messages=said))


def test_a_message_becomes_the_templates() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u", "detail": "high"}}]
    said = [
        {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": " brief"}]},
        {"role": "user", "content": parts, "name": "me"},
    ]
    found = parse_request(request(messages=said))
    assert found.urls == ["u"]
    assert [m.templated() for m in found.messages] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]},
    ]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5000, '{"model": 1e999}', "\ufeff", '{"model": "\\ud800"}'])
def test_json_that_parsers_fail_on_is_refused(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_request(text.encode())
    assert refused.value.code == "request.body"
