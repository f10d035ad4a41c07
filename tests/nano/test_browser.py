"""The browser client gives the features of the CPU's onnxruntime."""

import asyncio
import base64
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvlc.evaluation.documents import DocumentsTask
from hvlc.manifest.manifest import Manifest
from hvlc.runtime.vision import Vision
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.helpers.browser import CHROMIUM, Page, page
from tests.helpers.examples import example
from tests.helpers.tiny import picture
from tests.helpers.tiny_naflex import save_naflex
from tests.helpers.tiny_vision_language import save_block, save_grid
from tests.helpers.tolerances import BROWSER, BROWSER_INTEGERS
from tests.workflows.train.test_vrc import compressor

SERVE = example("browser/serve.py")
RUNTIME = SERVE.CACHE / SERVE.RUNTIME
DOCUMENTS = 3
#: The last image of the page, its arrays as base64.
RESULT = """(() => {
  const { image, features, ids, grid, scale, encoder, bytes } = window.result;
  const coded = array => {
    const all = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    let text = "";
    for (let at = 0; at < all.length; at += 8192) text += String.fromCharCode(...all.subarray(at, at + 8192));
    return btoa(text);
  };
  return { pixels: coded(image.pixels), features: coded(features.data), shape: features.dims, ids: [...ids].map(Number),
    grid: [...grid].map(Number), scale, encoder, bytes };
})()"""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not RUNTIME.is_dir(), reason="no onnxruntime-web (examples/browser/serve.py says how)"),
]


@dataclass(frozen=True)
class Looked:
    """An image in the browser.

    Attributes:
        pixels: uint8 `[height, width, 3]`, as it was decoded.
        features: float32 `[visual tokens, hidden]`.
        told: everything else that the page found.
    """

    pixels: np.ndarray
    features: np.ndarray
    told: dict[str, Any]


@contextmanager
def served(package: Path) -> Iterator[str]:
    """Address of the example, which serves a package."""
    command = [sys.executable, "-I", str(SERVE.__file__), str(package), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout
            yield server.stdout.readline().strip()
        finally:
            server.kill()


async def look(shown: Page, image: Path, encoder: str) -> Looked:
    await shown.value(f"document.getElementById('encoder').value = '{encoder}'")
    await shown.value("document.getElementById('state').textContent = 'waiting'")
    await shown.choose_file("#file", image)
    await shown.until("/done|failed/.test(document.getElementById('state').textContent)")
    assert await shown.value("document.getElementById('state').textContent") == "done"
    told = await shown.value(RESULT)
    shape = np.asarray(Image.open(image).convert("RGB")).shape
    pixels = np.frombuffer(base64.b64decode(told.pop("pixels")), np.uint8).reshape(shape)
    features = np.frombuffer(base64.b64decode(told.pop("features")), np.float32).reshape(told.pop("shape"))
    return Looked(pixels, features, told)


def noise(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


async def visit(address: str, profile: Path, images: Sequence[Path], encoders: Sequence[str]) -> list[list[Looked]]:
    """Every image by each encoder; "" is the policy's."""
    async with page(address, profile, width=700, height=700) as shown:
        await shown.until("document.getElementById('state').textContent === 'ready'")
        found = [[await look(shown, file, name) for file in images] for name in encoders]
        assert shown.problems == []
        return found


def check(looked: Looked, vision: Vision, file: Path, encoder: str, tolerance: float) -> None:
    """Hold an image in the browser against the same graphs on the CPU."""
    pixels = np.asarray(Image.open(file).convert("RGB"))
    np.testing.assert_array_equal(looked.pixels, pixels)
    seen = vision.see(pixels, compress=True)
    assert looked.told["encoder"] == encoder
    assert looked.told["ids"] == seen.ids.tolist()
    assert looked.told["grid"] == seen.grid.tolist()
    assert looked.told["scale"] == pytest.approx(seen.scale, rel=1e-6)
    assert noise(looked.features, vision.encode([seen], encoder).features[0]) < tolerance


@pytest.mark.parametrize(("recipe", "tolerance"), [("float32", BROWSER), ("w4a16", BROWSER_INTEGERS)])
def test_features_are_those_of_the_cpu(
    packages: dict[str, Path], tmp_path: Path, recipe: str, tolerance: float
) -> None:
    package, task = packages[recipe], DocumentsTask(DOCUMENTS)
    vision = Vision(package, Manifest.load(package), threads=1)
    images = [tmp_path / f"{index}.png" for index in range(DOCUMENTS)]
    for index, file in enumerate(images):
        task.example(index).images[0].save(file)
    with served(package) as address:
        *chosen, policy = asyncio.run(visit(address, tmp_path / "profile", images, ["base", "large", ""]))
    assert {looked.told["encoder"] for looked in policy} == {"large"}
    for encoder, other, looks in zip(("base", "large"), ("large", "base"), chosen, strict=True):
        for file, looked in zip(images, looks, strict=True):
            check(looked, vision, file, encoder, tolerance)
            assert looked.told["bytes"] < 100e6
            with pytest.raises(AssertionError):  # another encoder's features are told apart
                check(replace(looked, told=looked.told | {"encoder": other}), vision, file, other, tolerance)


@pytest.mark.parametrize("save", [save_grid, save_naflex, save_block])
def test_features_of_other_families_are_those_of_the_cpu(tmp_path: Path, save: Any) -> None:
    """Native grids and side channels, an overview beside pieces and alone, one fixed image."""
    package, images = tmp_path / "package", []
    build(open_request(save(tmp_path / "checkpoint"), "cpu", "w4a16-rtn", package))
    vision = Vision(package, Manifest.load(package), threads=1)
    for height, width in ((40, 30), (150, 90)):
        images.append(tmp_path / f"{height}.png")
        picture(height, width).save(images[-1])
    with served(package) as address:
        (looks,) = asyncio.run(visit(address, tmp_path / "profile", images, ["main"]))
    for file, looked in zip(images, looks, strict=True):
        check(looked, vision, file, "main", BROWSER_INTEGERS)


def test_a_compressor_reads_the_question(tmp_path: Path, tiny_checkpoint: Path) -> None:
    package, image = tmp_path / "package", tmp_path / "image.png"
    made = compressor(tmp_path / "vrc", tiny_checkpoint)
    build(open_request(tiny_checkpoint, "cpu", "float32", package, vrc=made))
    vision, pixels = Vision(package, Manifest.load(package), threads=1), picture(150, 150)
    pixels.save(image)
    questions = [[5], [40, 41, 42], list(range(30, 60))]

    async def scales(address: str) -> list[float]:
        async with page(address, tmp_path / "profile", width=700, height=700) as shown:
            await shown.until("document.getElementById('state').textContent === 'ready'")
            await look(shown, image, "base")
            scale = "window.model.see(window.result.image, { encoder: 'base', question: %s }).then(seen => seen.scale)"
            return [await shown.value(scale % question) for question in questions]

    with served(package) as address:
        found = asyncio.run(scales(address))
    wanted = [vision.see(np.asarray(pixels), compress=True, question=question).scale for question in questions]
    assert found == pytest.approx(wanted, rel=1e-6)
    assert len(set(wanted)) > 1
