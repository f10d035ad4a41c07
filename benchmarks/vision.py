"""An image through a vision encoder: all of it in one pass, or as hvlc does it, in tiles (Linux).

    python benchmarks/vision.py --work build/benchmarks/vision [--sides 768 1024 1536 2048] [--scale 0.83]
        [--forms full full-written large base large-float base-float base-scaled] [--most-gb 10] [--largest-full 1536]

Towers of the paper's size (SigLIP2-Large and -Base, tiles of 256 pixels) have random weights, above a decoder of one
layer. Each cell is a process of its own with one thread: it loads the model, sees one square image of noise (so that
no two tiles are equal), and reports processor time and the peak of unshared memory above that of the loaded model.

`large` and `base` are the towers as `w4a16-rtn` builds them, `-float` in float32, `base-scaled` sees the image at
--scale per side, as the compressor would. The full pass has position embeddings interpolated to the image's grid and
the same projector; in `full-written` its attention is two products and a Softmax, as other exporters write it. A cell
that is expected to take more than --most-gb, or a full pass above --largest-full, is skipped, and the result says so;
where three full passes ran, a parabola through them stands for those that did not, marked as `fitted`. Finished cells
are kept in WORK/cells.json, so that a run that was ended goes on. Results: WORK/vision.json, vision.png, vision.svg.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from make_checkpoint import make_checkpoint
from measuring import memory
from onnx import helper, numpy_helper
from shapes import SHAPES, Shape

_FORMS = ("large-float", "base-float", "large", "base", "base-scaled", "full", "full-written")
_PATCH, _HEADS, _GB = 16, 16, 10**9
_BATCH = 1  # tiles of a run, as phones do it
_TERMS = 3  # of a parabola: attention grows with the square of the pixels


def towers() -> Shape:
    """Both towers and the projectors of the paper's size, above a decoder of one narrow layer."""

    def config() -> Any:
        found = SHAPES["hypervl"].config()
        text = found.text_config
        text.num_hidden_layers, text.intermediate_size, text.vocab_size = 1, 512, 1024
        text.layer_types = text.layer_types[:1]
        text.bos_token_id, text.eos_token_id, text.pad_token_id = 256, 257, 256
        return found

    return Shape("towers", config, peer=False)


def prepare(work: Path) -> None:
    """Checkpoint and packages, where they are not there yet."""
    checkpoint = work / "towers"
    if not (checkpoint / "config.json").exists():
        make_checkpoint(towers(), checkpoint)
    for recipe in ("float32", "w4a16-rtn"):
        if not (work / recipe / "hvlc.json").exists():
            command = [sys.executable, "-m", "hvlc", "build", str(checkpoint), "--recipe", recipe]
            subprocess.run([*command, "-o", str(work / recipe)], check=True)


