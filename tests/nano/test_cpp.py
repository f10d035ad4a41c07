"""The client in C++ answers what the client in Python answers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import onnxruntime_genai
import pytest
from PIL import Image

from hvlc.evaluation.documents import DocumentsTask
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.helpers.examples import EXAMPLES
from tests.helpers.tiny import picture
from tests.helpers.tiny_naflex import save_naflex
from tests.helpers.tiny_vision_language import save_block, save_grid
from tests.workflows.train.test_vrc import compressor

HEADERS = os.environ.get("HVLC_ORT_HEADERS", "")
DOCUMENTS = 3
BLOCKS = {"num_heads": 4, "intermediate_size": 64, "hidden_size": 64}  # of sizes that 4-bit blocks divide

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HEADERS, reason="HVLC_ORT_HEADERS names no headers of onnxruntime (docs/apps.md)"),
    pytest.mark.skipif(None in (shutil.which("cmake"), shutil.which("c++")), reason="no cmake or no C++ compiler"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, of the headers named and the libraries of the Python packages."""
    root = tmp_path_factory.mktemp("cpp")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    (root / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (root / "lib" / name).symlink_to(library)
    genai = Path(onnxruntime_genai.__file__).parent / "libonnxruntime-genai.so"
    (root / "lib" / genai.name).symlink_to(genai)
    (root / "include").symlink_to(HEADERS)
    made = ["cmake", "-S", EXAMPLES / "cpp", "-B", root / "build", f"-DCMAKE_PREFIX_PATH={root}"]
    flags = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"
    for command in ([*made, flags], ["cmake", "--build", root / "build"]):
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr
    return root / "build" / "ask_package"


def same_answer(client: Path, package: Path, question: str, image: Path, encoder: str | None = None) -> bytes:
    """What both clients print."""
    python = [sys.executable, "-I", str(EXAMPLES / "ask_package.py"), package, question, image]
    chosen = [encoder] if encoder else []
    told = subprocess.run(
        [*python, *(["--encoder", *chosen] if encoder else [])], capture_output=True, check=True
    ).stdout
    found = subprocess.run([client, package, question, image, *chosen], capture_output=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout == told
    return told


@pytest.mark.parametrize("recipe", ["float32", "w4a16"])
def test_documents_have_the_same_answers(client: Path, packages: dict[str, Path], tmp_path: Path, recipe: str) -> None:
    task, image = DocumentsTask(DOCUMENTS), tmp_path / "image.png"
    for index in range(DOCUMENTS):
        example = task.example(index)
        example.images[0].save(image)
        for encoder in ("base", "large"):
            same_answer(client, packages[recipe], example.question, image, encoder)


@pytest.mark.parametrize(
    ("save", "target"), [(save_grid, "cpu"), (save_grid, "qnn-sm8750"), (save_naflex, "cpu"), (save_block, "cpu")]
)
def test_other_families_have_the_same_answers(client: Path, tmp_path: Path, save, target: str) -> None:
    """Grids of positions, fixed shapes, an overview beside pieces and alone, text that joins an image."""
    fixed = {} if target == "cpu" else {"aot": False, "context": 640, "grids": ((48, 48), (40, 72))}
    options = {"vision": BLOCKS} if save is save_grid else {}
    build(open_request(save(tmp_path / "checkpoint", **options), target, "w4a16-rtn", tmp_path / "package", **fixed))
    said = set()
    for number, (height, width) in enumerate([(40, 30), (150, 90)]):
        picture(height, width).save(tmp_path / f"{number}.png")
        said.add(same_answer(client, tmp_path / "package", "What is it?", tmp_path / f"{number}.png"))
    assert len(said) > 1  # the image is seen


def test_a_compressor_reads_the_question(client: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    package, image = tmp_path / "package", tmp_path / "image.png"
    made = compressor(tmp_path / "vrc", tiny_checkpoint)
    build(open_request(tiny_checkpoint, "cpu", "float32", package, vrc=made))
    picture(150, 150).save(image)
    model, scales = VisionLanguageModel(package, threads=1), set()
    for question in ("What?", "a", "Which one of them?", "7"):
        wanted = model.answer(question, [Image.open(image)], encoder="base", vrc=True, max_new_tokens=64)
        scales.add(wanted.scales)
        assert same_answer(client, package, question, image, "base").decode("utf-8").removesuffix("\n") == wanted.text
    assert len(scales) > 1


def test_what_is_wrong_is_said(client: Path, tmp_path: Path) -> None:
    found = subprocess.run([client, tmp_path, "What?", "none.png"], capture_output=True, text=True, check=False)
    assert (found.returncode, "hvlc.json" in found.stderr) == (1, True)
