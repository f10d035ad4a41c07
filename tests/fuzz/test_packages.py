"""Damaged packages whose digests agree: every command takes or refuses them, and none ends as a bug or by a signal."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError
from PIL import Image

from hvlc.manifest.manifest import MANIFEST
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import save_text
from tests.fuzz.building import check_build
from tests.fuzz.mutation import Commands, commands, files, mutated
from tests.fuzz.values import VALUES, replaced
from tests.helpers.fixed_shapes import write_target
from tests.helpers.packages import renewed
from tests.helpers.sharing import once

SMALL, LARGE = 24, 600
_ASKED = ("--prompt", "Hi", "--max-new-tokens", "2")
_JSON_VALUES = [value for value in VALUES if not isinstance(value, bytes)]


@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text package whose decoder runs in stages; read only."""
    return once(tmp_path_factory, "staged", _staged)


def _staged(root: Path) -> Path:
    checkpoint = save_text(root / "checkpoint", "llama")
    return build(open_request(checkpoint, write_target(root / "npu.toml"), "float32", root / "package")).output


def damage(package: Path, source: random.Random) -> str:
    """Change something of a package; its digests agree again in most cases. Says what."""
    names = sorted(path.name for path in package.iterdir())
    graphs = [name for name in names if name.endswith(".onnx")]
    documents = [name for name in names if name.endswith(".json")]
    kind, name = source.choice(("bytes", "document", "document", "graph", "graph", "files")), source.choice(names)
    if kind == "bytes":
        (package / name).write_bytes(mutated((package / name).read_bytes(), source))
    elif kind == "document":
        name = source.choice((*documents, "genai_config.json", MANIFEST))
        content = replaced(json.loads((package / name).read_text("utf-8")), source, _JSON_VALUES)
        (package / name).write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
    elif kind == "graph":
        name = source.choice(graphs)
        _damage_graph(package / name, source)
    else:
        name = _damage_files(package, names, source)
    if source.random() < 0.9:
        _renew(package)
    return f"{kind} of {name}"


def _renew(package: Path) -> None:
    if (package / MANIFEST).is_symlink() or not (package / MANIFEST).is_file():  # a FIFO would wait for ever
        return
    try:
        renewed(package)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):  # the manifest itself is damaged
        return


def _damage_files(package: Path, names: list[str], source: random.Random) -> str:
    """Swap, remove, add, link or rename files."""
    one, other = (package / name for name in source.sample(names, 2))
    match source.randrange(5):
        case 0:
            content = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(content)
        case 1:
            one.unlink()
        case 2:
            one.unlink()
            one.symlink_to(source.choice((other.name, "/etc/hostname", "/dev/zero", one.name)))
        case 3:
            one.unlink()
            os.mkfifo(one)
        case _:
            (package / f"x{one.name}").write_bytes(one.read_bytes())
    return f"{one.name} and {other.name}"


def _damage_graph(path: Path, source: random.Random) -> None:
    """Change one thing of a graph that stays an ONNX file."""
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return
    graph = model.graph
    node = source.choice(graph.node)
    tensors = list(graph.initializer)
    values = [*graph.input, *graph.output]
    match source.randrange(12):
        case 0:
            node.op_type = source.choice(
                ("Add", "MatMul", "Gather", "Reshape", "Loop", "Conv", "Concat", "Resize", "Pad")
            )
        case 1:
            graph.node.remove(node)
        case 2 if node.input:
            node.input[source.randrange(len(node.input))] = source.choice(
                [t.name for t in tensors] + [v.name for v in values] + [""]
            )
        case 3 if node.attribute:
            attribute = source.choice(node.attribute)
            attribute.i = source.choice((0, -1, 1, 3, 2**31, -(2**63), 2**63 - 1))
            attribute.f = source.choice((0.0, -1.0, float("nan"), 1e38))
            attribute.type = source.choice((attribute.type, onnx.AttributeProto.INT, onnx.AttributeProto.FLOAT))
        case 4 if node.attribute:
            node.attribute.remove(source.choice(node.attribute))
        case 5 if tensors:
            tensor = source.choice(tensors)
            tensor.dims[:] = source.choice(([], [0], [1], [-1], [2**40], [7, 7], list(tensor.dims)[::-1]))
        case 6 if tensors:
            source.choice(tensors).data_type = source.choice((1, 2, 6, 7, 8, 10, 16, 21, 22, 99))
        case 7 if tensors:
            tensor = source.choice(tensors)
            tensor.raw_data = mutated(tensor.raw_data or b"abcd", source)
        case 8:
            value = source.choice(values)
            dims = [source.choice((0, 1, 2, 7, -1, 2**31, 2**62)) for _ in range(source.randrange(5))]
            elem = source.choice((1, 2, 6, 7, 8, 10, value.type.tensor_type.elem_type))
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, elem, dims))
        case 9 if tensors:
            external = [t for t in tensors if t.external_data] or tensors
            tensor = source.choice(external)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            key, value_ = (
                source.choice(("location", "offset", "length")),
                source.choice(("0", "-1", "../x", "9" * 30, "4")),
            )
            tensor.external_data.add(key=key, value=value_)
        case 10:
            model.opset_import[0].version = source.choice((0, 1, 13, 999, -1))
            model.ir_version = source.choice((0, 3, 11, 999))
        case _:
            source.choice(values).name = source.choice(("x", "", "logits", "input_ids"))
    path.write_bytes(model.SerializeToString())  # as it is: onnx.save checks external data


