"""Every byte of a package is attributed once, and what a graph says of external data is not believed."""

import json
import shutil
from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from hvlc import cli
from hvlc.errors import UserError
from hvlc.manifest.manifest import MANIFEST, FileEntry, Manifest
from hvlc.package import contents as reading
from hvlc.package.contents import contents_of
from hvlc.report.contents import contents_record, contents_tables
from hvlc.results.build import Content, Contents, Piece, Use

PACKAGES = ["tiny_w4a16", "tiny_float32"]


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def copied(tiny_w4a16: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_w4a16, tmp_path / "package"))


def read(package: Path) -> Contents:
    return contents_of(package, Manifest.load(package))


def test_every_byte_of_every_file_is_counted_once(package: Path) -> None:
    contents = read(package)
    sizes = {p.name: p.stat().st_size for p in package.iterdir()}
    found = {name: sum(p.bytes for p in contents.pieces if p.file == name) for name in sizes}
    assert found == sizes
    assert contents.total_bytes == sum(sizes.values()) == sum(contents.totals().values())
    for name in (n for n in sizes if n.endswith(".data")):
        pieces = [p for p in contents.pieces if p.file == name]
        assert [p.offset for p in pieces][:1] == [0]
        assert all(before.offset + before.bytes == after.offset for before, after in pairwise(pieces))


def test_nothing_that_hvlc_writes_is_unused_or_of_unknown_use(package: Path) -> None:
    contents = read(package)
    assert all(p.content is not Content.UNUSED for p in contents.pieces)
    assert all(p.bytes < 4096 for p in contents.pieces if p.content is Content.PADDING)
    weights = [p for p in contents.pieces if p.uses]
    assert all(p.components == tuple(sorted({use.component for use in p.uses})) for p in weights)
    graphs = {p.components for p in contents.pieces if p.content is Content.GRAPH}
    assert graphs == {(name,) for name in Manifest.load(package).components}


def test_levels_and_scales_are_those_of_the_plan(w4a16_build: Any) -> None:
    """A quantized matrix takes what the plan said, whatever shape and name a graph reads it under.

    Scales of a few rows are in the graph file, and again in that of all encoders together.
    """
    contents = read(w4a16_build.output)
    planned = sum(a.stored_bytes for a in w4a16_build.plan.assignments if a.action == "quantize")
    kinds = (Content.LEVELS, Content.SCALES, Content.ZERO_POINTS)
    again = "vision_fused.onnx"
    assert sum(p.bytes for p in contents.pieces if p.content in kinds and p.file != again) == planned
    assert {p.dtype for p in contents.pieces if p.content is Content.LEVELS} == {"int4", "int8"}
    assert {p.dtype for p in contents.pieces if p.content is Content.SCALES} == {"float16", "float"}


def test_a_float_package_has_nothing_quantized(tiny_float32: Path) -> None:
    kinds = {p.content for p in read(tiny_float32).pieces}
    assert Content.FLOATS in kinds
    assert not kinds & {Content.LEVELS, Content.SCALES, Content.ZERO_POINTS}


def test_a_tied_table_is_shown_as_shared(tiny_w4a16: Path) -> None:
    shared = [p for p in read(tiny_w4a16).pieces if p.components == ("embedding", "model")]
    assert [p.content for p in shared] == [Content.LEVELS, Content.SCALES]
    names = {use.initializer: use.shape for use in shared[0].uses}
    assert len(names) == 2
    assert len(set(names.values())) == 2  # one is the look-up's view of the same bytes


def test_the_largest_weights_come_first(package: Path) -> None:
    contents = read(package)
    largest = contents.largest(5)
    assert [p.bytes for p in largest] == sorted((p.bytes for p in contents.pieces if p.uses), reverse=True)[:5]
    assert contents.largest(0) == []
    everything = contents.largest(10**6)
    assert len(everything) == sum(1 for p in contents.pieces if p.uses)


Place = tuple[int, int]


@given(size=st.integers(0, 200), places=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=12))
def test_overlaps_gaps_and_empty_ranges_add_up_to_the_file(size: int, places: list[Place]) -> None:
    inside = {(start, min(length, size - start)) for start, length in places if start <= size}
    ranges = {p: reading._Range(Content.FLOATS, "float", [Use("a", str(p), (1,))]) for p in inside}
    pieces = reading._data("f", size, ranges)
    assert sum(p.bytes for p in pieces) == size
    assert all(p.bytes >= 0 for p in pieces)
    covered = {byte for start, length in inside for byte in range(start, start + length)}
    counted = [byte for p in pieces if p.uses for byte in range(p.offset or 0, (p.offset or 0) + p.bytes)]
    assert sorted(counted) == sorted(covered)


