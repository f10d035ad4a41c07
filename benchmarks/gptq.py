"""Time of a GPTQ build with hvlc beside neural-compressor's GPTQ, on the same checkpoint and calibration tokens.

    python benchmarks/gptq.py CHECKPOINT [--calibration FILE] [--samples 32] [--tokens 512] [--budget SECONDS] [--json]

Both run as whole processes, one after the other: int4, symmetric, the same block size, the same linears (embedding and
head stay in float), the same windows of tokens. hvlc's time is that of a finished package; neural-compressor's ends
with the model in memory. A peer that is not done after the budget is stopped: then the ratios are lower bounds, and how
many decoder layers it had finished is told.

On a machine that does other work too, take `--threads 1`: neural-compressor's solver is made of very many small
operations, and torch's threads wait for each other, busily, at the end of each.
"""

import argparse
import dataclasses
import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from measuring import CommandFailedError, Measurement, measure
from rich.console import Console
from rich.table import Table

_PEER = Path(__file__).with_name("gptq_peer.py")
_BEGUN = re.compile(r"Quantizing layer (\d+) / (\d+)\.\.")  # neural-compressor 3.10's log
_ROWS = {  # what is measured: label, divisor, decimals
    "wall": ("wall time, s", 1, 1),
    "cpu": ("processor time, s", 1, 1),
    "peak_rss": ("peak resident memory, GB", 1e9, 2),
    "peak_unshared": ("peak unshared memory, GB", 1e9, 2),
}


def our_recipe(directory: Path, block_size: int, samples: int, tokens: int) -> Path:
    """A recipe that quantizes what the peer does."""
    quantize = {"bits": 4, "block_size": block_size, "symmetric": True, "scale_type": "float16", "solver": "gptq"}
    recipe = {
        "schema_version": 1,
        "name": "gptq",
        "description": "int4 by GPTQ, the head in float",
        "calibration": {"samples": samples, "tokens": tokens},
        "rules": [
            {"role": "decoder", "weights": "*lm_head*", "optional": True, "reason": "the peer leaves it in float"},
            {"role": "decoder", "weights": "*embed_tokens*", "optional": True, "reason": "the head, where it is tied"},
            {"role": "decoder", "quantize": quantize},
        ],
    }
    path = directory / "gptq.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def on_threads(threads: int | None, command: Sequence[str]) -> list[str]:
    """A command whose libraries take so many threads, or what they like."""
    return list(command) if threads is None else ["env", f"OMP_NUM_THREADS={threads}", *command]


def our_command(checkpoint: Path, recipe: Path, calibration: str, output: Path, options: Sequence[str]) -> list[str]:
    """`hvlc build` for the CPU, calibrated."""
    command = [sys.executable, "-m", "hvlc", "build", str(checkpoint), "--target", "cpu", "--recipe", str(recipe)]
    return [*command, "--calibration", calibration, "-o", str(output), *options]


def peer_command(checkpoint: Path, ids: Path, block_size: int, columns: int) -> list[str]:
    """neural-compressor on the same tokens."""
    command = [sys.executable, str(_PEER), str(checkpoint), str(ids)]
    return [*command, "--block-size", str(block_size), "--columns", str(columns)]


def calibration_ids(checkpoint: Path, source: str, samples: int, tokens: int) -> np.ndarray:
    """int64 `[samples, tokens]`: the windows that hvlc calibrates on, read from the source as a build does."""
    from hvlc.calibration.sources import Model, open_set
    from hvlc.export import export_bundle
    from hvlc.weights.checkpoint import Checkpoint

    facts = export_bundle(Checkpoint.open(checkpoint)).facts
    found = open_set(source, Model(checkpoint, facts), samples=samples, tokens=tokens)
    return np.stack([sample.ids for sample in found.samples])


def finished_layers(log: str, *, ended: bool) -> tuple[int, int | None]:
    """Decoder layers that the peer has finished, and how many there are, if it came so far."""
    begun = _BEGUN.findall(log)
    if not begun:
        return 0, None
    last, total = (int(number) for number in begun[-1])
    return (total if ended else last - 1), total


