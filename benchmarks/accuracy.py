"""What recipes cost in accuracy: simulated in torch, and measured through packages in onnxruntime.

    python benchmarks/accuracy.py CHECKPOINT [--text FILE] [--recipes w4a16-rtn w4a16 w4a16-static]
        [--calibration SOURCE] [--samples N] [-n 512] [--work DIR] [--json]

Builds every recipe, then measures the package and its simulation: the same checkpoint in transformers, each quantized
weight replaced by what the package's levels and scales stand for. The two differ by the rounding of sums alone, so
that a difference beyond half a percent is a bug. Language models are measured by perplexity on the middle of a text
(`--text`, 16,384 tokens in windows of 1,024, no token given before), HyperVL by exact match on held-out documents.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

from hvlc.evaluation.perplexity import perplexity
from hvlc.evaluation.tasks import open_task
from hvlc.graphs.facts import Kind
from hvlc.manifest.manifest import Manifest
from hvlc.runtime.logits import TextScorer
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from hvlc.workflows.evaluate.evaluate import Setting, evaluate_directory
from hvlc.workflows.evaluate.perplexity import TOKENS, WINDOW, text_windows

_REFERENCE = "float32"


@dataclass(frozen=True)
class Row:
    """One recipe.

    Attributes:
        recipe: its name.
        bits: stored bits of a quantized decoder weight, on average.
        megabytes: of the package.
        packaged: score of the package in onnxruntime, by setting.
        simulated: score of its weights in torch, by setting; none of a package in QDQ form.
        seconds: of the build.
    """

    recipe: str
    bits: float | None
    megabytes: float
    packaged: dict[str, float]
    simulated: dict[str, float]
    seconds: float


def dequantized_weights(package: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Dotted parameter names and float32 `[out, in]` of every quantized product of a package."""
    for component in Manifest.load(package).components.values():
        for node in ir.load(package / component.file).graph.all_nodes():
            if node.op_type == "MatMulNBits":
                yield from _matrices(node)


def _matrices(node: ir.Node) -> Iterator[tuple[str, np.ndarray]]:
    """A product's matrix under its name; a packed one's parts under theirs, `path.q_proj+k_proj+v_proj`."""
    rows, columns, bits = (node.attributes[name].as_int() for name in ("N", "K", "bits"))
    packed, scales, zeros = (_constant(node, position) for position in (1, 2, 3))
    levels = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1) if bits == 4 else packed
    middle = np.float32(2 ** (bits - 1))
    if zeros.size:
        middle = np.stack([zeros & 15, zeros >> 4], -1).reshape(rows, -1) if bits == 4 else zeros.reshape(rows, -1)
        middle = middle[:, : levels.shape[1], None].astype(np.float32)
    values = (levels.astype(np.float32) - middle) * scales.astype(np.float32).reshape(rows, -1, 1)
    yield str(node.name).rpartition("/")[2], values.reshape(rows, -1)[:, :columns]  # a subgraph prefixes its component


def _constant(node: ir.Node, position: int) -> np.ndarray:
    """An initializer, behind the Cast that widens scales; empty where there is none."""
    value = node.inputs[position] if position < len(node.inputs) else None
    if value is None:
        return np.empty(0)
    producer = value.producer()
    stored = producer.inputs[0] if producer is not None else value
    return stored.const_value.numpy()


def write_simulation(checkpoint: Path, package: Path, directory: Path) -> Path:
    """A copy of a checkpoint with the weights that a package has."""
    shutil.copytree(checkpoint, directory, dirs_exist_ok=True)
    files = sorted(directory.glob("*.safetensors"))
    tensors = {file: load_file(file) for file in files}
    homes = {name: file for file, some in tensors.items() for name in some}
    for node, values in dequantized_weights(package):
        path, _, leaves = node.rpartition(".")
        start = 0
        for leaf in leaves.split("+"):
            name = f"{path}.{leaf}.weight" if path else _head(homes)
            home = tensors[homes[name]]
            home[name] = np.ascontiguousarray(values[start : start + len(home[name])], np.float32)
            start += len(home[name])
    for file, some in tensors.items():
        save_file(some, file, metadata={"format": "pt"})
    return directory