def test_data_that_no_graph_names_is_unused_and_no_padding(copied: Path) -> None:
    with (copied / "model.onnx.data").open("ab") as file:
        file.write(bytes(5000))
    (copied / "stray.onnx.data").write_bytes(b"x" * 9)
    manifest = Manifest.load(copied)
    stray = manifest.model_copy(update={"files": manifest.files | {"stray.onnx.data": FileEntry(bytes=9, sha256="0")}})
    contents = contents_of(copied, stray)
    unused = {p.file: p.bytes for p in contents.pieces if p.content is Content.UNUSED}
    assert unused == {"model.onnx.data": 5000, "stray.onnx.data": 9}
    assert contents.total_bytes == sum(p.stat().st_size for p in copied.iterdir())


def test_tensors_in_subgraphs_attributes_and_functions_are_found(copied: Path) -> None:
    """Not where hvlc puts weights, but where a graph may hold them."""
    data = np.arange(64, dtype=np.float32)
    place = {"location": "model.onnx.data", "offset": "0", "length": "256"}

    def external(name: str) -> TensorProto:
        tensor = numpy_helper.from_array(data, name)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        return tensor

    inner = helper.make_graph([], "inner", [], [], [external("deep")])
    branches = {"then_branch": inner, "else_branch": helper.make_graph([], "else", [], [])}
    nodes = [
        helper.make_node("If", ["c"], ["x"], **branches),
        helper.make_node("Constant", [], ["y"], value=external("attribute")),
        helper.make_node("MatMulNBits", ["x", "levels", "wide"], ["z"], domain="com.microsoft", bits=8),
        helper.make_node("Cast", ["scales"], ["wide"], to=1),
    ]
    nodes[2], nodes[3] = nodes[3], nodes[2]
    inline = [numpy_helper.from_array(np.zeros(n, np.uint8), name) for n, name in ((300, "levels"), (40, "scales"))]
    function = helper.make_function(
        "d", "F", [], ["o"], [helper.make_node("Constant", [], ["o"], value=external("function"))], []
    )
    graph = helper.make_graph(nodes, "g", [], [], inline)
    onnx.save_model(helper.make_model(graph, functions=[function]), copied / "stitch.onnx")
    pieces = read(copied).pieces
    names = {use.initializer for p in pieces if p.file == "model.onnx.data" for use in p.uses}
    assert {"deep", "attribute", "function"} <= names
    found = {u.initializer: (p.content, p.dtype, p.bytes) for p in pieces if p.file == "stitch.onnx" for u in p.uses}
    assert found == {"levels": (Content.LEVELS, "int8", 300), "scales": (Content.SCALES, "uint8", 40)}


def point(package: Path, **changes: str | None) -> None:
    """Change what the first large tensor of vision_base.onnx says of its place; None removes a key."""
    path = package / "vision_base.onnx"
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    place = {e.key: e.value for e in tensor.external_data} | changes
    del tensor.external_data[:]
    for key, value in place.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    onnx.save_model(model, path)


def link(package: Path) -> None:
    (package.parent / "outside").write_bytes(bytes(10**6))
    (package / "vision.onnx.data").unlink()
    (package / "vision.onnx.data").symlink_to(package.parent / "outside")


def unknown_dtype(package: Path) -> None:
    path = package / "vision_base.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].data_type = 250
    onnx.save_model(model, path)


