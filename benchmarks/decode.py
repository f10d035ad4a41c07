"""Speed, memory and tokens of packages in onnxruntime-genai, in turn and on the same prompts.

    python benchmarks/decode.py PEER OURS [MORE ...] [--prompts 128 512] [--new 64] [--rounds 5]
        [--chunk 8] [--threads 1] [--clock cpu] [--json]

Every package is loaded in a process of its own; one runs at a time. In a round each package prefills the
prompt in turn, then each decodes a few tokens in turn until all are done: both sides of a pair are measured
within a second. Speeds are medians, ratios medians over pairs against the first package. Prompts are random
token ids.

onnxruntime-genai takes half the processors unless a package or --threads says otherwise. With one thread
--clock cpu counts processor time, which other work on the machine disturbs less.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measuring import memory, paired_ratio, peak_resident
from rich.console import Console
from rich.table import Table

_MB = 10**6
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Server:
    """A loaded package and one running generation, on the far side of a pipe.

    A request is a line of JSON that names a method and its arguments, and so is the answer.
    """

    def __init__(self, package: Path, threads: int | None, clock: str) -> None:
        import onnxruntime_genai as og

        self._og, self._clock = og, _CLOCKS[clock]
        started = time.perf_counter()
        settings = og.Config(str(package))
        if threads is not None:
            options = {"intra_op_num_threads": threads}
            settings.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(settings)
        self._load_seconds = time.perf_counter() - started
        config = json.loads((package / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self._vocabulary, self._multimodal = config["vocab_size"], "vision" in config
        self._generator: Any = None

    def describe(self) -> dict[str, Any]:
        """What loading took."""
        return {"load": self._load_seconds, "vocabulary": self._vocabulary}

    def prefill(self, prompt: Sequence[int], limit: int) -> dict[str, Any]:
        """Start a generation of at most `limit` tokens in all; seconds of its prefill."""
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=limit, do_sample=False)
        self._generator = None  # free the old cache first
        self._generator = self._og.Generator(self._model, params)
        ids = np.array(prompt, np.int32)
        started = self._clock()
        if self._multimodal:
            tensors = self._og.NamedTensors()
            tensors["input_ids"] = ids[None]
            tensors["num_image_tokens"] = np.array([0], np.int64)
            self._generator.set_inputs(tensors)
        else:
            self._generator.append_tokens(ids)
        return {"seconds": self._clock() - started}

    def decode(self, steps: int) -> dict[str, Any]:
        """Up to `steps` further tokens and their seconds; the first after a prefill needs no run of the decoder."""
        tokens: list[int] = []
        started = self._clock()
        while len(tokens) < steps and not self._generator.is_done():
            self._generator.generate_next_token()
            tokens.append(int(self._generator.get_next_tokens()[0]))
        return {"seconds": self._clock() - started, "tokens": tokens}

    def gap(self, first: int, second: int) -> dict[str, Any]:
        """How far the logit of one token is above another's at the present position."""
        logits = np.asarray(self._generator.get_logits()).reshape(-1)
        return {"gap": float(logits[first] - logits[second])}

    def run(self) -> None:
        """Answer until the input ends."""
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            print(json.dumps(getattr(self, name)(*arguments)), flush=True)


