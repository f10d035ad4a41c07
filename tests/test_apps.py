"""What the page for app developers says of graphs, manifest and runtime is what packages have."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from hvlc.manifest.manifest import SCHEMA, ComponentEntry, Images, Manifest
from hvlc.manifest.policy import PolicyRule
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.helpers.examples import EXAMPLES
from tests.helpers.tiny_naflex import save_naflex
from tests.helpers.tiny_vision_language import save_block, save_grid
from tests.workflows.train.test_vrc import compressor

PAGE = Path(__file__).parents[1] / "docs" / "apps.md"
_TYPES = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT: "float32"}
_TYPES |= {onnx.TensorProto.INT32: "int32"}

#: Component, direction and name; type and dimensions.
Port = tuple[str, str, str]
Signature = tuple[str, tuple[str, ...]]


def tables(text: str) -> dict[str, list[list[str]]]:
    """Rows of each table, without its heading, by the first cell of that."""
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heading, _, *rows = [
            [cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()
        ]
        found[heading[0]] = rows
    return found


def named(rows: list[list[str]]) -> set[str]:
    return {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}


def documented(rows: list[list[str]]) -> dict[Port, Signature]:
    ports = {}
    for component, direction, name, kind, shape, _ in rows:
        ports[component.strip("`"), direction, name.strip("`")] = kind, tuple(shape.split(", "))
    return ports


def general(component: str, name: str) -> tuple[str, str]:
    """Component and port as the page names those that stand for several."""
    if component.startswith("vision_") and component != "vision_fused":
        component = "vision_NAME"
    return component, re.sub(r"\.\d+\.", ".N.", name)


def ports(package: Path) -> Iterator[tuple[Port, Signature]]:
    """Inputs and outputs of every graph of a package."""
    for component, entry in Manifest.load(package).components.items():
        graph = onnx.load(package / entry.file, load_external_data=False).graph
        for direction, values in (("in", graph.input), ("out", graph.output)):
            for value in values:
                kind = value.type.tensor_type
                shape = tuple(dim.dim_param or str(dim.dim_value) for dim in kind.shape.dim)
                general_component, name = general(component, value.name)
                yield (general_component, direction, name), (_TYPES[kind.elem_type], shape)


def matches(word: str, dimension: str, width: str) -> bool:
    """Whether a dimension is the page's: a number, the embedding's width, or any."""
    return dimension == width if word == "embedding" else word == dimension or not word.isdigit()


def departures(page: dict[Port, Signature], package: Path) -> tuple[list[str], set[Port]]:
    """What a package has otherwise than the page, and the rows that it has."""
    found, seen, width = [], set(), str(Manifest.load(package).embedding_width)
    for port, (kind, shape) in ports(package):
        seen.add(port)
        if port not in page:
            found.append(f"{port} is not on the page")
            continue
        told, words = page[port]
        same = len(words) == len(shape) and all(map(matches, words, shape, [width] * len(words)))
        if told != kind or not same:
            found.append(f"{port} is {kind} {shape}, and the page says {told} {words}")
    return found, seen


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_w4a16: Path) -> list[Path]:
    """Packages that have every row of the page among them."""
    root, made = tmp_path_factory.mktemp("apps"), [tiny_w4a16]
    question = compressor(root / "vrc", tiny_checkpoint)
    made.append(build(open_request(tiny_checkpoint, "cpu", "float32", root / "question", vrc=question)).output)
    for save in (save_grid, save_naflex, save_block):
        checkpoint = save(root / save.__name__)
        made.append(build(open_request(checkpoint, "cpu", "float32", root / f"{save.__name__}-package")).output)
    return made


@pytest.fixture(scope="module")
def page() -> dict[str, list[list[str]]]:
    return tables(PAGE.read_text("utf-8"))


def test_graphs_are_those_of_packages(page: dict[str, list[list[str]]], packages: list[Path]) -> None:
    told, everything = documented(page["component"]), set()
    for package in packages:
        found, seen = departures(told, package)
        assert found == []
        everything |= seen
    assert told.keys() - everything == set()


@pytest.mark.parametrize(
    "change",
    [
        ("float32 | 1 | of each side", "float16 | 1 | of each side"),
        ("| int64 | 2 | rows and columns", "| int64 | 3 | rows and columns"),
        ("| `image_ids` | int64 |", "| `ids` | int64 |"),
        ("uint8 | height, width, 3", "uint8 | height, width"),
        ("| float32 | tokens, embedding | a row", "| float32 | embedding, tokens | a row"),
    ],
)
def test_a_stale_row_is_found(change: tuple[str, str], tiny_w4a16: Path) -> None:
    text = PAGE.read_text("utf-8")
    assert text.count(change[0]) == 1
    found, _ = departures(documented(tables(text.replace(*change))["component"]), tiny_w4a16)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("table", "model"),
    [
        ("field", Manifest),
        ("field of `images`", Images),
        ("field of a component", ComponentEntry),
        ("field of a rule", PolicyRule),
    ],
)
def test_fields_are_those_of_the_manifest(page: dict[str, list[list[str]]], table: str, model: Any) -> None:
    assert named(page[table]) == model.model_fields.keys()


def test_the_schema_is_the_one_that_is_written(page: dict[str, list[list[str]]], packages: list[Path]) -> None:
    told = dict(row[:2] for row in page["field"])["`schema_version`"]
    assert {told} == {str(Manifest.load(package).schema_version) for package in packages} == {str(SCHEMA)}


def test_clients_give_the_runtime_what_the_page_says(page: dict[str, list[list[str]]]) -> None:
    for name in named(page["input"]):
        assert f'inputs["{name}"]' in (EXAMPLES / "ask_package.py").read_text("utf-8")
        assert f'inputs->Set("{name}"' in (EXAMPLES / "cpp" / "ask_package.cpp").read_text("utf-8")


def test_the_configuration_has_what_clients_read(packages: list[Path]) -> None:
    read = defaultdict(set)
    for package in packages:
        model = json.loads((package / "genai_config.json").read_text("utf-8"))["model"]
        for name in ("eos_token_id", "context_length"):
            read[name].add(type(model[name]))
        assert "pipeline" not in model["decoder"]
    assert read == {"eos_token_id": {int}, "context_length": {int}}
