"""A package is opened when it is what hvlc writes, also from the hub's cache; what would be read is listed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.manifest.manifest import MANIFEST
from hvlc.opening.package import open_package
from tests.helpers.commands import Hvlc
from tests.helpers.packages import changed_json, hub_snapshot, renewed


@pytest.fixture
def copied(tiny_w4a16: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_w4a16, tmp_path / "package")


def code_of(package: Path, *, verify: bool = True) -> str:
    with pytest.raises(UserError) as error:
        open_package(package, verify=verify)
    assert error.value.fix
    return error.value.code


@pytest.mark.parametrize("recipe", ["tiny_w4a16", "tiny_float32"])
def test_what_hvlc_wrote_opens(recipe: str, request: pytest.FixtureRequest) -> None:
    package = open_package(request.getfixturevalue(recipe), verify=True)
    assert package.ignored == ()
    assert package.configuration.model.type == "gemma3"


UNLISTED = (
    "chat_template.jinja",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.txt",
    "merges.txt",
    "extra.onnx",
    "extra.ort",
    "more.onnx.data",
    "model.onnx_data",
    "a_qnn.bin",
    "hvlc.compilation.json",
    "preprocessor_config.json",
)


@pytest.mark.parametrize("name", UNLISTED)
def test_a_file_that_would_be_read_is_listed(copied: Path, name: str, hvlc: Hvlc) -> None:
    changed_json(copied / MANIFEST, lambda manifest: manifest["files"].pop(name, None))
    (copied / name).write_text("{}")
    assert code_of(copied) == code_of(copied, verify=False) == "package.unlisted"
    ended = hvlc("verify", copied)
    assert ended.code == 2
    assert name in ended.err


def test_what_a_hub_adds_is_ignored_and_said(copied: Path, hvlc: Hvlc) -> None:
    for name in ("README.md", ".gitattributes", "LICENSE", "report.html", "config.json"):
        (copied / name).write_text("words")
    (copied / ".cache" / "huggingface").mkdir(parents=True)
    (copied / "assets").mkdir()
    ignored = [".cache", ".gitattributes", "LICENSE", "README.md", "assets", "config.json", "report.html"]
    assert list(open_package(copied, verify=True).ignored) == ignored
    told = hvlc("verify", copied, "--json").json
    assert told == {
        "files": len(json.loads((copied / MANIFEST).read_text())["files"]),
        "valid": True,
        "ignored": ignored,
    }
    assert "README.md" in hvlc("verify", copied).out


def listing(name: str) -> Callable[[Path], object]:
    """The manifest lists one file more."""
    return lambda p: changed_json(p / MANIFEST, lambda m: m["files"].update({name: m["files"]["model.onnx"]}))


ESCAPES: dict[str, Callable[[Path], object]] = {
    "a name above": listing("../x"),
    "an absolute name": listing("/etc/hostname"),
    "a folder": listing("a/b"),
    "a zero byte": listing("a\0b"),
    "a line feed": listing("a\n"),
    "a link": lambda p: linked(p / "tokenizer.json", Path("/etc/hostname")),
    "a link of the manifest": lambda p: linked(p / MANIFEST, Path("/etc/hostname")),
}


def linked(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("case", ESCAPES)
@pytest.mark.parametrize("command", ["inspect", "verify", "run", "lint", "lint --fix", "diff"])
def test_nothing_outside_is_read_or_copied(
    copied: Path, tiny_w4a16: Path, tmp_path: Path, case: str, command: str, hvlc: Hvlc
) -> None:
    ESCAPES[case](copied)
    rest: dict[str, tuple[object, ...]] = {
        "run": ("run", copied, "--prompt", "Hi"),
        "lint": ("lint", copied, "--target", "cpu"),
        "lint --fix": ("lint", copied, "--target", "qnn-sm8750", "--fix", "-o", tmp_path / "fixed"),
        "diff": ("diff", copied, tiny_w4a16),
    }
    ended = hvlc(*rest.get(command, (command, copied)))
    assert ended.code == 2
    assert "package.escape" in ended.err
    assert not (tmp_path / "fixed").exists()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a name twice in the manifest": (
        lambda p: (p / MANIFEST).write_text((p / MANIFEST).read_text().replace("{", '{"hidden_size": 1,', 1)),
        "package.manifest",
    ),
    "an integer without end": (lambda p: (p / MANIFEST).write_text('{"a": ' + "9" * 5000 + "}"), "package.manifest"),
    "a FIFO": (lambda p: ((p / "stitch.onnx").unlink(), os.mkfifo(p / "stitch.onnx")), "package.incomplete"),
    "a graph of another format": (
        lambda p: changed_json(p / MANIFEST, lambda m: m["components"]["stitch"].update(file="stitch.ort")),
        "spec.invalid",
    ),
    "an encoder that is not a graph": (
        lambda p: changed_json(p / MANIFEST, lambda m: m["encoders"].update(base="tokenizer.json")),
        "spec.invalid",
    ),
    "sizes that are divided by": (
        lambda p: changed_json(p / MANIFEST, lambda m: m["images"].update(tokens_per_piece=0)),
        "spec.invalid",
    ),
    "a provider that is not one": (
        lambda p: changed_json(
            p / MANIFEST, lambda m: m["components"]["stitch"].update(provider={"name": "Evil", "options": {}})
        ),
        "package.configuration",
    ),
    "another provider of a compiled graph": (
        lambda p: (compiled(p, provider="Evil"), renewed(p, "x.bin")),
        "package.configuration",
    ),
    "a library in the options of a compiled graph": (
        lambda p: (compiled(p, provider_options={"backend_path": "/tmp/evil.so"}), renewed(p, "x.bin")),
        "package.configuration",
    ),
}


def compiled(package: Path, **changes: object) -> None:
    (package / "x.bin").write_bytes(b"x")
    entry = {
        "binary": "x.bin",
        "chip": "SM8750",
        "soc_model": 69,
        "htp_arch": 79,
        "sdk": "1",
        "provider": "QNNExecutionProvider",
        "provider_options": {},
        **changes,
    }
    listing("x.bin")(package)
    changed_json(package / MANIFEST, lambda m: m["components"]["stitch"].update(compiled=entry))


@pytest.mark.parametrize("case", BROKEN)
def test_a_manifest_says_what_this_version_writes(copied: Path, case: str) -> None:
    damage, code = BROKEN[case]
    damage(copied)
    assert code_of(copied) == code


def test_a_package_in_the_hubs_cache_is_a_package(tiny_w4a16: Path, tmp_path: Path, hvlc: Hvlc) -> None:
    snapshot = hub_snapshot(tiny_w4a16, tmp_path)
    commands: tuple[tuple[object, ...], ...] = (
        ("verify", snapshot),
        ("inspect", snapshot),
        ("lint", snapshot, "--target", "cpu"),
        ("diff", snapshot, tiny_w4a16),
        ("run", snapshot, "--prompt", "Hi", "--max-new-tokens", 2),
        ("bisect", snapshot, "--reference", tiny_w4a16, "--prompt", "Hi", "--max-new-tokens", 2),
        ("eval", snapshot, "-n", 1, "--reference", tiny_w4a16),
    )
    assert [(command[0], hvlc(*command).code) for command in commands] == [(command[0], 0) for command in commands]
    (snapshot / "model.onnx.data").unlink()
    (snapshot / "model.onnx.data").symlink_to(tiny_w4a16 / "model.onnx.data")
    assert code_of(snapshot) == "package.escape"


def test_data_that_onnxruntime_does_not_find_is_said(tiny_w4a16: Path, tmp_path: Path, hvlc: Hvlc) -> None:
    """A graph that is a file beside data that is a link, which onnxruntime takes for an attack."""
    snapshot = hub_snapshot(tiny_w4a16, tmp_path)
    graph = (snapshot / "model.onnx").read_bytes()
    (snapshot / "model.onnx").unlink()
    (snapshot / "model.onnx").write_bytes(graph)
    for command in (
        ("run", snapshot, "--prompt", "Hi"),
        ("bisect", snapshot, "--reference", tiny_w4a16, "--prompt", "Hi"),
    ):
        ended = hvlc(*command)
        assert ended.code == 2
        assert "package." in ended.err


def test_brackets_in_a_manifest_are_text(copied: Path, hvlc: Hvlc) -> None:
    changed_json(copied / MANIFEST, lambda m: m["components"]["model"].update(role="[/bold]"))
    shown = hvlc("inspect", copied)
    assert shown.code == 0
    assert "[/bold]" in shown.out
