"""Damaged images: an RGB image within the bounds or the user's error, no process, no other format tried."""

import io
import random
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvlc.errors import UserError
from hvlc.inputs.images import PIXEL_LIMIT, WORKING_PIXELS, load_image
from tests.fuzz.mutation import attempt, check, commands, files, mutated
from tests.fuzz.processes import recorded_processes
from tests.helpers.tiny import picture

SMALL, LARGE = 150, 6000
MEMORY = 2_000_000  # kB


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def seeds() -> list[bytes]:
    page = picture(40, 30)
    exif = Image.Exif()
    exif[0x0112], exif[0x8769] = 6, {0x9003: "2026:01:01 00:00:00"}
    alpha = page.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    wide = Image.fromarray(np.asarray(page.convert("L")).astype(np.uint16) * 257)
    real = Image.fromarray(np.asarray(page.convert("L")).astype(np.float32) / 255)
    return [
        *(encoded(page.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB")),
        encoded(alpha, "PNG", exif=exif),
        encoded(wide, "PNG", transparency=300),
        encoded(page, "JPEG", exif=exif),
        encoded(page, "JPEG", progressive=True, comment=b"c" * 50),
        encoded(page.convert("CMYK"), "JPEG"),
        encoded(
            page.convert("P"),
            "GIF",
            save_all=True,
            append_images=[page.transpose(Image.Transpose.ROTATE_180).convert("P")],
        ),
        encoded(page.convert("P"), "GIF", transparency=3, comment=b"c" * 300),
        *(encoded(page.convert(mode), "BMP") for mode in ("1", "L", "RGB")),
        encoded(alpha, "BMP"),
        encoded(page, "WEBP", exif=exif),
        encoded(alpha, "WEBP", lossless=True),
        encoded(page, "WEBP", save_all=True, append_images=[page.convert("L").convert("RGB")]),
        *(encoded(image, "TIFF") for image in (page, wide, real, page.convert("CMYK"), page.convert("1"), alpha)),
        *(encoded(page, "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        encoded(page.convert("1"), "TIFF", compression="group4"),
        encoded(page, "TIFF", big_tiff=True, tiffinfo={274: 6}),
    ]


SEEDS = seeds()


def repaired(content: bytes) -> bytes:
    """A PNG whose checksums are right again, so that what is inside of its chunks reaches the decoder."""
    made, at = content[:8], 8
    while at + 12 <= len(content):
        size = min(struct.unpack_from(">L", content, at)[0], len(content) - at - 12)
        body = content[at + 4 : at + 8 + size]
        made += struct.pack(">L", size) + body + struct.pack(">L", zlib.crc32(body))
        at += 12 + size
    return made


def case(number: int) -> bytes:
    source = random.Random(number)
    seed = SEEDS[number % len(SEEDS)]
    changed = mutated(seed, source)
    return repaired(changed) if changed.startswith(b"\x89PNG") and source.random() < 0.7 else changed


def attempted(path: Path) -> str:
    """How a file ends; an image is upright RGB within the bounds."""
    found: list[Image.Image] = []
    ended = attempt(lambda: found.append(load_image(path)), UserError)
    for image in found:
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= WORKING_PIXELS
    return ended


def images_are_read_or_refused(tmp_path: Path, count: int) -> None:
    path, ends = tmp_path / "image.png", []
    with recorded_processes() as started:
        for number in range(count):
            path.write_bytes(case(number))
            try:
                ends.append(attempted(path))
            except BaseException as error:
                error.add_note(f"case {number}")
                raise
    assert started == []
    assert set(files(tmp_path)) == {str(path)}
    assert {"read", "refused"} == set(ends)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MEMORY


def test_damaged_images_are_read_or_refused(tmp_path: Path) -> None:
    images_are_read_or_refused(tmp_path, SMALL)


@pytest.mark.slow
def test_many_damaged_images_are_read_or_refused(tmp_path: Path) -> None:
    images_are_read_or_refused(tmp_path, LARGE)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_undamaged_images_are_read(tmp_path: Path, format: str) -> None:
    """The seeds reach the decoders: what the fuzzer changes is what is refused."""
    for seed in SEEDS:
        if Image.open(io.BytesIO(seed)).format == format:
            (tmp_path / "image").write_bytes(seed)
            assert attempted(tmp_path / "image") == "read"


def sized(side: int) -> dict[str, Callable[[], bytes]]:
    """Headers of images of a size, with few pixels behind them."""
    png = encoded(picture(40, 30), "PNG")
    bmp = bytearray(encoded(picture(40, 30), "BMP"))
    bmp[18:26] = struct.pack("<ll", side, side)
    gif = bytearray(encoded(picture(40, 30).convert("P"), "GIF"))
    gif[6:10] = struct.pack("<HH", min(side, 65535), min(side, 65535))
    return {
        "png": lambda: repaired(png[:16] + struct.pack(">LL", side, side) + png[24:]),
        "bmp": lambda: bytes(bmp),
        "gif": lambda: bytes(gif),
    }


@pytest.mark.parametrize("format", ["png", "bmp", "gif"])
@pytest.mark.parametrize("side", [int(PIXEL_LIMIT**0.5) + 1, 20_000, 60_000])
def test_sizes_beyond_the_limit_are_refused_before_decoding(tmp_path: Path, format: str, side: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "image").write_bytes(sized(side)[format]())
    assert attempted(tmp_path / "image") == "refused"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def commands_end_well(package: Path, scratch: Path, numbers: range) -> None:
    before = files(package)
    with commands(scratch) as child:
        for number in numbers:
            (scratch / "image.png").write_bytes(case(number))
            check(child.run("run", package, "--image", "image.png", "--prompt", "?", "--max-new-tokens", "1"), (0, 2))
    assert files(package) == before
    assert set(files(scratch)) == {str(scratch / "image.png")}


def test_commands_with_a_damaged_image_end_well(tmp_path: Path, tiny_w4a16: Path) -> None:
    commands_end_well(tiny_w4a16, tmp_path, range(10))


@pytest.mark.slow
def test_many_commands_with_a_damaged_image_end_well(tmp_path: Path, tiny_w4a16: Path) -> None:
    commands_end_well(tiny_w4a16, tmp_path, range(10_000, 10_100))