def _commands(
    package: Path, good: Path, image: Path, source: random.Random, *, sees: bool
) -> Iterator[tuple[object, ...]]:
    """Two commands that a case is tried with; those that run the package come more often."""
    pictured = ("--image", image, "--encoder", source.choice(("base", "large"))) if sees else ()
    listed: list[tuple[object, ...]] = [
        ("run", package, *_ASKED, *pictured),
        ("run", package, *_ASKED),
        ("eval", package, "-n", "1", "--max-new-tokens", "2", *_task(sees=sees)),
        ("bisect", package, "--reference", good, *_ASKED, *pictured[:2]),
        ("diff", package, good),
        ("diff", good, package),
        ("lint", package, "--target", "cpu"),
        ("lint", package, "--target", "qnn-sm8750", "--fix", "-o", package.parent / "fixed"),
        ("inspect", package),
        ("verify", package),
        ("compare", good, package, "-n", "1", *_task(sees=sees)),
    ]
    yield from source.sample(listed, 2)


def _task(*, sees: bool) -> tuple[str, ...]:
    return () if sees else ("--task", "questions.jsonl")


def cases(numbers: Iterator[int], packages: tuple[Path, Path], scratch: Path) -> None:
    """Damage a package for every number and run two commands on it."""
    scratch.mkdir()
    Image.new("RGB", (70, 40), "white").save(scratch / "image.png")
    (scratch / "questions.jsonl").write_text('{"question": "Hi", "answers": ["x"]}\n')
    outside = files(scratch.parent)
    with commands(scratch) as child:
        for number in numbers:
            try:
                _case(number, child, packages, scratch)
            except BaseException as error:
                error.add_note(f"case {number}")
                raise
    assert {path: at for path, at in files(scratch.parent).items() if not path.startswith(str(scratch))} == {
        path: at for path, at in outside.items() if not path.startswith(str(scratch))
    }


def _case(number: int, child: Commands, packages: tuple[Path, Path], scratch: Path) -> None:
    source = random.Random(number)
    sees = source.random() < 0.7
    good, package = packages[0] if sees else packages[1], scratch / "package"
    for place in (package, scratch / "fixed"):
        shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good, package)
    what = damage(package, source)
    for command in _commands(package, good, scratch / "image.png", source, sees=sees):
        try:
            check_build(child.run(*map(str, command)))
        except AssertionError as error:
            error.add_note(f"{what}: {' '.join(map(str, command))}")
            raise


def test_damaged_packages_are_taken_or_refused(tiny_w4a16: Path, staged: Path, tmp_path: Path) -> None:
    cases(iter(range(SMALL)), (tiny_w4a16, staged), tmp_path / "scratch")


@pytest.mark.slow
def test_many_damaged_packages_are_taken_or_refused(tiny_w4a16: Path, staged: Path, tmp_path: Path) -> None:
    cases(iter(range(1000, 1000 + LARGE)), (tiny_w4a16, staged), tmp_path / "scratch")


def test_a_package_that_was_not_damaged_passes(tiny_w4a16: Path, staged: Path, tmp_path: Path) -> None:
    """The commands themselves are right: what the damage ends is the package's fault."""
    image = tmp_path / "image.png"
    Image.new("RGB", (70, 40), "white").save(image)
    (tmp_path / "questions.jsonl").write_text('{"question": "Hi", "answers": ["x"]}\n')
    with commands(tmp_path) as child:
        for good, sees in ((tiny_w4a16, True), (staged, False)):
            copied = Path(shutil.copytree(good, tmp_path / good.name))
            for seed in range(4):
                for command in _commands(copied, good, image, random.Random(seed), sees=sees):
                    if "--fix" not in command:
                        check_build(child.run(*map(str, command)), (0, 3, 4))
