"""onnxruntime's own word on ONNX files, in a process of its own: `python -m tests.fuzz.onnx_oracle` reads paths.

A line of the answer is what onnxruntime says of the file, empty where it loads.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def refusals(paths: Sequence[Path]) -> list[str]:
    """What onnxruntime says of each file; empty where it loads. A file that ends the process is refused."""
    found: list[str] = []
    while len(found) < len(paths):
        rest = "\n".join(str(path) for path in paths[len(found) :])
        ended = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.onnx_oracle"],
            cwd=ROOT,
            input=rest,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        found += [line.partition(":")[2] for line in ended.stdout.split("\n") if line.startswith("answer:")]
        if ended.returncode:
            found.append(f"the process ended with {ended.returncode}")
    return found


def main() -> None:
    """Answer for each path on standard input."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    for path in sys.stdin.read().splitlines():
        try:
            ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            said = ""
        except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own, which share no base
            said = " ".join(str(error).split()) or "refused"
        sys.stdout.write(f"answer:{said.encode('ascii', 'replace').decode()}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
