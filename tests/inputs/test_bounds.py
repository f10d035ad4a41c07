"""Every number of a recipe and of a target has a smallest and a largest value."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from hvlc.errors import UserError
from hvlc.inputs.records import StrictModel
from hvlc.recipes.loading import load_recipe
from hvlc.recipes.schema import Recipe
from hvlc.targets.loading import load_target
from hvlc.targets.schema import Target


def unbounded(model: type[BaseModel]) -> list[str]:
    return sorted(set(_loose(model.model_json_schema(), model.__name__)))


def _loose(schema: Any, path: str) -> Iterator[str]:
    if isinstance(schema, list):
        for part in schema:
            yield from _loose(part, path)
    if not isinstance(schema, dict):
        return
    if schema.get("type") in ("integer", "number") and not ({"const", "enum"} & schema.keys()):
        below = {"minimum", "exclusiveMinimum"} & schema.keys()
        above = {"maximum", "exclusiveMaximum"} & schema.keys()
        if not (below and above):
            yield path
    for name, part in schema.items():
        if name != "default":
            yield from _loose(part, name if name.islower() and name not in ("items", "anyof", "properties") else path)


@pytest.mark.parametrize("model", [Recipe, Target])
def test_every_number_has_bounds(model: type[BaseModel]) -> None:
    assert unbounded(model) == []


def test_a_number_without_bounds_is_found() -> None:
    class Loose(StrictModel):
        free: int
        below: float = Field(ge=0)
        within: list[dict[str, int]]
        held: int = Field(ge=0, le=1)

    assert unbounded(Loose) == ["below", "free", "within"]


RECIPE = """
schema_version: 1
name: mine
description: d
calibration: {{samples: {number}, tokens: {number}}}
prepare: {{rotate: {{seed: {number}}}, smooth: {{exponent: {number}}}, awq: {{exponents: {number}, rows: {number}}}}}
budget: {{bits_per_weight: {number}, samples: {number}, tokens: {number}}}
rules:
- role: decoder
  quantize: {{bits: {number}, block_size: {number}, solver: gptq, options: {{damping: {number}}}}}
"""
TARGET = """
extends = "qnn-sm8750"
context = {number}
prompt_chunk = {number}
max_rank = {number}
part_bytes = {number}
soc_model = {number}
gather_bits = [{number}]
[rules.mine]
operators = ["Add"]
reason = "r"
evidence = "read"
source = "s"
when.inputs = [{{at = {number}, scale = {number}, rank = {number}}}]
"""
NUMBERS = [
    "-1",
    "99999999999999999999",
    "1e999",
    "-1e999",
    "9" * 5000,
    ".nan",
    "nan",
    "inf",
    ".inf",
    "0x10000000000000000",
]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("kind", "content"), [("yaml", RECIPE), ("toml", TARGET)])
def test_numbers_out_of_bounds_are_refused_together(tmp_path: Any, kind: str, content: str, number: str) -> None:
    path = tmp_path / f"mine.{kind}"
    path.write_text(content.format(number=number))
    with pytest.raises(UserError) as error:
        load_recipe(str(path)) if kind == "yaml" else load_target(str(path))
    assert error.value.code in ("spec.invalid", "spec.unreadable")
    if number in ("-1", "99999999999999999999"):
        assert error.value.cause.count("; ") >= 4
    assert len(error.value.cause) < 6000
