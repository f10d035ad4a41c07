"""Images of requests: data URLs within bounds, and no address that leads into a machine's own network."""

import base64
import http.server
import io
import threading
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from hvlc.errors import UserError
from hvlc.serving import pictures
from hvlc.serving.limits import Limits
from hvlc.serving.pictures import load_pictures
from tests.helpers.asking import data_url

LIMITS = Limits(images=2)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_data_url_is_an_image(kind: str) -> None:
    image = Image.new("RGB", (9, 5), (200, 10, 30))
    (found,) = load_pictures([data_url(image, kind)], LIMITS, remote=False)
    assert found.size == (9, 5)
    assert max(abs(a - b) for a, b in zip(found.getpixel((4, 2)), (200, 10, 30), strict=True)) < 12


def bomb(side: int) -> str:
    """A PNG whose header promises more pixels than anybody decodes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("", "image.url"),
        ("receipt.png", "image.url"),
        ("file:///etc/passwd", "image.url"),
        ("data:text/plain;base64,QQ==", "image.url"),
        ("data:image/png;base64,****", "image.unreadable"),
        ("data:image/png;base64,", "image.empty"),
        ("data:image/png;base64,QUJD", "image.unreadable"),
        (bomb(100_000), "image.too_large"),
        ("http://127.0.0.1/a.png", "image.remote"),
    ],
)
def test_anything_else_is_refused(url: str, code: str) -> None:
    with pytest.raises(UserError) as refused:
        load_pictures([url], LIMITS, remote=False)
    assert refused.value.code == code
    assert "/tmp" not in refused.value.cause


def test_too_many_images_are_refused() -> None:
    with pytest.raises(UserError, match="3 images") as refused:
        load_pictures([data_url(Image.new("RGB", (2, 2)))] * 3, LIMITS, remote=False)
    assert refused.value.code == "image.too_many"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "0.0.0.0", ""])
def test_addresses_of_a_machines_own_network_are_never_fetched(host: str) -> None:
    with pytest.raises(UserError) as refused:
        load_pictures([f"http://{host}/a.png"], LIMITS, remote=True)
    assert refused.value.code == "image.remote"
    assert "not a public address" in refused.value.cause or "cannot fetch" in refused.value.cause


class Handler(http.server.BaseHTTPRequestHandler):
    """An image, a redirect to it, and more bytes than are allowed."""

    def do_GET(self) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (7, 4)).save(buffer, "png")
        self.send_response(302 if self.path == "/moved" else 200)
        self.send_header("Location", "/image.png")
        self.end_headers()
        self.wfile.write(buffer.getvalue() if self.path == "/image.png?a=b" else b"a" * 5000)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose address counts as public."""
    monkeypatch.setattr(pictures, "_public", lambda host, port: "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://images.example:{server.server_port}"
        server.shutdown()


def test_an_address_is_fetched_where_that_is_allowed(host: str) -> None:
    (found,) = load_pictures([f"{host}/image.png?a=b"], LIMITS, remote=True)
    assert found.size == (7, 4)


@pytest.mark.parametrize(
    ("path", "code"), [("/moved", "image.remote"), ("/other", "image.unreadable"), ("/large", "image.too_large")]
)
def test_what_an_address_may_not_be(host: str, path: str, code: str) -> None:
    limits = Limits(body=1000 if path == "/large" else 10_000)
    with pytest.raises(UserError) as refused:
        load_pictures([host + path], limits, remote=True)
    assert refused.value.code == code