HUGE = str(2**63)
LIES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a place above the package": (lambda p: point(p, location="../outside"), "package.escape"),
    "an absolute place": (lambda p: point(p, location="/etc/passwd"), "package.escape"),
    "a place through a folder": (lambda p: point(p, location="a/../vision.onnx.data"), "package.escape"),
    "a place of another system": (lambda p: point(p, location="..\\outside"), "package.escape"),
    "a place with a zero byte": (lambda p: point(p, location="a\0b"), "package.escape"),
    "the package itself": (lambda p: point(p, location="."), "package.escape"),
    "no place": (lambda p: point(p, location=None), "package.escape"),
    "a link to the outside": (link, "package.escape"),
    "a file that is not there": (lambda p: point(p, location="other.data"), "package.incomplete"),
    "a file beside the manifest's": (
        lambda p: ((p / "secret.data").write_bytes(bytes(10**6)), point(p, location="secret.data")),
        "package.incomplete",
    ),
    "an offset behind the end": (lambda p: point(p, offset=str(10**7)), "package.graph"),
    "an offset behind the end, without length": (lambda p: point(p, offset=str(10**7), length=None), "package.graph"),
    "a length over the end": (lambda p: point(p, length=str(10**7)), "package.graph"),
    "a sum that overflows": (lambda p: point(p, offset=HUGE, length=HUGE), "package.graph"),
    "a negative offset": (lambda p: point(p, offset="-8"), "package.graph"),
    "a negative length": (lambda p: point(p, length="-8"), "package.graph"),
    "an offset in letters": (lambda p: point(p, offset="zero"), "package.graph"),
    "an offset in other digits": (lambda p: point(p, offset="²"), "package.graph"),
    "a number without end": (lambda p: point(p, offset="9" * 10_000), "package.graph"),
    "an unknown dtype": (unknown_dtype, "package.graph"),
    "a graph that is none": (lambda p: (p / "stitch.onnx").write_bytes(b"\xff" * 100), "package.graph"),
    "a graph cut short": (
        lambda p: (p / "front.onnx").write_bytes((p / "front.onnx").read_bytes()[:-100]),
        "package.graph",
    ),
    "a file lost": (lambda p: (p / "tokenizer.json").unlink(), "package.incomplete"),
    "data cut short": (lambda p: (p / "vision.onnx.data").write_bytes(b"x"), "package.graph"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_package_that_lies_is_refused(copied: Path, case: str) -> None:
    damage, code = LIES[case]
    damage(copied)
    with pytest.raises(UserError) as error:
        read(copied)
    assert error.value.code == code
    assert error.value.fix
    assert len(error.value.cause) < 500


def test_a_place_without_length_reaches_to_the_end(copied: Path) -> None:
    with (copied / "vision.onnx.data").open("ab") as file:
        file.write(bytes(100))
    size = (copied / "vision.onnx.data").stat().st_size
    point(copied, offset=str(size - 100), length=None)
    (piece,) = [p for p in read(copied).pieces if (p.file, p.offset) == ("vision.onnx.data", size - 100)]
    assert (piece.bytes, piece.components) == (100, ("vision_base",))


def inspected(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    cli.main(["inspect", *(str(a) for a in arguments)])
    return capsys.readouterr().out


def test_the_json_has_every_piece_and_the_manifest(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(inspected(capsys, package, "--json", "--top", 3))
    contents, placement, caps = shown.pop("contents"), shown.pop("placement"), shown.pop("activation_bytes")
    assert caps.keys() == Manifest.load(package).encoders.keys()
    assert {place["component"] for place in placement} == set(Manifest.load(package).components)
    assert Manifest.model_validate(shown) == Manifest.load(package)
    sizes = {p.name: p.stat().st_size for p in package.iterdir()}
    assert {f["file"]: f["bytes"] for f in contents["files"]} == sizes
    assert {f["file"]: sum(p["bytes"] for p in f["pieces"]) for f in contents["files"]} == sizes
    assert sum(t["bytes"] for t in contents["totals"]) == contents["total_bytes"] == sum(sizes.values())
    assert len(contents["largest"]) == 3
    assert [t["bytes"] for t in contents["totals"]] == sorted((t["bytes"] for t in contents["totals"]), reverse=True)


def test_the_tables_have_the_totals_the_files_and_as_many_weights_as_asked_for(
    tiny_w4a16: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = inspected(capsys, tiny_w4a16, "--top", 2)
    lines = [line.split() for line in text.splitlines()]
    contents = read(tiny_w4a16)
    for (components, content, dtype), size in contents.totals().items():
        words = [*" + ".join(components).split(), *content.split(), *([dtype] if dtype else []), f"{size:,}"]
        assert any(line[: len(words)] == words for line in lines), words
    assert ["total", f"{contents.total_bytes:,}", "100.0", "%"] in lines
    assert any(line[:1] == ["model.onnx.data"] for line in lines)
    below = text[text.index("largest weights") :]
    assert [f"{p.bytes:,}" in below for p in contents.largest(2)] == [True, True]
    assert contents.largest(3)[2].uses[0].initializer not in below


def test_a_weight_of_many_names_is_shown_under_the_first_ones() -> None:
    uses = tuple(Use("a", name, (1,)) for name in ("name0", "b/name0", "name1", "name2", "name3", "name4", "name4"))
    contents = Contents((Piece("f.data", 4, Content.FLOATS, "float", 0, uses, ("a",)),))
    console = Console(width=120, file=StringIO())
    console.print(contents_tables(contents, 1))
    text = console.file.getvalue()
    assert "name2 and 2 more" in text
    assert "name3" not in text
    assert "b/name0" not in text  # the same under the name of the component that it was copied into
    assert contents_record(contents, 1)["largest"][0]["shared"] is True


def test_a_package_without_its_manifest_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=MANIFEST):
        read(tmp_path)
