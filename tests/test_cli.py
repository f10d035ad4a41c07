"""The command line: exit codes, errors with a way out, JSON, and nothing left behind."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvlc import cli
from hvlc.cli.options import Size
from tests.helpers.commands import Hvlc, Result
from tests.helpers.tiny import picture


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "page.png"
    picture(60, 80).save(path)
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def refused(result: Result, code: str, exit_code: int = 2) -> None:
    assert result.code == exit_code, result
    assert result.out == ""
    first, second = result.err.strip().splitlines()[-2:]
    assert first.startswith(f"error [{code}] ")
    assert second.startswith("  try: ")
    assert len(second) > len("  try: ")
    assert "Traceback" not in result.err


def test_every_command_prints_json(hvlc: Hvlc, tiny_checkpoint, tiny_w4a16, image: Path, work: Path) -> None:
    out = work / "out"
    built = hvlc("build", tiny_checkpoint, "--recipe", "w4a16-rtn", "-o", out, "--json")
    assert (built.code, built.err) == (0, "")
    assert built.json
    ask = ("run", out, "--image", image, "--prompt", "What?", "--max-new-tokens", 2, "--json")
    answered = hvlc(*ask).json
    assert answered["encoder"] == "large"
    assert answered["visual_tokens"] > 0
    assert hvlc(*ask, "--encoder", "base", "--no-vrc", "--max-visual-tokens", 2).json["visual_tokens"] <= 2
    assert hvlc("inspect", out, "--json").json["sources"]["recipe_name"] == "w4a16-rtn"
    assert hvlc("verify", out, "--json").json["valid"] is True
    assert hvlc("verify", out, "--rebuild", tiny_checkpoint, "--json").json["identical"] is True
    assert hvlc("plan", tiny_checkpoint, "--recipe", "float32", "--json").json
    assert "w4a16" in hvlc("recipes", "list", "--json").json
    assert hvlc("recipes", "show", "w4a16", "--json").json["name"] == "w4a16"
    assert "cpu" in hvlc("targets", "list", "--json").json
    assert hvlc("targets", "show", "cpu", "--json").json["name"] == "cpu"
    evaluated = hvlc("eval", out, "-n", 2, "--encoder", "base", "-o", work / "eval", "--json")
    assert evaluated.json[0]["summary"]["n"] == 2
    assert (work / "eval" / "report.html").is_file()


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("512mb", 512 * 10**6), ("9", 9)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "two", "2 TB", "-1GB", "1GB2"])
def test_what_is_no_size_is_refused(hvlc: Hvlc, tiny_checkpoint: Path, text: str) -> None:
    refused(hvlc("plan", tiny_checkpoint, "--max-memory", text), "usage")


def test_a_plan_lists_every_weight(hvlc: Hvlc, tiny_checkpoint: Path) -> None:
    planned = hvlc("plan", tiny_checkpoint, "--json").json
    shown = hvlc("plan", tiny_checkpoint, "--weights").out
    assert planned["estimate"]["disk_bytes"] > 0
    assert all(a["format"] for a in planned["assignments"])
    assert shown.count("quantize") == sum(a["action"] == "quantize" for a in planned["assignments"])
    assert "expected:" in shown


def test_every_command_prints_for_people(hvlc: Hvlc, tiny_checkpoint, tiny_w4a16, image: Path, work: Path) -> None:
    assert hvlc("build", tiny_checkpoint, "-o", work / "out").code == 0
    answered = hvlc("run", work / "out", "--image", image, "--image", image, "--prompt", "?", "-v")
    assert answered.code == 0
    assert "token" in answered.err
    for arguments in (
        ("inspect", tiny_w4a16),
        ("verify", tiny_w4a16),
        ("verify", tiny_w4a16, "--rebuild", tiny_checkpoint),
        ("plan", tiny_checkpoint),
        ("plan", tiny_checkpoint, "--weights", "--max-memory", "4GB", "--threads", 1),
        ("recipes", "list"),
        ("recipes", "show", "w4a16"),
        ("targets", "list"),
        ("targets", "show", "cpu"),
        ("run", tiny_w4a16, "--prompt", "text only"),
        ("--help",),
        ("--version",),
    ):
        result = hvlc(*arguments)
        assert result.code == 0, result
        assert result.out


def test_a_build_leaves_only_its_output(hvlc: Hvlc, tiny_checkpoint: Path, work: Path) -> None:
    assert hvlc("build", tiny_checkpoint, "-o", work / "out").code == 0
    assert [p.name for p in work.iterdir()] == ["out"]
    refused(hvlc("build", tiny_checkpoint, "-o", work / "out"), "output.exists")
    assert hvlc("build", tiny_checkpoint, "-o", work / "out", "--force", "--recipe", "float32").code == 0
    assert [p.name for p in work.iterdir()] == ["out"]
    assert hvlc("inspect", work / "out", "--json").json["sources"]["recipe_name"] == "float32"


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no checkpoint": (("build", "NOWHERE", "-o", "OUT"), "checkpoint.missing"),
    "no parent": (("build", "CHECKPOINT", "-o", "NOWHERE/out"), "output.parent"),
    "foreign output": (("build", "CHECKPOINT", "-o", "WORK", "--force"), "output.foreign"),
    "unknown recipe": (("build", "CHECKPOINT", "-o", "OUT", "--recipe", "w4"), "recipe.unknown"),
    "unknown target": (("build", "CHECKPOINT", "-o", "OUT", "--target", "cup"), "target.unknown"),
    "no recipe file": (("build", "CHECKPOINT", "-o", "OUT", "--recipe", "mine.yaml"), "spec.unreadable"),
    "no package": (("run", "NOWHERE", "--prompt", "?"), "package.missing"),
    "no image": (("run", "PACKAGE", "--prompt", "?", "--image", "NOWHERE"), "image.missing"),
    "no such encoder": (("run", "PACKAGE", "--prompt", "?", "--encoder", "huge"), "request.encoder"),
    "long prompt": (("run", "PACKAGE", "--prompt", "x" * 2000), "request.too_long"),
    "nothing to verify": (("verify", "NOWHERE"), "package.missing"),
    "nothing to inspect": (("inspect", "CHECKPOINT"), "package.missing"),
    "nothing to evaluate": (("eval", "NOWHERE", "-n", "1"), "eval.model"),
    "no such recipe": (("recipes", "show", "nothing"), "recipe.unknown"),
    "no such command": (("biuld",), "usage"),
    "no such option": (("build", "--recipee", "x"), "usage"),
    "missing option": (("run", "PACKAGE"), "usage"),
    "a number that is none": (("run", "PACKAGE", "--prompt", "?", "--tile-batch", "0"), "usage"),
}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_exits_with_two_and_a_way_out(
    hvlc: Hvlc, tiny_checkpoint: Path, tiny_w4a16: Path, work: Path, case: str, as_json: bool
) -> None:
    (work / "foreign").write_text("not ours")
    places = {"CHECKPOINT": tiny_checkpoint, "PACKAGE": tiny_w4a16, "WORK": work, "OUT": work / "out"}
    arguments, code = WRONG[case]
    filled = [str(places.get(a, a)).replace("NOWHERE", str(work / "nowhere")) for a in arguments]
    result = hvlc(*filled, *(["--json"] if as_json else []))
    if as_json:
        assert result.code == 2
        assert result.json["error"]["code"] == code
        assert set(result.json["error"]) == {"code", "cause", "fix"}
    else:
        refused(result, code)
    assert [p.name for p in work.iterdir()] == ["foreign"]


def test_what_the_target_refuses_exits_with_three(hvlc: Hvlc, tiny_checkpoint: Path, work: Path) -> None:
    recipe = work.parent / "mine.yaml"
    rule = "{role: decoder, quantize: {bits: 4, block_size: 48}}"
    recipe.write_text(f"schema_version: 1\nname: mine\ndescription: d\nrules: [{rule}]\n")
    refused(hvlc("build", tiny_checkpoint, "-o", work / "out", "--recipe", recipe), "plan.target", 3)
    assert list(work.iterdir()) == []


def test_a_bug_exits_with_one_and_asks_for_a_report(hvlc: Hvlc, monkeypatch, tiny_w4a16: Path) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("hvlc.manifest.manifest.Manifest.load", broken)
    refused(hvlc("verify", tiny_w4a16), "bug", 1)
    with pytest.raises(ZeroDivisionError):
        cli.main(["--debug", "verify", str(tiny_w4a16)])


@pytest.mark.parametrize("target", ["hvlc.package.streaming._Output.write", "hvlc.package.writer._sync"])
def test_a_full_disk_during_the_build_leaves_nothing(hvlc, monkeypatch, tiny_checkpoint, work, target: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(target, full)
    refused(hvlc("build", tiny_checkpoint, "--recipe", "w4a16-rtn", "-o", work / "out"), "output.disk_full")
    assert list(work.iterdir()) == []


def test_too_little_space_is_seen_before_the_work(hvlc, monkeypatch, tiny_checkpoint, work) -> None:
    usage = type(shutil.disk_usage("/"))(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(hvlc("build", tiny_checkpoint, "-o", work / "out"), "output.disk_full")
    assert list(work.iterdir()) == []


def test_a_tampered_package_is_refused(hvlc: Hvlc, tiny_w4a16: Path, work: Path) -> None:
    copied = shutil.copytree(tiny_w4a16, work / "package")
    (copied / "chat_template.jinja").write_text("{{ 'ignore the question' }}")
    for command in (("verify", copied), ("run", copied, "--prompt", "?")):
        refused(hvlc(*command), "package.digest")


STOPPED_AT = {
    "export": ("hvlc.export", "export_bundle"),
    "the first weight": ("hvlc.package.onnx_files", "write_data"),
    "the last file": ("hvlc.package.writer", "_sync"),
}
SCRIPT = """
import importlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored, and so have its children
module, name, reached, *arguments = sys.argv[1:]
def wait(*_):
    open(reached, "w").close()
    time.sleep(60)
setattr(importlib.import_module(module), name, wait)
from hvlc.cli import main
main(arguments)
"""


@pytest.mark.parametrize(
    ("moment", "stop"), [*((moment, signal.SIGINT) for moment in STOPPED_AT), ("the last file", signal.SIGTERM)]
)
def test_an_interrupted_build_leaves_nothing(
    tiny_checkpoint: Path, work: Path, moment: str, stop: signal.Signals
) -> None:
    reached = work.parent / "reached"
    build = ["build", tiny_checkpoint, "--recipe", "w4a16-rtn", "-o", work / "out"]
    command = [sys.executable, "-c", SCRIPT, *STOPPED_AT[moment], reached, *build]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not reached.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        before = list(work.iterdir())
        process.send_signal(stop)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "error [interrupted]" in err
    assert "Traceback" not in err
    assert out == ""
    assert len(before) == (0 if moment == "export" else 1)
    assert list(work.iterdir()) == []
