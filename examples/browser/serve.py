"""Serve the page of this directory, one package, and onnxruntime-web, to this machine alone.

    npm install --prefix ~/.cache/hvlc/onnxruntime-web onnxruntime-web@1.30.0
    python examples/browser/serve.py PACKAGE

Any server of files does: the page takes the package from /package/ and the runtime from /runtime/. More than one
thread (/?threads=2) needs the two headers below, too.
"""

import argparse
import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvlc" / "onnxruntime-web"
RUNTIME = Path("node_modules", "onnxruntime-web", "dist")


class Files(SimpleHTTPRequestHandler):
    """Files of three directories.

    Args:
        roots: directory of each first part of an address; "" for all others.
    """

    def __init__(self, *arguments: object, roots: dict[str, Path], **options: object) -> None:
        self.roots = roots
        super().__init__(*arguments, **options)

    def translate_path(self, path: str) -> str:
        first, _, rest = path.lstrip("/").partition("/")
        root = self.roots.get(first)
        self.directory = str(root or self.roots[""])
        return super().translate_path(rest if root else path)

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")  # both: memory that threads share
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument(
        "--runtime", type=Path, default=CACHE, help="where npm put onnxruntime-web (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8090, help="0: any that is free")
    arguments = parser.parse_args()
    runtime = arguments.runtime / RUNTIME
    if not (runtime / "ort.wasm.min.mjs").is_file():
        parser.error(
            f"{runtime} has no ort.wasm.min.mjs; npm install --prefix {arguments.runtime} onnxruntime-web@1.30.0"
        )
    roots = {"": PAGE, "package": arguments.package, "runtime": runtime}
    with ThreadingHTTPServer(("127.0.0.1", arguments.port), partial(Files, roots=roots)) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
