"""The page asks its own server alone, and shows what became of the image."""

import asyncio
import base64
import io
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from hvlc.runtime.generation import VisionLanguageModel
from hvlc.serving.app import PAGE, Server
from hvlc.serving.limits import Limits
from tests.helpers.asking import body, serving
from tests.helpers.browser import CHROMIUM, page
from tests.helpers.tiny import picture


@pytest.fixture(scope="module")
def model(tiny_float32: Path) -> VisionLanguageModel:
    return VisionLanguageModel(tiny_float32, threads=1)


def ask(model: VisionLanguageModel, method: str, path: str, **options: object) -> httpx.Response:
    server = Server({"tiny": model}, Limits(seconds=60), key=None)

    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(server.application())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)  # type: ignore[arg-type]

    try:
        return asyncio.run(one())
    finally:
        server.line.close()


def test_the_page_names_no_other_host(model: VisionLanguageModel) -> None:
    found = ask(model, "GET", "/")
    assert found.status_code == 200
    assert found.text == PAGE.read_text("utf-8")
    assert not re.search(r"<[^>]* (src|href|action)\s*=|https?://|@import|url\(", found.text)
    assert "default-src 'none'" in found.headers["content-security-policy"]
    assert "connect-src 'self'" in found.headers["content-security-policy"]


def test_a_look_is_what_the_runtime_sees(model: VisionLanguageModel) -> None:
    image = picture(150, 100)
    found = ask(model, "POST", "/v1/look", json=body("tiny", images=(image,), vrc=False)).json()
    (seen,) = model.see("What?", [image], vrc=False)
    (told,) = found["images"]
    assert (told["scale"], told["visual_tokens"], told["count"]) == (seen.scale, seen.visual_tokens, seen.count)
    assert told["grid"] == seen.grid.tolist()
    assert len(told["tiles"]) == seen.count
    first = Image.open(io.BytesIO(base64.b64decode(told["tiles"][0]["url"].partition(",")[2])))
    shown, pixels = np.asarray(first, float), seen.pieces[0].transpose(1, 2, 0)
    assert shown.shape == pixels.shape
    assert np.corrcoef(shown.ravel(), pixels.ravel())[0, 1] > 0.99


def test_equal_tiles_have_one_group(model: VisionLanguageModel) -> None:
    blank = Image.new("RGB", (96, 96), "white")  # seen at its own size
    (told,) = ask(model, "POST", "/v1/look", json=body("tiny", images=(blank,), vrc=False)).json()["images"]
    groups = [tile["group"] for tile in told["tiles"]]
    assert told["distinct"] == len(set(groups)) < len(groups)


def test_a_look_at_nothing_is_empty_and_at_what_is_wrong_refused(model: VisionLanguageModel) -> None:
    assert ask(model, "POST", "/v1/look", json=body("tiny")).json()["images"] == []
    wrong = body("tiny", max_visual_tokens=1, images=(picture(90, 90),))
    assert ask(model, "POST", "/v1/look", json=wrong).status_code in (200, 400)
    assert ask(model, "POST", "/v1/look", content=b"{}").status_code == 415


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "height"), [(1200, 1000), (390, 1400)])
def test_the_page_asks_two_packages_side_by_side(
    tmp_path: Path, tiny_float32: Path, tiny_w4a16: Path, width: int, height: int
) -> None:
    pytest.importorskip("websockets")
    picture(200, 300).save(tmp_path / "image.png")

    async def visit(address: str) -> None:
        async with page(address, tmp_path / "profile", width=width, height=height) as shown:
            await shown.until("document.getElementById('model')?.options.length === 2")
            await shown.choose_file("#file", tmp_path / "image.png")
            await shown.until("!document.getElementById('shown').hidden")
            await shown.value("document.getElementById('other').selectedIndex = 2")
            slider = "const s = document.getElementById('budget'); s.value = 1; s.dispatchEvent(new Event('input'))"
            await shown.value(slider)
            assert await shown.value("document.getElementById('bound').textContent") == "32"
            await shown.value("document.querySelector('#ask button').click()")
            await shown.until("document.querySelectorAll('.answers p').length === 1")
            told = await shown.value("document.getElementById('answers').innerText")
            assert told.count("visual tokens") == 2
            assert "same tokens" in told or "differ from token" in told
            tokens = [int(n) for n in re.findall(r"(\d+) visual tokens", told)]
            assert max(tokens) <= 32
            assert await shown.value("document.querySelectorAll('.tiles img').length") > 1
            assert await shown.value("document.documentElement.scrollWidth <= window.innerWidth")
            await shown.screenshot(tmp_path / "page.png")
            assert shown.problems == []

    with serving(tiny_float32, tiny_w4a16) as server:
        asyncio.run(visit(server.address + "/"))
    assert Image.open(tmp_path / "page.png").size == (width, height)
