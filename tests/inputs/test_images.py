"""Untrusted image bytes become an upright RGB image or the user's error, never anything else."""

import io
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from hvlc.errors import UserError
from hvlc.inputs import images
from hvlc.inputs.images import image_size, load_image, load_images, to_array
from tests.fuzz.processes import recorded_processes
from tests.helpers.tiny import picture


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PNG = encoded(picture(40, 30), "PNG")
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "image.empty"),
    "garbage": (b"this is not an image at all" * 20, "image.unreadable"),
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
    with pytest.raises(UserError, match="is not a file"):
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


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"
OTHERS: dict[str, Callable[[], bytes]] = {
    "eps": lambda: EPS,
    "eps of dos": lambda: (
        b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + len(EPS).to_bytes(4, "little") + bytes(18) + EPS
    ),
    "ppm": lambda: b"P6 2 2 255\n" + bytes(12),
    "dds": lambda: encoded(picture(8, 8), "DDS"),
    "ico": lambda: encoded(picture(16, 16), "ICO"),
    "jpeg 2000": lambda: encoded(picture(8, 8), "JPEG2000"),
    "pcx": lambda: encoded(picture(8, 8), "PCX"),
    "tga": lambda: encoded(picture(8, 8), "TGA"),
    "blp": lambda: b"BLP2" + bytes(200),
    "avif": lambda: b"\0\0\0\x20ftypavif" + bytes(300),
    "pdf": lambda: b"%PDF-1.4\n%%EOF",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_not_tried_whatever_the_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "total.png"
    path.write_bytes(OTHERS[name]())
    with recorded_processes() as started:
        for read in (load_image, image_size):
            with pytest.raises(UserError) as error:
                read(path)
            assert error.value.code == "image.unreadable"
    assert started == []


def test_what_would_start_a_process_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the list of formats, Pillow starts Ghostscript: the test above sees it."""
    interpreter = tmp_path / "gs"
    interpreter.write_text("#!/bin/sh\nexit 0\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    monkeypatch.setattr(images, "FORMATS", ("EPS",))
    (tmp_path / "total.png").write_bytes(EPS)
    with recorded_processes() as started:
        assert outcome(tmp_path / "total.png") == "image.unreadable"
    assert any("gs" in one for one in started)


def tiff(values: np.ndarray, *, bits: int, kind: int = 1, white_is_zero: bool = False, order: str = "<") -> bytes:
    """A TIFF of one strip and one channel; `kind` is 1 for unsigned integers, 2 for signed ones, 3 for floats."""
    raw = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    fields = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 200, 277: 1, 278: height}
    fields |= {279: len(raw), 339: kind}
    entries = b"".join(struct.pack(f"{order}HHLL", tag, 4, 1, value) for tag, value in fields.items())
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HLH", 42, 8, len(fields)) + entries
    return (start + bytes(4)).ljust(200, b"\0") + raw


RAMP = np.array([[0, 0.25, 0.5, 1]])
SHOWN = [0, 64, 128, 255]
WIDE: dict[str, tuple[bytes, list[int]]] = {
    "float to 1": (tiff(RAMP.astype("f4"), bits=32, kind=3), SHOWN),
    "float to 1, of another byte order": (tiff(RAMP.astype("f4"), bits=32, kind=3, order=">"), SHOWN),
    "float with overshoot": (tiff(np.array([[-0.5, 0, 1, 1.2]], "f4"), bits=32, kind=3), [0, 0, 255, 255]),
    "float to 255": (tiff(np.array([[0, 64, 127.6, 255]], "f4"), bits=32, kind=3), SHOWN),
    "float to 65535": (tiff((RAMP * 65535).astype("f4"), bits=32, kind=3), SHOWN),
    "float to a million": (tiff((RAMP * 1e6).astype("f4"), bits=32, kind=3), SHOWN),
    "float without numbers": (tiff(np.array([[np.nan, np.inf, -np.inf, 1]], "f4"), bits=32, kind=3), [0, 255, 0, 255]),
    "float of white 0": (tiff(RAMP.astype("f4"), bits=32, kind=3, white_is_zero=True), [255, 191, 127, 0]),
    "16 bit": (tiff(np.array([[0, 0x4000, 0x8080, 0xFFFF]], "u2"), bits=16), [0, 63, 128, 255]),
    "16 bit of another byte order": (
        tiff(np.array([[0, 0x4000, 0x8080, 0xFFFF]], "u2"), bits=16, order=">"),
        [0, 63, 128, 255],
    ),
    "16 bit, dark": (tiff(np.array([[0, 1, 257, 514]], "u2"), bits=16), [0, 0, 1, 2]),
    "16 bit of white 0": (
        tiff(np.array([[0, 257, 65278, 65535]], "u2"), bits=16, white_is_zero=True),
        [255, 254, 1, 0],
    ),
    "16 bit, signed": (tiff(np.array([[-5, 0, 16447, 32767]], "i2"), bits=16, kind=2), [0, 0, 127, 255]),
    "32 bit of bytes": (tiff(np.array([[0, 64, 128, 255]], "u4"), bits=32), SHOWN),
    "32 bit of words": (tiff(np.array([[0, 16448, 32896, 65535]], "u4"), bits=32), SHOWN),
    "32 bit": (tiff(np.array([[0, 2**30, 2**31, 2**32 - 1]], "u4"), bits=32), [0, 63, 127, 255]),
    "32 bit, signed": (tiff(np.array([[-1, 2**29, 2**30, 2**31 - 1]], "i4"), bits=32, kind=2), [0, 63, 127, 255]),
}


@pytest.mark.parametrize("name", WIDE)
def test_wide_greys_look_as_they_look(tmp_path: Path, name: str) -> None:
    content, expected = WIDE[name]
    (tmp_path / "scan.tif").write_bytes(content)
    array = to_array(load_image(tmp_path / "scan.tif"))
    assert array[0, :, 0].tolist() == expected
    assert (array == array[..., :1]).all()


def test_twelve_bits_are_scaled_from_twelve_bits(tmp_path: Path) -> None:
    packed = tiff(np.frombuffer(bytes.fromhex("000800fff000"), np.uint8)[None], bits=12)
    content = bytearray(packed)
    content[18:22] = struct.pack("<L", 4)  # the width: 4 values of 12 bits
    (tmp_path / "scan.tif").write_bytes(content)
    assert to_array(load_image(tmp_path / "scan.tif"))[0, :3, 0].tolist() == [0, 127, 255]


def test_the_transparent_grey_of_a_wide_png_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 300, 65535]], np.uint16))
    image.save(tmp_path / "page.png", transparency=300)
    assert to_array(load_image(tmp_path / "page.png"))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_a_large_image_is_made_smaller_and_looks_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(images, "WORKING_PIXELS", 60 * 90)
    monkeypatch.setattr(images, "_BAND", 1000)
    smooth = Image.radial_gradient("L").resize((200, 300)).convert("RGB")
    (tmp_path / "image").write_bytes(encoded(smooth, format))
    array = to_array(load_image(tmp_path / "image"))
    assert array.shape == (90, 60, 3)
    expected = np.asarray(smooth.resize((60, 90), Image.Resampling.HAMMING), int)
    assert np.abs(array - expected).mean() < 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_bands_are_what_the_whole_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    image = picture(70, 210).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "image.png")
    monkeypatch.setattr(images, "WORKING_PIXELS", 30 * 90)
    whole = to_array(load_image(tmp_path / "image.png"))
    monkeypatch.setattr(images, "_BAND", 70 * 7)
    assert np.array_equal(to_array(load_image(tmp_path / "image.png")), whole)


def test_many_images_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image.png").write_bytes(PNG)
    paths = [tmp_path / "image.png"] * 3
    assert [image.size for image in load_images(paths)] == [(30, 40)] * 3
    monkeypatch.setattr(images, "TOGETHER_LIMIT", 3 * 40 * 30 - 1)
    with pytest.raises(UserError, match=r"image\.too_large"):
        load_images(paths)
    monkeypatch.setattr(images, "MOST_IMAGES", 2)
    with pytest.raises(UserError, match=r"image\.too_many"):
        load_images(paths)


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image.png")
    assert outcome(tmp_path / "image.png") == "image.missing"


def gif_with_comment(size: int) -> bytes:
    head = encoded(picture(40, 30), "GIF")
    colours = 13 + 3 * (2 << (head[10] & 7)) if head[10] & 128 else 13
    return head[:colours] + b"!\xfe" + (b"\xff" + b"x" * 255) * (size // 256) + b"\0" + head[colours:]


def jpeg_with_scans(count: int) -> bytes:
    content = encoded(picture(40, 30), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def tiff_with_tags(count: int, size: int) -> bytes:
    content = bytearray(tiff(np.zeros((4, 4), np.uint8), bits=8))
    entries = b"".join(struct.pack("<HHLL", 40_000 + tag, 1, size, 0) for tag in range(count))
    old = content[10:130]
    where = len(content)
    content[4:8] = struct.pack("<L", where)
    content += struct.pack("<H", 10 + count) + old + entries + bytes(4)
    return bytes(content.ljust(size, b"\0"))


def tiff_with_strips(count: int) -> bytes:
    content = bytearray(tiff(np.zeros((4, 4), np.uint8), bits=8))
    at = content.index(struct.pack("<HH", 273, 4))
    content[at + 4 : at + 12] = struct.pack("<LL", count, 8)
    return bytes(content.ljust(4 * count + 100, b"\0"))


COSTLY: dict[str, tuple[Callable[[int], bytes], int, int]] = {
    "gif with a long comment": (gif_with_comment, 1000, 20_000_000),
    "jpeg of many scans": (jpeg_with_scans, 2, 2000),
    "tiff whose tags name the same bytes": (lambda count: tiff_with_tags(count, 1_000_000), 1, 2000),
    "tiff of many strips": (tiff_with_strips, 1, 3_000_000),
}


@pytest.mark.parametrize("name", COSTLY)
def test_files_that_cost_more_than_their_pixels_are_refused(tmp_path: Path, name: str) -> None:
    make, few, many = COSTLY[name]
    path = tmp_path / "image"
    path.write_bytes(make(few))
    assert outcome(path) == "RGB"
    path.write_bytes(make(many))
    started = time.process_time()
    assert outcome(path) == "image.unreadable"
    assert time.process_time() - started < 5
