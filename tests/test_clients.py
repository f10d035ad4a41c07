"""Clients without hvlc choose the encoder that hvlc chooses."""

import json
import random
import shutil
import subprocess
from typing import Any

import pytest

from hvlc.manifest.policy import Circumstances, EncoderPolicy, ImageStatistics, PolicyRule
from tests.helpers.examples import EXAMPLES, example

NODE = shutil.which("node")
CASES = 500
CHOOSE = """
import { chooseEncoder } from "%s";
let text = "";
for await (const part of process.stdin) text += part;
const chosen = JSON.parse(text).map(({ policy, images, stated }) => chooseEncoder(policy, images, stated));
console.log(JSON.stringify(chosen));
"""


def random_rule(draw: random.Random) -> dict[str, Any]:
    conditions = {
        "task_tag": draw.choice(["chart", "photo"]),
        "device_class": draw.choice(["phone", "server"]),
        "above_visual_tokens": draw.randrange(4),
        "below_visual_tokens": draw.randrange(5, 8),
        "above_pixels": draw.randrange(4),
        "below_pixels": draw.randrange(5, 8),
        "above_aspect": 1 + draw.random(),
        "below_aspect": 2 + draw.random(),
        "above_scale": draw.random() / 2,
        "below_scale": 0.5 + draw.random() / 2,
        "fits_latency": True,
    }
    names = draw.sample(sorted(conditions), draw.randint(1, 3))
    return {"encoder": draw.choice("abc"), **{name: conditions[name] for name in names}}


def random_case(draw: random.Random) -> dict[str, Any]:
    rules = [random_rule(draw) for _ in range(draw.randrange(4))]
    figures = {"visual_tokens": draw.randrange(9), "pieces": draw.randrange(1, 4), "pixels": draw.randrange(9)}
    stated = {"task_tag": "chart", "device_class": "phone", "latency_ms": draw.choice([5.0, 20.0])}
    return {
        "policy": {"default": "d", "rules": rules, "milliseconds_per_piece": {"a": 2.0, "b": 5.0, "c": 10.0}},
        "images": {**figures, "aspect": 1 + 2 * draw.random(), "scale": draw.random()},
        "stated": dict(draw.sample(sorted(stated.items()), draw.randrange(4))),
    }


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [random_case(draw) for _ in range(CASES)]


def expected(case: dict[str, Any], stated: dict[str, Any]) -> str:
    policy = EncoderPolicy.model_validate(case["policy"])
    return policy.choose(Circumstances(**stated), ImageStatistics(**case["images"]))


def test_the_cases_tell_conditions_apart(cases: list[dict[str, Any]]) -> None:
    """Every condition decides one of the cases: without it, hvlc would choose another encoder."""
    deciding = set()
    for case in cases:
        for rule in case["policy"]["rules"]:
            for name in rule.keys() - {"encoder"} if len(rule) > 2 else ():
                rules = [
                    {k: v for k, v in one.items() if one is not rule or k != name} for one in case["policy"]["rules"]
                ]
                other = {**case, "policy": {**case["policy"], "rules": rules}}
                if expected(other, case["stated"]) != expected(case, case["stated"]):
                    deciding.add(name)
    assert deciding == PolicyRule.model_fields.keys() - {"encoder"}


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_browser_client_chooses_as_hvlc_does(cases: list[dict[str, Any]]) -> None:
    script = CHOOSE % (EXAMPLES / "browser" / "package.mjs").as_uri()
    command = [str(NODE), "--input-type=module", "--eval", script]
    found = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == [expected(case, case["stated"]) for case in cases]


def test_the_python_client_chooses_as_hvlc_does(cases: list[dict[str, Any]]) -> None:
    client = example("ask_package.py")
    chosen = [client.choose_encoder(case["policy"], case["images"]) for case in cases]
    assert chosen == [expected(case, {}) for case in cases]
