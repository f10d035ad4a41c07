"""Signatures of a package's graphs: inputs and outputs of the ranks and sizes that hosts count on.

onnxruntime holds what it is fed against a graph's inputs. What a graph gives it believes, and a host that reads two
numbers of a result with one, or a row of logits that ends early, reads what is not there.
"""

import math
from collections.abc import Iterable

import onnx

from hvlc.graphs.placement import Phase
from hvlc.graphs.states import PAST, PRESENT, is_convolution
from hvlc.manifest.manifest import DECODER, ComponentEntry, Manifest
from hvlc.opening.tensors import damaged, width_of

_DTYPES = frozenset("float float16 int8 uint8 uint16 int16 int32 int64".split())
_LENGTHS = ("past_seq_len", "total_seq_len", "last_row")  # as hvlc.graph has them, which imports onnx_ir
_ENCODER = "vision_encoder"  # likewise
_HIGHEST_RANK = 8
_MOST_BYTES = 2**31  # of one input or output whose shape is fixed; the largest cache has some 100 MB

#: A size of each dimension, in order; None where it may be any.
_Shape = tuple[int | None, ...]


def check_signature(
    name: str, entry: ComponentEntry, model: onnx.ModelProto, manifest: Manifest, vocabulary: int
) -> None:
    """Hold the inputs and outputs of a graph against the manifest and what hosts read of them.

    Args:
        name: of the component.
        entry: of the component.
        model: its graph.
        manifest: of the package.
        vocabulary: tokens that logits tell apart.

    Raises:
        UserError: it takes or gives something else.
    """
    file = entry.file
    inputs, outputs = _shapes(file, model.graph.input), _shapes(file, model.graph.output)
    whole = name == DECODER and entry.phase is Phase.ALWAYS
    staged = entry.phase is not Phase.ALWAYS
    _check_names(file, "inputs", inputs, entry.inputs, PAST if whole or staged else None)
    _check_names(file, "outputs", outputs, entry.outputs, PRESENT if whole or staged else None)
    if staged and not (entry.outputs and [name for name in entry.inputs if name not in _LENGTHS]):
        raise damaged(file, "the manifest says that it takes or gives nothing but lengths and caches")
    for value, shape in _expected(name, entry, manifest, vocabulary).items():
        found = inputs.get(value, outputs.get(value))
        if found is not None and not _fits(found, shape):
            raise damaged(file, f"{value} is {_text(found)}, and hosts read {_text(shape)}")
    for value, shape in (*inputs.items(), *outputs.items()):
        if value.startswith((PAST, PRESENT)):
            _check_state(file, value, shape)
        if staged and None in shape:
            raise damaged(file, f"{value} is {_text(shape)}, and graphs of a decoder in stages have fixed shapes")


def _shapes(file: str, values: Iterable[onnx.ValueInfoProto]) -> dict[str, _Shape]:
    """Shapes by name, each of a tensor whose type hosts know."""
    found: dict[str, _Shape] = {}
    for value in values:
        tensor = value.type.tensor_type
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if _is_known(tensor.elem_type) else ""
        if value.type.WhichOneof("value") != "tensor_type" or dtype not in _DTYPES or not tensor.HasField("shape"):
            raise damaged(file, f"{value.name[:80]!r} is not a tensor of known type and rank")
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        sizes = [size for size in shape if size is not None]
        if len(shape) > _HIGHEST_RANK or min(sizes, default=0) < 0 or width_of(dtype, math.prod(sizes)) > _MOST_BYTES:
            raise damaged(file, f"{value.name[:80]!r} is {dtype} {_text(shape)}, which no package has")
        if not value.name or value.name in found:
            raise damaged(file, f"two of its inputs or outputs are called {value.name[:80]!r}")
        found[value.name] = shape
    return found


def _is_known(number: int) -> bool:
    return number in onnx.TensorProto.DataType.values()


def _check_names(file: str, what: str, found: Iterable[str], said: Iterable[str], cache: str | None) -> None:
    """The manifest leaves out the caches of decoders."""
    names = {name for name in found if cache is None or not name.startswith(cache)}
    different = sorted(names ^ set(said))
    if different:
        listed = ", ".join(name[:80] for name in different[:4])
        raise damaged(file, f"the manifest says other {what} than the graph has: {listed}")


def _expected(name: str, entry: ComponentEntry, manifest: Manifest, vocabulary: int) -> dict[str, _Shape]:
    """Shapes of the values that hosts and onnxruntime-genai read, by name."""
    width = manifest.embedding_width
    if name == DECODER or entry.phase is not Phase.ALWAYS:
        reads: dict[str, _Shape] = {"input_ids": (None, None), "attention_mask": (None, None)}
        reads["position_ids"] = (3, None, None)
        return reads | {"inputs_embeds": (None, None, width), "logits": (None, None, vocabulary)}
    if name == "embedding":
        visual: dict[str, _Shape] = {"input_ids": (None, None), "image_features": (None, width)}
        return visual | {"inputs_embeds": (None, None, width)}
    if manifest.images is None:
        return {}
    any_sides = (None, 3, None, None)
    pixels: dict[str, _Shape] = {"pixel_values": (None, 3, *(manifest.images.piece or (None, None)))}
    if name == "front":
        pixels["overview"] = any_sides
        sizes: dict[str, _Shape] = {"image": (None, None, 3), "image_ids": (None,), "grid": (2,), "used_scale": (1,)}
        return pixels | sizes | {"scale": (1,), "max_visual_tokens": (1,), "question_ids": (None,)}
    if entry.role == _ENCODER:
        pixels = {"pixel_values": any_sides} if manifest.images.overview else pixels
        return pixels | {"tile_features": (None, None, width)}
    features = dict.fromkeys(("tile_features", "overview_features"), (None, None, width))
    return {**features, "grid": (2,), "image_features": (None, width)} | pixels


def _check_state(file: str, value: str, shape: _Shape) -> None:
    """Keys and values are `[batch, heads, positions, size]`, states of convolutions `[batch, channels, positions]`."""
    if is_convolution(value):
        if len(shape) != 3 or None in shape[1:]:
            raise damaged(file, f"{value} is {_text(shape)}, which is not the state of a convolution")
        return
    if len(shape) != 4:
        raise damaged(file, f"{value} is {_text(shape)}, which is not a cache")
    if value.startswith(PAST) and (shape[1] is None or shape[3] is None):
        raise damaged(file, f"{value} is {_text(shape)}, without its heads or their size")


def _fits(found: _Shape, expected: _Shape) -> bool:
    """Whether a shape has the expected sizes, each of them fixed."""
    return len(found) == len(expected) and all(e is None or f == e for f, e in zip(found, expected, strict=True))


def _text(shape: _Shape) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"
