"""Seven faults that converters make, planted into a finished package.

`FAULTS` has them by name. `plant(name, package)` damages a package in place (give it a copy) and makes the manifest's
digests fit, as a converter's own would: nothing but the numbers shows the fault. `Fault.stage` is where
`hvlc bisect` must find it, `Fault.recipes` which packages can have it.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hvlc.files.digests import digest_file
from hvlc.manifest.manifest import MANIFEST, FileEntry, Manifest

FACTOR = 1.5
LAYERS = (0, 1)  # that are swapped; the second one's scales are wrong
_DTYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Fault:
    """What is planted, and the stage that departs first."""

    plant: Callable[[Path], None]
    stage: str
    recipes: tuple[str, ...] = ("float32", "w4a16-rtn")


def plant(name: str, package: Path) -> None:
    """Damage a package in place; its files are as the manifest says afterwards."""
    (FAULTS | MORE_FAULTS)[name].plant(package)
    manifest = Manifest.load(package)
    files = {file: _entry(package / file) for file in manifest.files}
    changed = manifest.model_copy(update={"files": files})
    (package / MANIFEST).write_text(changed.model_dump_json(indent=1), "utf-8")


def planted(name: str, package: Path, copy: Path) -> Path:
    """A damaged copy of a package."""
    shutil.copytree(package, copy)
    plant(name, copy)
    return copy


def _entry(path: Path) -> FileEntry:
    return FileEntry(bytes=path.stat().st_size, sha256=digest_file(path))


class _Stored:
    """The initializers of one graph file, changed in place, in the graph or in its data file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.model = onnx.load(path, load_external_data=False)
        self._tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def names(self, *parts: str) -> Iterator[str]:
        """Of the initializers that contain all of some texts."""
        yield from (name for name in self._tensors if all(part in name for part in parts))

    def read(self, name: str) -> np.ndarray:
        """Bytes uint8."""
        tensor = self._tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return np.frombuffer(tensor.raw_data, np.uint8)
        file, offset, length = self._place(tensor)
        with file.open("rb") as data:
            data.seek(offset)
            return np.frombuffer(data.read(length), np.uint8)

    def write(self, name: str, content: np.ndarray) -> None:
        """As many bytes as there are."""
        tensor, data = self._tensors[name], content.tobytes()
        assert len(data) == len(self.read(name))
        if tensor.data_location != TensorProto.EXTERNAL:
            tensor.raw_data = data
            return
        file, offset, _ = self._place(tensor)
        with file.open("r+b") as stream:
            stream.seek(offset)
            stream.write(data)

    def floats(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        return self.read(name).view(_DTYPES[tensor.data_type]).reshape(tuple(tensor.dims))

    def place(self, name: str) -> tuple[Path, int, int] | None:
        """Where its bytes are, if not in the graph: graphs may share them."""
        tensor = self._tensors[name]
        return self._place(tensor) if tensor.data_location == TensorProto.EXTERNAL else None

    def save(self) -> None:
        onnx.save(self.model, self._path)

    def _place(self, tensor: TensorProto) -> tuple[Path, int, int]:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        return self._path.parent / entries["location"], int(entries["offset"]), int(entries["length"])


def _scale_weight(stored: _Stored, *parts: str) -> None:
    """Scale the only weight with these parts in its name: its values, or the scales (and sums) that make them."""
    names = [n for n in stored.names(*parts) if not n.endswith((".int4", ".int8", ".uint4", ".uint8", ".bias"))]
    names = [n for n in names if stored._tensors[n].data_type in _DTYPES]
    assert len({name.removesuffix(".scales").removesuffix(".sums") for name in names}) == 1, names
    for name in names:
        stored.write(name, (stored.floats(name) * FACTOR).astype(stored.floats(name).dtype))
    stored.save()


def _decoders(package: Path) -> list[_Stored]:
    """The graphs of the decoder: one, or those of its parts, of which two share the bytes of their weights."""
    paths = [package / "model.onnx"] if (package / "model.onnx").is_file() else sorted(package.glob("decoder_*.onnx"))
    return [_Stored(path) for path in paths]


def _encoders(package: Path) -> list[_Stored]:
    """The graphs of the vision encoders."""
    return [_Stored(package / file) for file in Manifest.load(package).encoders.values()]


def _scale_projector(package: Path) -> None:
    """The last product of the connector."""
    for stored in _encoders(package):
        names = ("projector.linear_2.weight", "modality_projection.proj.weight", "visual.merger.linear_fc2.weight")
        _scale_weight(stored, next(name for name in names if any(stored.names(name))))


def _swap_layers(package: Path) -> None:
    """Every weight of two decoder layers, norms too."""
    first, second = (f".layers.{layer}." for layer in LAYERS)
    done = set[object]()
    for stored in _decoders(package):
        pairs = [(name, name.replace(first, second)) for name in stored.names(first)]
        assert len(pairs) > 5
        for one, other in [pair for pair in pairs if stored.place(pair[0]) not in done]:
            ours, theirs = stored.read(one).copy(), stored.read(other).copy()
            stored.write(one, theirs)
            stored.write(other, ours)
        done |= {stored.place(one) for one, _ in pairs} - {None}
        stored.save()


def _subtractions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that subtract the mean from what becomes pieces; a compressor's view has one of its own."""
    producer = {output: node for node in graph.node for output in node.output}
    pads = [node for node in graph.node if node.op_type == "Pad"]
    if pads:
        found = [producer[producer[pads[0].input[0]].input[0]]]
    else:
        pieces = [producer[name] for name in ("pixel_values", "overview") if name in producer]
        found = [producer[division.input[0]] for division in pieces]
    assert {node.op_type for node in found} == {"Sub"}
    return found


def _shift_mean(package: Path) -> None:
    """The mean is not subtracted."""
    stored = _Stored(package / "front.onnx")
    stored.model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 3, 1, 1), np.float32), "mean"))
    for subtraction in _subtractions(stored.model.graph):
        assert stored.floats(subtraction.input[1]).size == 3
        subtraction.input[1] = "mean"  # the deviation may be read from the same constant
    stored.save()