def _head(names: dict[str, Path]) -> str:
    """The parameter of the head, the embedding where it is tied."""
    tables = ("lm_head.weight", "model.embed_tokens.weight", "model.language_model.embed_tokens.weight")
    return next(name for name in tables if name in names)


def torch_perplexity(checkpoint: Path, windows: list[np.ndarray]) -> float:
    """Perplexity of a language model in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @torch.no_grad()
    def logits(ids: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(ids)[None]).logits[0].numpy()

    return perplexity(logits, windows).value


class Scores:
    """How packages and checkpoints are scored."""

    def __init__(self, text: Path | None, tokens: int, count: int) -> None:
        self._text, self._tokens, self._count = text, tokens, count
        self._windows: list[np.ndarray] | None = None

    def package(self, directory: Path) -> dict[str, float]:
        """By setting."""
        if Manifest.load(directory).kind is Kind.LANGUAGE:
            scorer = TextScorer(directory)
            self._windows = self._windows or text_windows(scorer, self._text, self._tokens, WINDOW)
            return {"perplexity": perplexity(scorer.logits, self._windows).value}
        return self._exact_match(directory)

    def checkpoint(self, directory: Path) -> dict[str, float]:
        """By setting, after `package`."""
        if self._windows is not None:
            return {"perplexity": torch_perplexity(directory, self._windows)}
        return self._exact_match(directory)

    def _exact_match(self, directory: Path) -> dict[str, float]:
        settings = [Setting(encoder, True) for encoder in ("base", "large")]
        found = evaluate_directory(directory, open_task("documents", self._count), settings, count=self._count)
        return {e.encoder: 100 * e.summary.exact_match.value for e in found}


def measure(arguments: argparse.Namespace, recipe: str, scores: Scores, work: Path) -> Row:
    """Build a recipe and score it twice."""
    name = Path(recipe).stem
    package = work / name
    own = {} if recipe in arguments.uncalibrated else {"calibration": arguments.calibration}
    samples = None if recipe in arguments.uncalibrated else arguments.samples
    request = open_request(arguments.checkpoint, "cpu", recipe, package, force=True, samples=samples, **own)
    built = build(request)
    packaged = scores.package(package)
    simulated = {}  # of a package in QDQ form: its levels are those of the weight-only one
    if recipe == _REFERENCE or any(True for _ in dequantized_weights(package)):
        simulation = write_simulation(arguments.checkpoint, package, work / f"{name}.simulated")
        simulated = scores.checkpoint(simulation)
        shutil.rmtree(simulation)
    manifest = Manifest.load(package)
    seconds = sum(built.seconds.values())
    return Row(name, manifest.bits_per_decoder_weight, manifest.total_bytes / 1e6, packaged, simulated, seconds)


def table(rows: list[Row]) -> Table:
    """Rows as people read them."""
    shown = Table("recipe", "bits", "MB", "build", box=None)
    settings = list(rows[0].packaged)
    for setting in settings:
        for column in (f"{setting}, simulated", "packaged", "against float32"):
            shown.add_column(column, justify="right")
    for row in rows:
        cells = [row.recipe, f"{row.bits:.2f}" if row.bits else "32", f"{row.megabytes:.1f}", f"{row.seconds:.0f} s"]
        for setting in settings:
            ratio = row.packaged[setting] / rows[0].packaged[setting]
            torch = f"{row.simulated[setting]:.2f}" if row.simulated else "–"
            cells += [torch, f"{row.packaged[setting]:.2f}", f"{100 * (ratio - 1):+.1f} %"]
        shown.add_row(*cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, help="scores language models")
    parser.add_argument("--recipes", nargs="+", default=["w4a16-rtn", "w4a16", "w4a16-static"])
    parser.add_argument("--uncalibrated", nargs="*", default=[_REFERENCE, "w4a16-rtn"], help="recipes without data")
    parser.add_argument("--calibration", help="for the other recipes (default: their own)")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of the text")
    parser.add_argument("-n", "--count", type=int, default=512, help="documents")
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    scores = Scores(arguments.text, arguments.tokens, arguments.count)
    rows = [measure(arguments, recipe, scores, arguments.work) for recipe in (_REFERENCE, *arguments.recipes)]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        Console().print(table(rows))


if __name__ == "__main__":
    main()