@dataclass
class Worker:
    """A package in a process of its own, and what was measured with it.

    Attributes:
        threads: of the decoder's session; the package's own setting when None.
        clock: "wall", or "cpu" for processor time.
        speeds: tokens per second of each prefill or decoded chunk, by kind and length of prompt.
        tokens: greedy tokens of the last round, by length of prompt.
        load_seconds: what opening the package took.
        loaded: unshared memory in bytes after loading.
    """

    package: Path
    threads: int | None = None
    clock: str = "wall"
    speeds: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", "--clock", self.clock]
        command += ["--threads", str(self.threads)] if self.threads is not None else []
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
        self._process = subprocess.Popen(
            [*command, str(self.package)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        described = self.ask("describe")
        self.load_seconds, self.vocabulary = float(described["load"]), int(described["vocabulary"])
        self.loaded = memory(self._process.pid)[1]

    @property
    def peak(self) -> int:
        """Largest resident memory so far in bytes."""
        return peak_resident(self._process.pid)

    def ask(self, name: str, *arguments: Any) -> dict[str, Any]:
        """Call a method of the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"{self.package}: onnxruntime-genai ended with {self._process.wait()}")
        return json.loads(line)

    def note(self, kind: str, prompt: int, tokens: int, seconds: float) -> None:
        """Keep a speed."""
        self.speeds.setdefault((kind, prompt), []).append(tokens / seconds)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def run_round(workers: Sequence[Worker], prompt: Sequence[int], new: int, chunk: int, *, count: bool) -> None:
    """Every package prefills `prompt`, then all decode `new` tokens, `chunk` at a time and in turn."""
    length = len(prompt)
    for worker in workers:
        answer = worker.ask("prefill", prompt, length + new + 2)
        worker.tokens[length] = worker.ask("decode", 1)["tokens"]
        if count:
            worker.note("prefill", length, length, answer["seconds"])
    for done in range(0, new, chunk):
        steps = min(chunk, new - done)
        answers = [worker.ask("decode", steps) for worker in workers]
        for worker, answer in zip(workers, answers, strict=True):
            worker.tokens[length] += answer["tokens"]
        if any(len(answer["tokens"]) < steps for answer in answers):
            return  # an end token
        if count:
            for worker, answer in zip(workers, answers, strict=True):
                worker.note("decode", length, steps, answer["seconds"])


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first position where two token sequences differ, None when they do not."""
    if list(a) == list(b):
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def compare_tokens(peer: Worker, ours: Worker, prompt: Sequence[int]) -> dict[str, Any]:
    """Where greedy decoding parts, and by how much either package prefers its own token there."""
    a, b = peer.tokens[len(prompt)], ours.tokens[len(prompt)]
    position = first_difference(a, b)
    found: dict[str, Any] = {"package": str(ours.package), "prompt": len(prompt)}
    found |= {"tokens": len(a), "first_difference": position}
    if position is not None and position < min(len(a), len(b)):
        gaps = []
        for worker, own, other in ((peer, a[position], b[position]), (ours, b[position], a[position])):
            worker.ask("prefill", prompt, len(prompt) + position + 2)
            worker.ask("decode", position)
            gaps.append(worker.ask("gap", own, other)["gap"])
        found |= {"gap_peer": gaps[0], "gap_ours": gaps[1]}
    return found


def summary(worker: Worker, peer: Worker) -> dict[str, Any]:
    """Medians and ratios of one package, as JSON."""
    speeds = [
        {
            "what": f"{kind} of {length} tokens" if kind == "prefill" else f"{kind} after {length} tokens",
            "tokens_per_second": median(values),
            "range": [min(values), max(values)],
            "ratio": paired_ratio(values, peer.speeds[kind, length]),
            "pairs": len(values),
        }
        for (kind, length), values in worker.speeds.items()
    ]
    memory = {"load_seconds": worker.load_seconds, "loaded_mb": worker.loaded / _MB, "peak_mb": worker.peak / _MB}
    return {"package": str(worker.package), "speeds": speeds, **memory}


def _show(console: Console, summaries: Sequence[dict[str, Any]], tokens: Sequence[dict[str, Any]]) -> None:
    table = Table(title="medians, in brackets the ratio to the first package")
    table.add_column("")
    for each in summaries:
        table.add_column(Path(each["package"]).name, justify="right", overflow="fold")
    for row in zip(*(each["speeds"] for each in summaries), strict=True):
        cells = [f"{speed['tokens_per_second']:.2f} ({speed['ratio']:.3f})" for speed in row]
        table.add_row(f"{row[0]['what']}, tokens/s", *cells)
    table.add_row("load, s", *(f"{each['load_seconds']:.2f}" for each in summaries))
    table.add_row("unshared memory after loading, MB", *(f"{each['loaded_mb']:.0f}" for each in summaries))
    table.add_row("peak resident memory, MB", *(f"{each['peak_mb']:.0f}" for each in summaries))
    console.print(table)
    for found in tokens:
        same = found["first_difference"]
        text = f"{Path(found['package']).name}, prompt of {found['prompt']}: the first "
        text += f"{found['tokens'] if same is None else same} of {found['tokens']} greedy tokens are the same"
        if "gap_peer" in found:
            text += f"; there the first package prefers its own by {found['gap_peer']:.4f}"
            text += f", this one by {found['gap_ours']:.4f}"
        console.print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE", help="directories; the first is the peer")
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 512], help="prompt lengths in tokens")
    parser.add_argument("--new", type=int, default=64, help="decoding steps after each prompt")
    parser.add_argument("--chunk", type=int, default=8, help="steps before the next package's turn")
    parser.add_argument("--rounds", type=int, default=5, help="counted ones, after one that is not")
    parser.add_argument("--threads", type=int, help="of every package; 0 lets onnxruntime take all cores")
    parser.add_argument("--clock", choices=sorted(_CLOCKS), default="wall")
    parser.add_argument("--json", action="store_true", help="print figures as JSON instead of a table")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        Server(options.packages[0], options.threads, options.clock).run()
        return
    workers = [Worker(package, options.threads, options.clock) for package in options.packages]
    vocabulary = min(worker.vocabulary for worker in workers)
    random = np.random.default_rng(0)
    prompts = [random.integers(0, vocabulary, length).tolist() for length in options.prompts]
    for number in range(options.rounds + 1):
        for prompt in prompts:
            first = number % len(workers)
            turn = [*workers[first:], *workers[:first]]
            run_round(turn, prompt, options.new, options.chunk, count=number > 0)
    tokens = [compare_tokens(workers[0], worker, prompt) for worker in workers[1:] for prompt in prompts]
    summaries = [summary(worker, workers[0]) for worker in workers]
    for worker in workers:
        worker.close()
    if options.json:
        print(json.dumps({"packages": summaries, "tokens": tokens}, indent=1))
    else:
        _show(Console(), summaries, tokens)


if __name__ == "__main__":
    main()