def _shift_positions(package: Path) -> None:
    """Every patch has the position of the one before it."""
    for stored in _encoders(package):
        (name,) = (*stored.names("position_embedding.weight"), *stored.names("pos_embed.weight"))
        stored.write(name, np.roll(stored.floats(name), 1, axis=0))
        stored.save()


def _drop_tile(package: Path) -> None:
    """The last tile is left black, as by a loop that ends one early."""
    path = package / "front.onnx"
    model = onnx.load(path, load_external_data=False)
    maker = next(node for node in model.graph.node if "pixel_values" in node.output)
    maker.output[:] = ["all_tiles" if name == "pixel_values" else name for name in maker.output]
    ints = {"drop.first": [0], "drop.last": [-1], "drop.end": [2**31], "drop.axis": [0]}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), n) for n, v in ints.items())
    model.graph.node.extend(
        [
            helper.make_node("Slice", ["all_tiles", "drop.first", "drop.last", "drop.axis"], ["drop.kept"]),
            helper.make_node("Slice", ["all_tiles", "drop.last", "drop.end", "drop.axis"], ["drop.dropped"]),
            helper.make_node("Sub", ["drop.dropped", "drop.dropped"], ["drop.nothing"]),
            helper.make_node("Concat", ["drop.kept", "drop.nothing"], ["pixel_values"], axis=0),
        ]
    )
    onnx.save(model, path)


def _swap_tokens(package: Path) -> None:
    """Two letters have each other's ids."""
    path = package / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["t"], vocabulary["e"] = vocabulary["e"], vocabulary["t"]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")


def _wrong_scales(package: Path) -> None:
    """The scales of every matrix of one decoder layer, in a package of int4 weights."""
    done = set[object]()
    for stored in _decoders(package):
        names = list(stored.names(f".layers.{LAYERS[1]}.", ".scales"))
        assert names
        for name in [name for name in names if stored.place(name) not in done]:
            stored.write(name, (stored.floats(name) * FACTOR).astype(stored.floats(name).dtype))
        done |= {stored.place(name) for name in names} - {None}
        stored.save()


FAULTS: dict[str, Fault] = {
    "scaled projector weight": Fault(_scale_projector, "projector"),
    "swapped decoder layers": Fault(_swap_layers, f"decoder.layers.{LAYERS[0]}"),
    "wrong image mean": Fault(_shift_mean, "preprocessing"),
    "shifted positions": Fault(_shift_positions, "vision.embeddings"),
    "dropped tile": Fault(_drop_tile, "preprocessing"),
    "swapped token ids": Fault(_swap_tokens, "tokenization"),
    "wrong int4 scales": Fault(_wrong_scales, f"decoder.layers.{LAYERS[1]}", ("w4a16-rtn",)),
}


def _drop_taps(package: Path) -> None:
    """What first layers of the decoder add of an image is nothing (DeepStack), as other exporters have it."""
    for stored in _encoders(package):
        names = list(stored.names("deepstack_merger_list", ".linear_fc2"))
        assert names
        for name in names:
            stored.write(name, np.zeros_like(stored.floats(name)))
        stored.save()


#: That models with DeepStack alone can have.
DROPPED_TAPS = "dropped taps"
MORE_FAULTS: dict[str, Fault] = {DROPPED_TAPS: Fault(_drop_taps, "taps", ("float32",))}

#: In the order in which a model runs.
NAMES: Sequence[str] = tuple(FAULTS)
