"""Build time and memory of `hvlc build` beside onnxruntime-genai's builder, on the same checkpoint.

    python benchmarks/builds.py --shape qwen3-1.7b [--pairs 3] [--recipe genai-default] [--json]

Both run as whole processes, in turn, and are sampled every 50 ms with all their children. The checkpoint is
made once and read once before the first run, so that everyone finds it in the page cache. Ratios are medians
over pairs. A shape that the builder cannot build is measured with hvlc alone.
"""

import argparse
import dataclasses
import json
import math
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from make_checkpoint import make_checkpoint
from measuring import CommandFailedError, Measurement, measure, paired_ratio
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, Shape

_CHUNK = 1 << 24
_ROWS = {  # what is measured: label, divisor, decimals
    "wall": ("wall time, s", 1, 1),
    "cpu": ("processor time, s", 1, 1),
    "peak_rss": ("peak resident memory, GB", 1e9, 2),
    "peak_unshared": ("peak unshared memory, GB", 1e9, 2),
    "written": ("written, GB", 1e9, 2),
    "output": ("size of the output, GB", 1e9, 3),
}
Run = dict[str, float]


def size_of(directory: Path) -> int:
    """Bytes of all files below a directory, a file with several names once."""
    found = {(s.st_dev, s.st_ino): s.st_size for s in (f.stat() for f in directory.rglob("*") if f.is_file())}
    return sum(found.values())


def prepare(shape: Shape, work: Path, *, sparse: bool, shard_gb: float) -> Path:
    """The checkpoint of a shape, made unless it is there, and read once."""
    directory = work / f"{shape.name}{'-sparse' if sparse else ''}{'' if math.isinf(shard_gb) else f'-{shard_gb:g}gb'}"
    if not (directory / "config.json").is_file():
        make_checkpoint(shape, directory, shard_gb=shard_gb, sparse=sparse)
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            while file.read(_CHUNK):
                pass
    return directory


def peer_command(checkpoint: Path, output: Path, options: Sequence[str]) -> list[str]:
    """onnxruntime-genai's builder at int4 for the CPU."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(checkpoint), "-o", str(output), "-p", "int4", "-e", "cpu", "-c", f"{output}.cache"]
    return [*command, "--extra_options", *options] if options else command


def our_command(checkpoint: Path, output: Path, recipe: str, options: Sequence[str]) -> list[str]:
    """`hvlc build` for the CPU."""
    command = [sys.executable, "-m", "hvlc", "build", str(checkpoint)]
    return [*command, "--target", "cpu", "--recipe", recipe, "-o", str(output), *options]


def run(command: Sequence[str], output: Path) -> Run:
    """Measure one build into an empty place."""
    shutil.rmtree(output, ignore_errors=True)
    measured: Measurement = measure(command, log=output.with_name(f"{output.name}.log"))
    return {**dataclasses.asdict(measured), "output": size_of(output)}


def summarize(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Medians of each builder, and the ratios of hvlc to the other where there is one."""
    result: dict[str, Any] = {
        name: {key: median(each[key] for each in measured) for key in _ROWS} for name, measured in runs.items()
    }
    if "builder" in runs:
        ours, theirs = runs["hvlc"], runs["builder"]
        result["ratio"] = {
            key: paired_ratio([each[key] for each in ours], [each[key] for each in theirs])
            for key in _ROWS
            if all(each[key] for each in theirs)
        }
    return result


def show(console: Console, title: str, summary: Mapping[str, Any]) -> None:
    """The figures as a table."""
    table = Table(title=title)
    table.add_column("")
    for name in summary:
        table.add_column("hvlc / builder" if name == "ratio" else name, justify="right")
    for key, (label, divisor, decimals) in _ROWS.items():
        cells = [
            f"{values[key]:.3f}" if name == "ratio" and key in values else f"{values[key] / divisor:.{decimals}f}"
            for name, values in summary.items()
            if name != "ratio" or key in values
        ]
        table.add_row(label, *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-1.7b")
    parser.add_argument("--checkpoint", type=Path, help="an existing checkpoint in place of a made one")
    parser.add_argument("--pairs", type=int, default=1, help="runs of each")
    parser.add_argument("--recipe", help="hvlc's (default: genai-default, and w4a16-rtn for hypervl)")
    parser.add_argument("--peer-options", nargs="*", default=["prune_lm_head=true"], help="the builder's extra options")
    parser.add_argument("--hvlc-options", type=shlex.split, default=[], help='further options, as one string: "--a b"')
    parser.add_argument("--only", choices=["builder", "hvlc"], help="run one of the two")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="checkpoints, packages and logs")
    parser.add_argument("--sparse", action="store_true", help="a checkpoint of zeros that takes no disk")
    parser.add_argument("--shard-gb", type=float, default=math.inf, help="largest checkpoint file in GB")
    parser.add_argument("--json", action="store_true", help="print figures as JSON instead of a table")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    names = [options.only] if options.only else ["builder", "hvlc"] if shape.peer else ["hvlc"]
    if "builder" in names and not shape.peer:
        parser.error(f"onnxruntime-genai's builder cannot build {shape.name}")
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = options.checkpoint or prepare(shape, options.work, sparse=options.sparse, shard_gb=options.shard_gb)
    outputs = {name: options.work / f"{checkpoint.name}-{name}" for name in names}
    recipe = options.recipe or ("genai-default" if shape.peer else "w4a16-rtn")
    commands = {
        "builder": lambda output: peer_command(checkpoint, output, options.peer_options),
        "hvlc": lambda output: our_command(checkpoint, output, recipe, options.hvlc_options),
    }
    runs: dict[str, list[Run]] = {name: [] for name in names}
    try:
        for pair in range(options.pairs):
            for name in names if pair % 2 == 0 else reversed(names):
                runs[name].append(run(commands[name](outputs[name]), outputs[name]))
    except CommandFailedError as error:
        raise SystemExit(str(error)) from error
    summary = summarize(runs)
    if options.json:
        print(json.dumps({"shape": shape.name, "recipe": recipe, "runs": runs, "summary": summary}, indent=1))
    else:
        times = "once" if options.pairs == 1 else f"{options.pairs} times"
        show(Console(), f"{checkpoint.name}, recipe {recipe}, each {times}", summary)
        Console().print("packages:", *(str(output) for output in outputs.values()))


if __name__ == "__main__":
    main()
