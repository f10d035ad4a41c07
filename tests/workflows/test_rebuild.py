"""Rebuilding proves where a package comes from: equal to the last byte, or the file and the cause are named."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvlc.errors import UserError
from hvlc.files.digests import digest_file
from hvlc.manifest.lock import LOCK, Lock
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.recipes.loading import recipe_path
from hvlc.results.compilation import COMPILATION
from hvlc.targets import target_path
from hvlc.workflows.build import rebuild as rebuilding
from hvlc.workflows.build.build import build
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import save_text
from tests.helpers.fixed_shapes import write_target
from tests.helpers.packages import renewed
from tests.report.test_compilation import compilation
from tests.runtime.test_fixed import as_if_compiled


@pytest.fixture
def package(tiny_w4a16: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_w4a16, tmp_path / "package")


def refused(package: Path, checkpoint: Path) -> UserError:
    before = sorted(package.parent.iterdir())
    with pytest.raises(UserError) as error:
        rebuild(package, checkpoint)
    assert sorted(package.parent.iterdir()) == before
    return error.value


def redigest(package: Path, *names: str) -> None:
    """Make the manifest agree with changed files, as a careful forger would."""
    manifest = json.loads((package / MANIFEST).read_text())
    for name in names:
        path = package / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
    (package / MANIFEST).write_text(json.dumps(manifest))


def test_the_same_checkpoint_gives_the_same_package(package: Path, tiny_checkpoint: Path) -> None:
    made = rebuild(package, tiny_checkpoint, threads=1)
    lock = Lock.load(package)
    assert made.files == len(lock.outputs) == len(list(package.iterdir())) - 2
    assert made.bytes == sum((package / name).stat().st_size for name in lock.outputs)
    assert made.changed_tools == {}
    assert [p.name for p in package.parent.iterdir()] == ["package"]


def test_a_users_own_recipe_and_target_are_in_the_lock(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe, target = tmp_path / "mine.yaml", tmp_path / "mine.toml"
    recipe.write_text(recipe_path("w4a16-rtn").read_text().replace("name: w4a16-rtn", "name: mine"))
    target.write_text(target_path("cpu").read_text().replace('name = "cpu"', 'name = "mine"'))
    build(open_request(tiny_checkpoint, str(target), str(recipe), tmp_path / "package"))
    recipe.unlink()
    target.unlink()
    assert rebuild(tmp_path / "package", tiny_checkpoint).files > 5


def test_a_recipe_that_changes_during_the_build_is_locked_as_it_was_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(recipe_path("w4a16-rtn").read_text())

    def edit(what: str, done: int, total: int) -> None:
        if what == "export":
            recipe.write_text(recipe_path("float32").read_text())

    result = build(open_request(tiny_checkpoint, "cpu", str(recipe), tmp_path / "package"), edit)
    assert Lock.load(result.output).recipe == recipe_path("w4a16-rtn").read_text()
    assert result.manifest.sources.recipe == digest_file(recipe_path("w4a16-rtn"))
    assert rebuild(result.output, tiny_checkpoint).files > 5


def test_the_lock_names_no_path(package: Path, tiny_checkpoint: Path) -> None:
    text = (package / LOCK).read_text()
    assert str(tiny_checkpoint) not in text
    assert str(tiny_checkpoint.parent) not in text
    assert Lock.load(package).checkpoint.keys() >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_another_checkpoint_is_named(package: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    error = refused(package, other)
    assert error.code == "package.inputs"
    assert error.cause.endswith(": model.safetensors")


def test_a_forged_weight_is_found(package: Path, tiny_checkpoint: Path) -> None:
    data = package / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(bytes(content))
    assert refused(package, tiny_checkpoint).code == "package.digest"
    redigest(package, data.name)
    error = refused(package, tiny_checkpoint)
    assert (error.code, "model.onnx.data" in error.cause) == ("package.rebuild", True)


def test_a_package_that_disagrees_with_its_own_lock_is_found(package: Path, tiny_checkpoint: Path) -> None:
    lock = json.loads((package / LOCK).read_text())
    lock["outputs"]["model.onnx.data"]["sha256"] = "0" * 64
    (package / LOCK).write_text(json.dumps(lock))
    redigest(package, LOCK)
    assert refused(package, tiny_checkpoint).code == "package.rebuild"


def test_other_versions_are_told_when_the_bytes_agree_all_the_same(
    package: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "tool_versions", lambda: {**Lock.load(package).versions, "numpy": "9.9"})
    assert rebuild(package, tiny_checkpoint).changed_tools["numpy"][1] == "9.9"


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda package: (package / LOCK).unlink(), "package.incomplete"),
        (lambda package: (package / LOCK).write_text("{"), "package.digest"),
        (lambda package: ((package / LOCK).write_text("{"), redigest(package, LOCK)), "package.lock"),
    ],
    ids=["no lock", "a damaged lock", "a damaged lock with its digest"],
)
def test_a_package_without_a_sound_lock_is_refused(
    package: Path, tiny_checkpoint: Path, damage: Callable[[Path], object], code: str
) -> None:
    damage(package)
    assert refused(package, tiny_checkpoint).code == code


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of fixed shapes whose checkpoint lies beside it; read only."""
    root = tmp_path_factory.mktemp("static")
    checkpoint, target = save_text(root / "checkpoint", "llama"), write_target(root / "npu.toml")
    return build(open_request(checkpoint, target, "float32", root / "package", threads=1)).output


def test_a_compiled_package_is_not_rebuilt_without_the_compiler(
    static: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = as_if_compiled(static, tmp_path / "package")
    (package / COMPILATION).write_text(compilation().model_dump_json(), "utf-8")
    renewed(package, COMPILATION)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime_qnn" else real(name))
    monkeypatch.setattr(rebuilding, "build", lambda *_: pytest.fail("the long work began"))
    assert refused(package, static.parent / "checkpoint").code == "install.qnn"


@pytest.mark.parametrize(
    ("content", "gap", "found"),
    [
        (b"binarX", 0.0, {"head_token_qnn.bin": 1}),
        (b"binarX", 1e-7, {}),
        (b"binary and more", 0.0, {}),
    ],
    ids=["computes the same", "computes something else", "is longer"],
)
def test_a_binary_that_differs_must_compute_the_same_to_the_last_bit(
    static: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, gap: float, found: dict[str, int]
) -> None:
    package = as_if_compiled(static, tmp_path / "package")
    again = as_if_compiled(static, tmp_path / "again", content=content)

    def emulated(file: Path, options: Any, samples: Sequence[Any], scratch: Path) -> Iterator[dict[str, np.ndarray]]:
        (sample,) = samples
        (values,) = sample.feeds.values()  # hidden states
        yield {"logits": values + (gap if file.parent == again else 0)}

    monkeypatch.setattr(rebuilding, "emulate_file", emulated)
    manifest = Manifest.load(package)
    assert rebuilding._left_to_chance(package, again, manifest, {"head_token_qnn.bin"}) == found
    assert rebuilding._left_to_chance(package, again, manifest, {"head_token_qnn.bin", "head_token.onnx"}) == {}


def test_drawn_inputs_are_a_first_window(static: Path) -> None:
    feeds = rebuilding._drawn(static / "decoder_1_prompt.onnx").feeds
    window, context = feeds["inputs_embeds"].shape[1], feeds["past_key_values.0.key"].shape[2]
    assert feeds["inputs_embeds"].std() == pytest.approx(1, rel=0.1)
    assert (feeds["past_seq_len"].tolist(), feeds["total_seq_len"].tolist()) == ([[window - 1]], [context])
