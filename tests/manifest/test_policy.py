"""The first rule that holds chooses the encoder; rules that cannot hold, or lack what they read, are refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hvlc.errors import UserError
from hvlc.manifest.policy import Circumstances, EncoderPolicy, ImageStatistics, PolicyRule

COSTS = {"base": 2.0, "large": 10.0}
#: Conditions, and requests below, at and above them: statement, images, whether it holds.
CASES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], bool]] = [
    ({"task_tag": "ocr"}, {"task_tag": "ocr"}, {}, True),
    ({"task_tag": "ocr"}, {"task_tag": "chat"}, {}, False),
    ({"task_tag": "ocr"}, {}, {}, False),
    ({"device_class": "phone"}, {"device_class": "phone"}, {}, True),
    ({"device_class": "phone"}, {"task_tag": "phone"}, {}, False),
    ({"above_visual_tokens": 10}, {}, {"visual_tokens": 10}, False),
    ({"above_visual_tokens": 10}, {}, {"visual_tokens": 11}, True),
    ({"below_pixels": 100}, {}, {"pixels": 99}, True),
    ({"below_pixels": 100}, {}, {"pixels": 100}, False),
    ({"above_aspect": 3}, {}, {"aspect": 3.5}, True),
    ({"above_aspect": 3}, {}, {"aspect": 3.0}, False),
    ({"below_scale": 0.5}, {}, {"scale": 0.4}, True),
    ({"below_scale": 0.5}, {}, {"scale": 0.5}, False),
    ({"fits_latency": True}, {"latency_ms": 30.0}, {"pieces": 3}, True),
    ({"fits_latency": True}, {"latency_ms": 29.0}, {"pieces": 3}, False),
    ({"fits_latency": True}, {}, {"pieces": 1}, False),
    ({"task_tag": "ocr", "above_pixels": 9}, {"task_tag": "ocr"}, {"pixels": 9}, False),
    ({"task_tag": "ocr", "above_pixels": 9}, {"task_tag": "ocr"}, {"pixels": 10}, True),
]


@pytest.mark.parametrize(("conditions", "stated", "images", "holds"), CASES)
def test_a_rule_holds_where_every_condition_does(
    conditions: dict[str, Any], stated: dict[str, Any], images: dict[str, Any], holds: bool
) -> None:
    rules = (PolicyRule(encoder="large", **conditions),)
    policy = EncoderPolicy(default="base", rules=rules, milliseconds_per_piece=COSTS)
    chosen = policy.choose(Circumstances(**stated), ImageStatistics(**images))
    assert chosen == ("large" if holds else "base")


rules = st.builds(
    lambda name, tokens, tag: PolicyRule(encoder=name, above_visual_tokens=tokens, task_tag=tag),
    st.sampled_from(["base", "large", "huge"]),
    st.integers(0, 20),
    st.sampled_from([None, "ocr", "chat"]),
)


@given(st.lists(rules, max_size=5), st.integers(0, 22), st.sampled_from([None, "ocr", "chat"]))
def test_the_first_rule_that_holds_decides(given_rules: list[PolicyRule], tokens: int, tag: str | None) -> None:
    policy = EncoderPolicy(default="base", rules=tuple(given_rules))
    expected = "base"
    for rule in reversed(given_rules):
        assert rule.above_visual_tokens is not None
        if tokens > rule.above_visual_tokens and rule.task_tag in (None, tag):
            expected = rule.encoder
    assert policy.choose(Circumstances(tag), ImageStatistics(visual_tokens=tokens)) == expected
    assert EncoderPolicy.parse(policy.model_dump(mode="json"), "again") == policy


def test_policies_of_before_are_read_and_written_as_they_were() -> None:
    plain = {"default": "base", "rules": []}
    ruled = {"default": "base", "rules": [{"encoder": "large", "above_visual_tokens": 10}]}
    for old in (plain, ruled):
        assert EncoderPolicy.model_validate(old).model_dump(mode="json") == old


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({}, "without a condition"),
        ({"fits_latency": True}, "milliseconds_per_piece of large"),
        ({"above_pixels": 10, "below_pixels": 10}, "no request is between"),
        ({"task": "ocr"}, "task_tag"),
        ({"above_scale": 1.0}, "less than 1"),
        ({"above_pixels": -1}, "greater than or equal to 0"),
        ({"task_tag": ""}, "at least 1 character"),
    ],
)
def test_wrong_rules_are_refused_with_the_reason(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        EncoderPolicy.parse({"default": "base", "rules": [{"encoder": "large", **rule}]}, "mine.yaml")
    assert error.value.code == "spec.invalid"
    assert "mine.yaml" in str(error.value)


@pytest.mark.parametrize("cost", [0, -1, float("nan"), float("inf")])
def test_a_cost_is_a_positive_number(cost: float) -> None:
    with pytest.raises(ValidationError):
        EncoderPolicy(default="base", milliseconds_per_piece={"base": cost})
