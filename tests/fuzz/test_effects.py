"""Hostile packages and images start nothing, write nowhere else, and load no library of theirs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.fuzz.effects import WATCHES
from tests.helpers.packages import changed_json, renewed

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(PWNED) (w) file closefile\nshowpage\n%%EOF\n"


def _library(package: Path) -> Path:
    """A shared library in the package; any will do, because loading it is what must not happen."""
    return Path(shutil.copyfile(min(Path(numpy.__file__).parent.rglob("*.so")), package / "evil.so"))


def _loads(package: Path) -> None:
    _library(package)
    decoder = {"custom_ops_library": "evil.so", "provider_options": []}
    changed_json(package / "genai_config.json", lambda c: c["model"]["decoder"].update(session_options=decoder))
    renewed(package, "evil.so")


def _profiles(package: Path) -> None:
    target = str(package.parent.parent / "profile")
    changed_json(
        package / "genai_config.json",
        lambda c: c["model"]["decoder"]["session_options"].update(enable_profiling=target),
    )
    renewed(package)


def _provides(package: Path) -> None:
    _library(package)
    named = {"name": "QNN", "options": {"backend_path": str(package / "evil.so")}}
    changed_json(package / "hvlc.json", lambda m: m["components"]["model"].update(provider=named))


def _brings_more(package: Path) -> None:
    (package / "chat_template.json").write_text('{"chat_template": "x"}')


HOSTILE: dict[str, Callable[[Path], None]] = {
    "loads a library": _loads,
    "writes a profile": _profiles,
    "brings a provider's library": _provides,
    "brings a file that is not listed": _brings_more,
    "names a file outside": lambda p: changed_json(
        p / "hvlc.json", lambda m: m["files"].update({"../../secret": m["files"]["model.onnx"]})
    ),
}


@pytest.mark.parametrize("watch", WATCHES)
def test_hostile_packages_and_images_have_no_effects(tiny_w4a16: Path, tmp_path: Path, watch: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "secret").write_text("key")
    good = shutil.copytree(tiny_w4a16, work / "good")
    Image.new("RGB", (60, 40), "white").save(work / "page.png")
    (work / "eps.png").write_bytes(EPS)
    commands: list[tuple[object, ...]] = [("verify", good), ("inspect", good), ("lint", good, "--target", "cpu")]
    commands.append(("run", good, "--prompt", "Hi", "--image", "page.png", "--max-new-tokens", 2))
    commands.append(("run", good, "--prompt", "Hi", "--image", "eps.png"))
    fine = len(commands) - 1
    for number, case in enumerate(HOSTILE):
        package = shutil.copytree(tiny_w4a16, work / f"package{number}")
        HOSTILE[case](package)
        commands += [("verify", package), ("inspect", package), ("lint", package, "--target", "cpu")]
        commands.append(("lint", package, "--target", "qnn-sm8750", "--fix", "-o", work / f"fixed{number}"))
        commands.append(("run", package, "--prompt", "Hi", "--max-new-tokens", 2))
    found = WATCHES[watch](commands, work)
    assert [code for code, _ in found.codes] == [0] * fine + [2] * (len(commands) - fine), found.codes
    assert found.beyond([work]) == []
    assert any("onnxruntime" in path for path in found.loaded)
    assert found.written  # links for the runtime, inside the temporary directory


PLANTED: dict[str, str] = {
    "a process": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "a shell": "import os; os.system('true')",
    "a file outside": "open('../outside', 'w').close()",
    "a directory outside": "import os; os.mkdir('../beside')",
    "a link outside": "import os; os.symlink('x', '../link')",
    "a library": "import ctypes; ctypes.CDLL('./evil.so')",
}


@pytest.mark.parametrize("watch", WATCHES)
def test_what_is_allowed_is_not_found(tmp_path: Path, watch: str) -> None:
    found = WATCHES[watch](["open('inside', 'w').close(); import ctypes, zlib, onnxruntime"], tmp_path)
    assert found.beyond([tmp_path]) == []


@pytest.mark.parametrize("watch", WATCHES)
@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_effect_is_found(tmp_path: Path, case: str, watch: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    _library(work)
    assert WATCHES[watch]([PLANTED[case]], work).beyond([work]) != []
