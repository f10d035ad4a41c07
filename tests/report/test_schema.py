"""The JSON Schemas of the files that `hvlc eval` writes are in docs/schema, and current."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hvlc.results import Evaluation, Record, TextEvaluation

SCHEMAS = Path(__file__).parents[2] / "docs/schema"
FILES: dict[str, type[Record]] = {"evaluation.json": Evaluation, "text-evaluation.json": TextEvaluation}


def schema(record: type[Record]) -> dict[str, Any]:
    """Of the files that `write_evaluation` makes."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | record.model_json_schema(mode="serialization")


@pytest.mark.parametrize("name", FILES)
def test_the_published_schema_is_that_of_the_record(name: str) -> None:
    path, expected = SCHEMAS / name, json.dumps(schema(FILES[name]), indent=1) + "\n"
    if os.environ.get("HVLC_REGEN") == "1":
        path.write_text(expected, "utf-8")
    assert path.read_text("utf-8") == expected, "HVLC_REGEN=1 rewrites it"


@pytest.mark.parametrize("name", FILES)
def test_a_schema_says_which_record_and_version_it_is(name: str) -> None:
    published = json.loads((SCHEMAS / name).read_text("utf-8"))
    properties = published["properties"]
    assert properties["schema_version"]["const"] == 2
    assert properties["kind"]["const"] in ("questions", "text")
    assert {"schema_version", "kind", "name", "runs_on"} <= set(published["required"])
    assert published["additionalProperties"] is False


def test_what_is_written_fits_its_schema_and_other_things_do_not(evaluation) -> None:
    published = json.loads((SCHEMAS / "evaluation.json").read_text("utf-8"))
    written = json.loads(evaluation(["0", "x"]).model_dump_json())
    jsonschema.validate(written, published)
    for change in ({"schema_version": 1}, {"note": "x"}, {"examples": []}, {"kind": "text"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(written | change, published)
