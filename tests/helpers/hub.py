"""A Hugging Face hub on this machine, and caches as huggingface_hub lays them."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def files_of(directory: Path) -> dict[str, bytes]:
    """Names and contents of a directory's files."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def cached(cache: Path, repository: str, files: Mapping[str, bytes], revision: str = "main") -> Path:
    """A snapshot in a cache, its files links to blobs; returns its directory."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    for place in (home / "refs" / revision).parent, home / "blobs", snapshot:
        place.mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(COMMIT, "utf-8")
    for name, content in files.items():
        blob = home / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


@dataclass
class FakeHub:
    """What a hub holds and was asked for.

    Attributes:
        models: contents of each repository's files.
        refusals: status and error code of the answer about a repository, instead of its content.
        requests: method and path of each request.
        endpoint: its address.
    """

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""

    @property
    def fetched(self) -> set[str]:
        """Names of the files whose contents were asked for."""
        paths = [unquote(path) for method, path in map(str.split, self.requests) if method == "GET"]
        return {path.rpartition("/")[2] for path in paths if "/resolve/" in path}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        parts = [part for part in unquote(urlsplit(path).path).split("/") if part]
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        repository = f"{owner}/{name}"
        if repository in self.refusals:
            status, code = self.refusals[repository]
            return status, {"X-Error-Code": code, "X-Error-Message": "no"}, b""
        if repository not in self.models:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        files = self.models[repository]
        if rest[1:2] not in (["main"], [COMMIT], ["v1"]) and rest:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if api and rest[0] == "tree":
            return 200, {}, json.dumps([_entry(n, c) for n, c in files.items()]).encode()
        if api:
            siblings = [{"rfilename": file} for file in files]
            return 200, {}, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode()
        if rest[-1] not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = files[rest[-1]]
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha256(content).hexdigest()}


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub that answers on the loopback interface while the block runs."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version: ClassVar[str] = "HTTP/1.1"

        def _answer(self, *, body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
