"""Untrusted image bytes become an upright RGB image or the user's error, never anything else."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hvlc.errors import UserError
from hvlc.inputs import images
from hvlc.inputs.images import load_image, to_array
from tests.helpers.tiny import picture


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PNG = encoded(picture(40, 30), "PNG")
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "image.empty"),
    "garbage": (b"this is no image at all" * 20, "image.unreadable"),
    "text": (b"hello\n", "image.unreadable"),
    "signature only": (PNG[:8], "image.unreadable"),
    "header only": (PNG[:33], "image.unreadable"),
    "cut in the middle": (PNG[: len(PNG) // 2], "image.unreadable"),
    "cut at the end": (PNG[:-30], "image.unreadable"),
    "cut jpeg": (encoded(picture(40, 30), "JPEG")[:400], "image.unreadable"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"/>', "image.unreadable"),
    "zero size": (PNG[:16] + b"\0" * 8 + PNG[24:], "image.unreadable"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_image_is_refused(tmp_path: Path, case: str) -> None:
    content, code = BROKEN[case]
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_image(path)
    assert (error.value.code, error.value.exit_code) == (code, 2)
    assert "image.png" in error.value.cause


@pytest.mark.parametrize("name", ["absent.png", "."])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is no file"):
        load_image(tmp_path / name)


def test_more_pixels_than_the_limit_are_refused_before_decoding(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(images, "PIXEL_LIMIT", 40 * 30 - 1)
    (tmp_path / "image.png").write_bytes(PNG)
    with pytest.raises(UserError) as error:
        load_image(tmp_path / "image.png")
    assert error.value.code == "image.too_large"


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    bomb = PNG[:16] + (60_000).to_bytes(4, "big") * 2 + PNG[24:]
    (tmp_path / "image.png").write_bytes(bomb)
    with pytest.raises(UserError) as error:
        load_image(tmp_path / "image.png")
    assert error.value.code in ("image.too_large", "image.unreadable")


def _rgba(value: int) -> Image.Image:
    return Image.new("RGBA", (4, 4), (value, value, value, 255))


MODES: dict[str, tuple[Callable[[], Image.Image], str, int]] = {
    "black and white": (lambda: Image.new("1", (4, 4), 1), "PNG", 255),
    "grey": (lambda: Image.new("L", (4, 4), 100), "PNG", 100),
    "grey with alpha": (lambda: _rgba(100).convert("LA"), "PNG", 100),
    "alpha": (lambda: _rgba(100), "PNG", 100),
    "palette": (lambda: _rgba(100).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE), "PNG", 100),
    "16 bit": (lambda: Image.fromarray(np.full((4, 4), 100 * 257, np.uint16)), "PNG", 100),
    "16 bit tiff": (lambda: Image.fromarray(np.full((4, 4), 100 * 257, np.uint16)), "TIFF", 100),
    "cmyk": (lambda: _rgba(100).convert("RGB").convert("CMYK"), "TIFF", 100),
    "ycbcr": (lambda: _rgba(100).convert("RGB"), "JPEG", 100),
    "webp": (lambda: _rgba(100), "WEBP", 100),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb_of_the_same_grey(tmp_path: Path, mode: str) -> None:
    make, format, grey = MODES[mode]
    path = tmp_path / f"image.{format.lower()}"
    make().save(path)
    array = to_array(load_image(path))
    assert (array.shape, array.dtype) == ((4, 4, 3), np.uint8)
    assert np.abs(array.astype(int) - grey).max() <= 2


def test_transparent_pixels_are_seen_on_white(tmp_path: Path) -> None:
    """As viewers show them: black text on a transparent page must not become black on black."""
    page = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    page.putpixel((1, 1), (0, 0, 0, 255))
    page.save(tmp_path / "page.png")
    array = to_array(load_image(tmp_path / "page.png"))
    assert array[0, 0].tolist() == [255, 255, 255]
    assert array[1, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste((0, 0, 0), (0, 0, 16, 16))  # black corner, top left
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=100)
    array = to_array(load_image(tmp_path / "photo.jpg"))
    assert array.shape == (32, 48, 3)
    assert array[4, 4].max() < 60
    assert min(array[28, 4].min(), array[4, 44].min(), array[28, 44].min()) > 200


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x8769] = 6, {0x9003: "2026:01:01 00:00:00"}
SAMPLES = [
    PNG,
    encoded(picture(40, 30), "JPEG", exif=EXIF),
    encoded(picture(40, 30), "GIF"),
    encoded(picture(40, 30), "BMP"),
    encoded(picture(40, 30), "WEBP"),
    encoded(picture(40, 30), "TIFF", compression="tiff_lzw"),
    encoded(picture(40, 30).convert("P"), "PNG"),
]


@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
    st.booleans(),
)
@settings(max_examples=400)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_changed_bytes_give_an_image_or_the_users_error(
    tmp_path_factory, sample: bytes, changes: list[tuple[int, int]], early: bool
) -> None:
    content = bytearray(sample)
    for position, value in changes:
        content[position % (160 if early else len(content))] = value
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(content)
    assert outcome(path).startswith(("RGB", "image."))


def outcome(path: Path) -> str:
    try:
        return load_image(path).mode
    except UserError as error:
        return error.code
