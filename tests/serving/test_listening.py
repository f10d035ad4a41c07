"""A server on a real socket: the official client, hostile clients, many of them, and the end of the process."""

import contextlib
import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from hvlc.runtime.generation import VisionLanguageModel
from tests.helpers.asking import Running, body, data_url, serving
from tests.helpers.tiny import picture

ROUTE = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tiny_float32: Path) -> Iterator[Running]:
    with serving(tiny_float32, "--max-body", "2MB", "--max-waiting", "8", "--timeout", "30") as running:
        yield running


def answers(server: Running) -> bool:
    """Whether it still answers."""
    return httpx.post(server.address + ROUTE, json=body("float32"), timeout=30).status_code == 200


def test_the_official_client_gets_what_the_runtime_answers(server: Running, tiny_float32: Path) -> None:
    image = picture(100, 150)
    expected = VisionLanguageModel(tiny_float32, threads=1).answer(
        "What?", [image], encoder="auto", vrc=True, max_new_tokens=6
    )
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    said = body("float32", images=(image,))
    whole = client.chat.completions.create(**said)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == expected.prompt_tokens
    assert whole.model_dump()["hvlc"]["tokens"] == list(expected.tokens)
    parts = list(client.chat.completions.create(**said, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == expected.text
    assert parts[-1].usage == whole.usage
    assert next(model.id for model in client.models.list()) == "float32"
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(**(said | {"model": "flaot32"}))


def test_many_at_once_are_answered_or_refused(server: Running) -> None:
    """200 requests with images at once: none is lost, and memory is bounded by the line, not by the requests."""
    assert answers(server)
    before = server.peak_memory()
    with httpx.Client(base_url=server.address, timeout=60, limits=httpx.Limits(max_connections=200)) as client:
        said = body("float32", images=(picture(200, 150),))
        with ThreadPoolExecutor(200) as pool:
            found = list(pool.map(lambda _: client.post(ROUTE, json=said), range(200)))
    statuses = Counter(response.status_code for response in found)
    assert set(statuses) <= {200, 429}
    assert statuses[200] >= 9
    assert {r.json()["error"]["code"] for r in found if r.status_code == 429} <= {"request.busy"}
    assert len({tuple(r.json()["hvlc"]["tokens"]) for r in found if r.status_code == 200}) == 1
    assert server.peak_memory() - before < 150e6
    assert answers(server)


def head(length: int) -> bytes:
    lines = ["Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([f"POST {ROUTE} HTTP/1.1", *lines, "", ""]).encode()


def test_a_body_of_500_megabytes_is_refused_before_it_has_come(server: Running) -> None:
    before = server.peak_memory()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(head(500_000_000))
        sent = 0
        try:
            while sent < 500_000_000:
                client.sendall(b"a" * 65536)
                sent += 65536
        except OSError:  # the server has closed the connection
            pass
        assert sent < 50_000_000
    assert server.peak_memory() - before < 50e6
    assert answers(server)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST " + b"a" * 200_000,
        head(10) + b"{",
        b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        head(5) + b"[[[[[",
    ],
)
def test_malformed_requests_leave_the_server_as_it_was(server: Running, data: bytes) -> None:
    files = server.open_files()
    for _ in range(5):
        # The server may have closed the connection before all of it was sent.
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client, contextlib.suppress(OSError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            client.recv(1000)
    assert answers(server)
    deadline = time.monotonic() + 10
    while server.open_files() > files + 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.open_files() <= files + 2


def test_clients_that_leave_do_not_hold_the_line(server: Running) -> None:
    said = json.dumps(body("float32", images=(picture(150, 150),), max_tokens=200, stream=True)).encode()
    for _ in range(12):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(head(len(said)) + said)
    deadline = time.monotonic() + 20
    while not answers(server):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_client_that_does_not_go_on_sending_is_let_go(tiny_float32: Path) -> None:
    """In this process, where the time that it has can be made short."""
    import asyncio

    from hvlc.serving.bodies import Bodies
    from hvlc.serving.limits import Limits
    from hvlc.serving.turns import LateError

    class Silent:
        async def stream(self):  # type: ignore[no-untyped-def]
            yield b"{"
            await asyncio.sleep(60)

    async def read(bodies: Bodies) -> None:
        async with bodies.read(Silent()):  # type: ignore[arg-type]
            pass

    bodies = Bodies(Limits(idle=0.05))
    with pytest.raises(LateError):
        asyncio.run(read(bodies))
    assert bodies.held == 0


def test_told_to_stop_it_finishes_what_it_answers(tiny_float32: Path) -> None:
    with serving(tiny_float32) as running:
        with httpx.stream(
            "POST", running.address + ROUTE, json=body("float32", stream=True, max_tokens=400), timeout=30
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            running.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert running.process.wait(20) == 0
        assert running.process.stderr is not None
        assert "Traceback" not in running.process.stderr.read()


def test_an_address_that_is_taken_is_refused(server: Running, tiny_float32: Path, hvlc) -> None:
    found = hvlc("serve", str(tiny_float32), "--port", str(server.port))
    assert found.code == 2
    assert "serve.address" in found.err


def test_two_packages_of_one_name_are_refused(tiny_float32: Path, hvlc) -> None:
    found = hvlc("serve", str(tiny_float32), str(tiny_float32))
    assert found.code == 2
    assert "two packages are named float32" in found.err


def test_a_bomb_is_refused_and_forgotten(server: Running) -> None:
    from tests.serving.test_pictures import bomb

    before = server.peak_memory()
    said = body("float32")
    said["messages"][0]["content"].insert(0, {"type": "image_url", "image_url": {"url": bomb(60_000)}})
    found = httpx.post(server.address + ROUTE, json=said, timeout=30)
    assert (found.status_code, found.json()["error"]["code"]) == (400, "image.too_large")
    assert server.peak_memory() - before < 50e6
    said["messages"][0]["content"][0]["image_url"]["url"] = data_url(picture(20, 20))
    assert httpx.post(server.address + ROUTE, json=said, timeout=30).status_code == 200