def full_pass(work: Path, side: int, *, written: bool) -> Path:
    """The large encoder as one graph over a square image; `written`: without MultiHeadAttention."""
    package, made = work / "float32", work / "full" / f"{side}{'-written' if written else ''}.onnx"
    if made.exists():
        return made
    made.parent.mkdir(exist_ok=True)
    data = made.parent / "vision.onnx.data"
    if not data.exists():
        shutil.copyfile(package / data.name, data)  # neither onnx nor onnxruntime follows links
    model = onnx.load(package / "vision_large.onnx", load_external_data=False)
    graph, patches = model.graph, (side // _PATCH) ** 2
    old = int(graph.input[0].type.tensor_type.shape.dim[-1].dim_value) // _PATCH
    positions = next(t for t in graph.initializer if t.name.endswith("position_embedding.weight"))
    whole = onnx.load(package / "vision_large.onnx")
    table = numpy_helper.to_array(next(t for t in whole.graph.initializer if t.name == positions.name))
    del whole
    graph.initializer.remove(positions)
    graph.initializer.append(numpy_helper.from_array(_resized(table, old, side // _PATCH), positions.name))
    new = {old: side // _PATCH, old // 2: side // _PATCH // 2, old * old: patches, old * old // 4: patches // 4}
    for tensor in [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64]:
        values = [new.get(int(value), int(value)) for value in numpy_helper.to_array(tensor).reshape(-1)]
        tensor.CopyFrom(numpy_helper.from_array(np.array(values, np.int64).reshape(tuple(tensor.dims)), tensor.name))
    for dim in graph.input[0].type.tensor_type.shape.dim[-2:]:
        dim.dim_value = side
    del graph.value_info[:]
    graph.output[0].type.tensor_type.ClearField("shape")
    if written:
        _write_out(graph)
    onnx.save(model, made)
    return made


def _resized(table: np.ndarray, old: int, new: int) -> np.ndarray:
    """Position embeddings `[old * old, width]` bilinearly interpolated to `[new * new, width]`."""
    import torch

    grid = torch.from_numpy(table.copy()).reshape(1, old, old, -1).permute(0, 3, 1, 2)
    found = torch.nn.functional.interpolate(grid, (new, new), mode="bilinear", align_corners=False)
    return np.ascontiguousarray(found.permute(0, 2, 3, 1).reshape(new * new, -1).numpy())


def _write_out(graph: onnx.GraphProto) -> None:
    """Every MultiHeadAttention as two products and a Softmax."""
    nodes = list(graph.node)
    heads = numpy_helper.from_array(np.array([0, 0, _HEADS, -1], np.int64), "written.heads")
    joined = numpy_helper.from_array(np.array([0, 0, -1], np.int64), "written.joined")
    factor = numpy_helper.from_array(np.array(64**-0.5, np.float32), "written.factor")
    graph.initializer.extend([heads, joined, factor])
    del graph.node[:]
    for node in nodes:
        if node.op_type != "MultiHeadAttention":
            graph.node.append(node)
            continue
        name = node.output[0]
        for part, value in zip("qkv", node.input[:3], strict=True):
            graph.node.append(helper.make_node("Reshape", [value, heads.name], [f"{name}.{part}4"]))
            order = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
            graph.node.append(helper.make_node("Transpose", [f"{name}.{part}4"], [f"{name}.{part}"], perm=order))
        graph.node.extend(
            [
                helper.make_node("Mul", [f"{name}.q", factor.name], [f"{name}.s"]),
                helper.make_node("MatMul", [f"{name}.s", f"{name}.k"], [f"{name}.scores"]),
                helper.make_node("Softmax", [f"{name}.scores"], [f"{name}.weights"], axis=-1),
                helper.make_node("MatMul", [f"{name}.weights", f"{name}.v"], [f"{name}.mean"]),
                helper.make_node("Transpose", [f"{name}.mean"], [f"{name}.mean3"], perm=[0, 2, 1, 3]),
                helper.make_node("Reshape", [f"{name}.mean3", joined.name], [name]),
            ]
        )


def expected_bytes(form: str, side: int) -> float:
    """Rough peak of a cell: written-out attention holds the scores of all heads twice, at most."""
    patches = (side / _PATCH) ** 2
    return 2.0 * _HEADS * patches**2 * 4 if form == "full-written" else 0.0


class _Peak:
    """Largest unshared memory of this process while it is entered, sampled every 5 ms."""

    def __enter__(self) -> "_Peak":
        self._pid, self._ended, self.bytes = os.getpid(), threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, memory(self._pid)[1])

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _opened_full(work: Path, side: int, written: bool) -> Callable[[], tuple[int, int]]:
    import onnxruntime as ort

    made = full_pass(work, side, written=written)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(made), options, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32)

    def run() -> tuple[int, int]:
        features = session.run(None, {session.get_inputs()[0].name: pixels})[0]
        return int(np.prod(features.shape[:-1])), 1

    return run


def _opened_tiles(work: Path, form: str, side: int, scale: float) -> Callable[[], tuple[int, int]]:
    from hvlc.opening.package import open_package
    from hvlc.runtime.settings import VisionSettings
    from hvlc.runtime.vision import Vision

    directory = work / ("float32" if form.endswith("float") else "w4a16-rtn")
    encoder = form.split("-", maxsplit=1)[0]
    package = open_package(directory)
    vision = Vision(directory, package.manifest, VisionSettings(_BATCH), threads=1)
    vision._encoder_session(package.manifest.encoder_file(encoder, 256, 256))  # noqa: SLF001 - loading is not seeing
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    asked = scale if form.endswith("scaled") else 1.0

    def run() -> tuple[int, int]:
        seen = vision.see(image, compress=False, max_visual_tokens=1 << 16, scale=asked)
        return len(vision.encode([seen], encoder).features[0]), seen.count

    return run


def run_cell(work: Path, form: str, side: int, scale: float) -> dict[str, Any]:
    """One image through one form, in this process."""
    full = form.startswith("full")
    opened = _opened_full(work, side, form == "full-written") if full else _opened_tiles(work, form, side, scale)
    loaded = memory(os.getpid())[1]
    with _Peak() as peak:
        started = time.process_time()
        tokens, pieces = opened()
        seconds = time.process_time() - started
    return {"seconds": seconds, "peak": peak.bytes - loaded, "loaded": loaded, "tokens": tokens, "pieces": pieces}


def fit(sides: Sequence[int], seconds: Sequence[float]) -> dict[str, float]:
    """Line of seconds over megapixels by least squares, and its R^2."""
    pixels = np.square(np.array(sides, np.float64)) / 1e6
    slope, offset = np.polyfit(pixels, seconds, 1)
    left = np.square(np.array(seconds) - (slope * pixels + offset)).sum()
    spread = np.square(np.array(seconds) - np.mean(seconds)).sum()
    return {"seconds_per_megapixel": float(slope), "seconds": float(offset), "r2": float(1 - left / spread)}


def extrapolated(sides: Sequence[int], values: Sequence[float], side: int) -> float:
    """A parabola over pixels through three measurements or more, by least squares, at another side."""
    squared = np.square(np.array(sides, np.float64)) / 1e6
    return float(np.polyval(np.polyfit(squared, values, _TERMS - 1), side * side / 1e6))


def with_fitted(cells: dict[str, dict[str, Any]], sides: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The cells, and full passes that were skipped as the others say that they would be, marked `fitted`."""
    found = dict(cells)
    known = [side for side in sides if "seconds" in cells.get(f"full {side}", {})]
    for side in sides:
        if "skipped" in cells.get(f"full {side}", {}) and len(known) >= _TERMS:
            made = {
                name: extrapolated(known, [cells[f"full {s}"][name] for s in known], side)
                for name in ("seconds", "peak")
            }
            found[f"full {side}"] = {**made, "fitted": known}
    return found


def summary(cells: dict[str, dict[str, Any]], forms: Sequence[str], sides: Sequence[int]) -> dict[str, Any]:
    """Fits by form over what was measured, and ratios of the full pass to each form by side."""
    found: dict[str, Any] = {"fits": {}, "ratios": []}
    for form in forms:
        known = [side for side in sides if "seconds" in cells.get(f"{form} {side}", {})]
        measured = [side for side in known if "fitted" not in cells[f"{form} {side}"]]
        if len(measured) > 2:  # a line through two points fits always
            found["fits"][form] = fit(measured, [cells[f"{form} {side}"]["seconds"] for side in measured])
        for side in known:
            for base in ("full", "full-written"):
                other = cells.get(f"{base} {side}", {})
                if "seconds" in other and not form.startswith("full"):
                    mine = cells[f"{form} {side}"]
                    ratio = {name: other[name] / mine[name] for name in ("seconds", "peak")}
                    note = {"fitted": True} if "fitted" in other else {}
                    found["ratios"].append({"form": form, "side": side, "against": base, **ratio, **note})
    return found


def plot(cells: dict[str, dict[str, Any]], forms: Sequence[str], sides: Sequence[int], files: Sequence[Path]) -> None:
    """Processor seconds and peak memory over the side, both on logarithmic axes; what is fitted is hollow."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from hvlc.report.rendering import rendered

    with rc_context({"svg.hashsalt": "hvlc", "font.size": 8}):
        figure = Figure((9.0, 3.6), layout="constrained")
        panels = zip(
            figure.subplots(1, 2), (("seconds", "processor time, s", 1), ("peak", "peak, GB", _GB)), strict=True
        )
        for axis, (name, label, unit) in panels:
            for form in forms:
                known = [side for side in sides if name in cells.get(f"{form} {side}", {})]
                (line,) = axis.plot(known, [cells[f"{form} {side}"][name] / unit for side in known], label=form)
                for side in known:
                    filled = line.get_color() if "fitted" not in cells[f"{form} {side}"] else "white"
                    value = cells[f"{form} {side}"][name] / unit
                    axis.plot([side], [value], marker="o", color=line.get_color(), markerfacecolor=filled)
            axis.set(xscale="log", yscale="log", xlabel="side of the image, pixels", ylabel=label)
            axis.set_xticks(sides, [str(side) for side in sides])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        figure.axes[0].legend(frameon=False)
        for file, content in rendered(figure, files).items():
            file.write_bytes(b"".join(content))


def _measured(options: argparse.Namespace, form: str, side: int) -> dict[str, Any]:
    """A cell by a process of its own, or why it is skipped."""
    if form.startswith("full") and side > options.largest_full:
        return {"skipped": f"full passes above {options.largest_full} pixels are not asked for"}
    expected = expected_bytes(form, side)
    if expected > options.most_gb * _GB:
        return {"skipped": f"about {expected / _GB:.0f} GB expected, and {options.most_gb:g} are allowed"}
    if form.startswith("full"):  # in a process of its own: making the graph leaves memory behind
        made = f"import vision, pathlib; vision.full_pass(pathlib.Path({str(options.work)!r}), {side}, "
        code = made + f"written={form == 'full-written'})"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    command = [sys.executable, str(Path(__file__).resolve()), "--cell", form, str(side)]
    command += ["--work", str(options.work), "--scale", str(options.scale)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/vision"))
    parser.add_argument("--sides", nargs="+", type=int, default=[768, 1024, 1536, 2048])
    parser.add_argument("--forms", nargs="+", choices=_FORMS, default=_FORMS)
    parser.add_argument("--scale", type=float, default=0.83, help="of base-scaled: the compressor's mean, per side")
    parser.add_argument("--most-gb", type=float, default=10, help="memory that a cell may be expected to take")
    parser.add_argument("--largest-full", type=int, default=1536, help="side of the largest full pass that is run")
    parser.add_argument("--cell", nargs=2, metavar=("FORM", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(run_cell(options.work, options.cell[0], int(options.cell[1]), options.scale)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    prepare(options.work)
    kept = options.work / "cells.json"
    cells: dict[str, dict[str, Any]] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    for side in options.sides:
        for form in options.forms:
            if f"{form} {side}" not in cells:
                cells[f"{form} {side}"] = _measured(options, form, side)
                kept.write_text(json.dumps(cells, indent=1), "utf-8")
                print(form, side, cells[f"{form} {side}"], flush=True)
    cells = with_fitted(cells, options.sides)
    found = {"cells": cells, **summary(cells, options.forms, options.sides)}
    (options.work / "vision.json").write_text(json.dumps(found, indent=1), "utf-8")
    if any("seconds" in cells[f"{form} {side}"] for form in options.forms for side in options.sides):
        plot(cells, options.forms, options.sides, [options.work / f"vision.{kind}" for kind in ("png", "svg")])
    print(json.dumps({name: found[name] for name in ("fits", "ratios")}, indent=1))


if __name__ == "__main__":
    main()