def summarize(ours: Measurement, theirs: Measurement, log: str) -> dict[str, Any]:
    """Both runs, how far the peer came, and how many times as long it took: by the clock and in processor time."""
    finished, total = finished_layers(log, ended=not theirs.stopped)
    return {
        "hvlc": dataclasses.asdict(ours),
        "neural-compressor": dataclasses.asdict(theirs),
        "layers": {"finished": finished, "total": total},
        "ratio": {"wall": theirs.wall / ours.wall, "cpu": theirs.cpu / ours.cpu},
        "lower_bound": theirs.stopped,
    }


def show(console: Console, title: str, summary: Mapping[str, Any]) -> None:
    """The figures as a table, and the ratio in words."""
    sides = ("hvlc", "neural-compressor")
    table = Table(title=title)
    for column in ("", *sides):
        table.add_column(column, justify="right" if column else "left")
    for key, (label, divisor, decimals) in _ROWS.items():
        table.add_row(label, *(f"{summary[side][key] / divisor:.{decimals}f}" for side in sides))
    console.print(table)
    wall, cpu = summary["ratio"]["wall"], summary["ratio"]["cpu"]
    ratio = f"{wall:.2f} times as long as hvlc, {cpu:.2f} times the processor time"
    if not summary["lower_bound"]:
        console.print(f"neural-compressor took {ratio}")
        return
    finished, total = summary["layers"]["finished"], summary["layers"]["total"]
    reached = "before the first layer" if total is None else f"with {finished} of {total} layers done"
    console.print(f"neural-compressor takes at least {ratio}: it was stopped {reached}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of a language model, with its tokenizer")
    parser.add_argument("--calibration", default="text", help="a text file, or hvlc's built-in text")
    parser.add_argument("--samples", type=int, default=32, help="windows of text")
    parser.add_argument("--tokens", type=int, default=512, help="of a window")
    parser.add_argument("--block-size", type=int, default=32, help="input channels that share a scale")
    parser.add_argument("--budget", type=float, help="seconds after which neural-compressor is stopped")
    parser.add_argument("--columns", type=int, default=128, help="neural-compressor's block_size; its default is 2048")
    parser.add_argument("--threads", type=int, help="of each (default: what each takes)")
    parser.add_argument("--hvlc-options", type=shlex.split, default=[], help='further options, as one string: "--a b"')
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="recipe, tokens, package and logs")
    parser.add_argument("--json", action="store_true", help="print figures as JSON instead of a table")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    ids = calibration_ids(options.checkpoint, options.calibration, options.samples, options.tokens)
    np.save(options.work / "gptq-ids.npy", ids)
    recipe = our_recipe(options.work, options.block_size, options.samples, options.tokens)
    output = options.work / f"{options.checkpoint.name}-gptq"
    shutil.rmtree(output, ignore_errors=True)
    threads = [] if options.threads is None else ["--threads", str(options.threads)]
    ours = our_command(options.checkpoint, recipe, options.calibration, output, [*threads, *options.hvlc_options])
    theirs = peer_command(options.checkpoint, options.work / "gptq-ids.npy", options.block_size, options.columns)
    log = options.work / "gptq-peer.log"
    try:
        runs = (
            measure(on_threads(options.threads, ours), log=options.work / "gptq-hvlc.log"),
            measure(on_threads(options.threads, theirs), log=log, budget=options.budget),
        )
    except CommandFailedError as error:
        raise SystemExit(str(error)) from error
    summary = summarize(*runs, log.read_text(encoding="utf-8", errors="replace"))
    if options.json:
        print(json.dumps({"checkpoint": options.checkpoint.name, "ids": ids.shape, **summary}, indent=1))
    else:
        show(Console(), f"{options.checkpoint.name}, GPTQ on {ids.shape[0]} x {ids.shape[1]} tokens", summary)


if __name__ == "__main__":
    main()
