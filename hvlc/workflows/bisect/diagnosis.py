"""Diagnosis of a stage that departs, as far as its weights and values say.

Everything here is a hint: the stage departs because of what it computes, and this says what was found when looking
for the mistakes that converters make.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np

from hvlc.files.reading import TOKENIZER, is_file
from hvlc.graphs.layers import LayerName
from hvlc.inputs.documents import read_json
from hvlc.manifest.manifest import MANIFEST
from hvlc.opening.package import open_package
from hvlc.opening.tokenizer import check_tokenizer
from hvlc.package.weights import StoredWeight, stored_weights
from hvlc.results import trace_points
from hvlc.results.trace_points import Values
from hvlc.tracing.package import PackageTracer
from hvlc.tracing.package_stages import Stage
from hvlc.tracing.parts import Part
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.prequantized.reading import read_parameter

_MATRIX = 2  # rank
_SHIFTS = 8  # rows or positions that are tried in both directions
_FLOAT_BITS = 32
_LISTED = 4  # weights or tokens that are named one by one
#: Relative error up to which values count as equal: what levels of four bits may differ by, and floats.
_QUANTIZED, _FLOAT = 0.3, 1e-3
_FACTOR = {True: 0.1, False: 1e-3}  # of a fitted factor's distance from 1, quantized or not

#: A parameter of the reference by name; None where it has none.
Reader = Callable[[str], np.ndarray | None]


def diagnose(
    name: str,
    parts: Mapping[str, Stage],
    outputs: Values,
    expected: Values,
    tracer: PackageTracer,
    reference: Path,
) -> tuple[str, ...]:
    """Hints about a stage that departs.

    Args:
        name: of the stage.
        parts: the package's stages by name.
        outputs: of the package's stages on the reference's values.
        expected: the reference's values.
        tracer: of the package.
        reference: directory of the reference.
    """
    if name == trace_points.TOKENIZATION:
        return tuple(_of_tokens(outputs[name], expected[name], tracer.directory, reference))
    if name == trace_points.RESOLUTION:
        return tuple(_of_scales(outputs[name], expected[name], tracer))
    if name == trace_points.PREPROCESSING and name in outputs:
        return tuple(_of_tiles(outputs[name], expected[name]))
    if name == trace_points.MERGE and name in outputs:
        return tuple(_of_rows(outputs[name], expected[name]))
    stage = parts.get(name)
    if stage is None or stage.part is None:
        return ()
    return _of_weights(stage.part, tracer, reader(reference))


def reader(reference: Path) -> Reader:
    """The parameters of a checkpoint, or the weights of a package, which stacks some parameters, as float32.

    Raises:
        UserError: it is damaged.
    """
    if is_file(reference / MANIFEST):
        stored = {weight.name: weight for weight in stored_weights(reference, open_package(reference).manifest)}
        return lambda name: stored[name].load() if name in stored else None
    checkpoint = Checkpoint.open(reference)

    def read(name: str) -> np.ndarray | None:
        found = read_parameter(checkpoint, name)
        return None if found is None else found.cast(np.float32).read()

    return read


def _of_weights(part: Part, tracer: PackageTracer, read: Reader) -> tuple[str, ...]:
    """Differences from the reference in the weights of a part of a graph."""
    if tracer.prepared:
        return (f"its weights are not compared: the recipe changes them by {tracer.prepared} before they are stored",)
    component = next(n for n, entry in _graphs(tracer).items() if entry == part.file)
    stored = [w for w in stored_weights(tracer.directory, tracer.manifest) if w.component == component]
    found = [f for w in stored if _belongs(w.name, part.weights) for f in _compared(w, read)]
    wrong = [f for f in found if f.text]
    if found and not wrong:
        ranges = part.precision.activations < _FLOAT_BITS
        more = ", or values leave the ranges that calibration gave its activations" if ranges else ""
        return (f"its weights are the reference's: the graph computes something else with them{more}",)
    return tuple(_summed_up(wrong, len(found)))


def _compared(weight: StoredWeight, read: Reader) -> Iterator["_Finding"]:
    """A stored weight, parameter by parameter where the reference has them singly; nothing where it has none."""
    quantized = not weight.format.startswith(("float", "bfloat"))
    single = {name: values for name in weight.members if (values := read(name)) is not None}
    whole = read(weight.name) if len(single) < len(weight.members) else None
    wanted = single if whole is None else {weight.name: whole}
    if whole is None and len(single) < len(weight.members):
        return
    rows = np.cumsum([len(values) for values in wanted.values()])[:-1]
    for found, (name, values) in zip(np.split(weight.load(), rows), wanted.items(), strict=True):
        if found.size == values.size:
            yield _compare(name, _as_stored(name, found, values), values, quantized, read)


def _as_stored(name: str, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """A weight in the form in which the reference stores it: turned, or a norm's gain less 1 (Gemma)."""
    turned = found.T if found.shape == wanted.shape[::-1] != wanted.shape else found
    same = turned.reshape(wanted.shape)
    offset = name.endswith("norm.weight") and _relative(same - 1, wanted) < _relative(same, wanted)
    return same - 1 if offset else same


def _graphs(tracer: PackageTracer) -> dict[str, str]:
    """File of each graph by the name of its component."""
    named = {f"vision_{name}": file for name, file in tracer.manifest.encoders.items()}
    return {name: entry.file for name, entry in tracer.manifest.components.items()} | named


def _belongs(name: str, initializers: tuple[str, ...]) -> bool:
    return any(i == name or i.startswith(f"{name}.") for i in initializers)


@dataclass(frozen=True)
class _Finding:
    """Finding about one parameter.

    Attributes:
        name: of the parameter.
        what: "scaled", "moved", "shifted" or "different"; "" where it is as it should be.
        by: factor, layer or rows.
        text: for people; "" where it is as it should be.
    """

    name: str
    what: str = ""
    by: str = ""
    text: str = ""


def _compare(name: str, found: np.ndarray, wanted: np.ndarray, quantized: bool, read: Reader) -> _Finding:
    """A parameter against the reference's."""
    limit = _QUANTIZED if quantized else _FLOAT
    factor, rest = _fitted(found, wanted)
    if rest <= limit:
        if abs(factor - 1) <= _FACTOR[quantized]:
            return _Finding(name)
        by = f"{factor:.2g}" if quantized else f"{factor:.4g}"
        return _Finding(name, "scaled", by, f"{name} is {by} times the reference's")
    other = _other_layer(name, found, limit, read)
    if other is not None:
        return _Finding(name, "moved", str(other), f"{name} has the values of layer {other}")
    rows = next(_shifts(found, wanted, limit), None) if wanted.ndim >= _MATRIX else None
    if rows is not None:
        return _Finding(name, "shifted", str(rows), f"the rows of {name} are shifted by {rows}")
    return _Finding(name, "different", "", f"{name} differs from the reference's by {_relative(found, wanted):.0%}")


def _fitted(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """The factor that brings `wanted` nearest, and the relative error that remains."""
    f, w = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    squares = float(w @ w)
    if not squares:
        return 1.0, 0.0 if not f.any() else np.inf
    factor = float(f @ w) / squares
    remains = float(np.linalg.norm(f - factor * w))
    return factor, remains / (abs(factor) * squares**0.5) if factor else np.inf


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    norm = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(found - wanted)) / norm if norm else float(bool(found.any()))


def _other_layer(name: str, found: np.ndarray, limit: float, read: Reader) -> int | None:
    """The layer whose parameter of the same kind this is."""
    place = LayerName.of(name)
    if place is None:
        return None
    limit, layer = limit if found.ndim >= _MATRIX else _FLOAT, 0  # norms are alike in all layers
    while (other := read(place.at(layer))) is not None:
        if layer != place.index and other.size == found.size:
            factor, rest = _fitted(found, other.reshape(found.shape))
            if rest <= limit and abs(factor - 1) <= _FACTOR[limit == _QUANTIZED]:
                return layer
        layer += 1
    return None


def _shifts(found: np.ndarray, wanted: np.ndarray, limit: float) -> Iterator[int]:
    """By how many rows one is another, shifted; rows that fall out at an end may be anything."""
    for rows in (sign * count for count in range(1, _SHIFTS + 1) for sign in (1, -1)):
        if abs(rows) >= len(wanted):
            continue
        ours, theirs = (found[rows:], wanted[:-rows]) if rows > 0 else (found[:rows], wanted[-rows:])
        if _relative(ours, theirs) <= limit:
            yield rows


def _summed_up(wrong: list[_Finding], compared: int) -> Iterator[str]:
    """One line for many parameters with the same fault, then those that are left."""
    for (what, by), count in Counter((f.what, f.by) for f in wrong).most_common():
        alike = [f for f in wrong if (f.what, f.by) == (what, by)]
        if what in ("scaled", "moved") and count > 1:
            place = alike[0].name.rpartition(".layers.")[0]
            said = f"{by} times the reference's" if what == "scaled" else f"the reference's of {place}.layers.{by}"
            names = ", ".join(f.name.rpartition("layers.")[2] for f in alike[:_LISTED])
            yield f"{count} of {compared} weights are {said}: {names}{', ...' if count > _LISTED else ''}"
        else:
            yield from (f.text for f in alike[:_LISTED])
            if count > _LISTED:
                yield f"and {count - _LISTED} more"


def _of_tokens(found: np.ndarray, expected: np.ndarray, package: Path, reference: Path) -> Iterator[str]:
    """The first difference, and what the two vocabularies disagree about."""
    ours, theirs = _vocabulary(package), _vocabulary(reference)
    words = {id_: token for token, id_ in theirs.items()}
    mine = {id_: token for token, id_ in ours.items()}
    both = min(len(found), len(expected))
    differ = np.flatnonzero(found[:both] != expected[:both])
    if differ.size:
        at = int(differ[0])
        a, b = int(found[at]), int(expected[at])
        yield f"position {at}: token {a} ({mine.get(a)!r}) where the reference has {b} ({words.get(b)!r})"
    if len(found) != len(expected):
        yield f"{len(found)} tokens, where the reference has {len(expected)}"
    moved = [token for token in theirs if ours.get(token, theirs[token]) != theirs[token]]
    if moved:
        listed = ", ".join(f"{token!r} {theirs[token]} -> {ours[token]}" for token in moved[:_LISTED])
        yield f"{len(moved)} tokens of tokenizer.json have other ids: {listed}{', ...' if len(moved) > _LISTED else ''}"
    missing = theirs.keys() - ours.keys()
    if ours and missing:
        yield f"{len(missing)} tokens of the reference are missing from tokenizer.json"


def _vocabulary(directory: Path) -> dict[str, int]:
    """Ids by token; {} where there is no tokenizer.json, or one of another form."""
    check_tokenizer(directory)
    path = directory / "tokenizer.json"
    content = read_json(path, "package.tokenizer", limit=TOKENIZER) if is_file(path) else {}
    model = content.get("model", {}) if isinstance(content, dict) else {}
    found = model.get("vocab", {})
    tokens = dict(found) if isinstance(found, dict) else {entry[0]: index for index, entry in enumerate(found)}
    return tokens | {added["content"]: added["id"] for added in content.get("added_tokens") or []}


def _of_scales(found: np.ndarray, expected: np.ndarray, tracer: PackageTracer) -> Iterator[str]:
    rule = tracer.manifest.images
    if rule is not None and not rule.resolution_compressor and (found == 1).all():
        yield "the package has no resolution compressor: compare with --no-vrc"
    for index in np.flatnonzero(found != expected)[:_LISTED] if found.shape == expected.shape else ():
        yield f"image {index} is scaled by {found[index]:.4g}, the reference scales it by {expected[index]:.4g}"


def _of_tiles(found: np.ndarray, expected: np.ndarray) -> Iterator[str]:
    """Differences from the reference in float `[tiles, 3, T, T]`."""
    if found.shape != expected.shape:
        yield f"{len(found)} tiles, where the reference cuts {len(expected)}"
        return
    wrong = [i for i in range(len(found)) if _relative(found[i], expected[i]) > _FLOAT]
    for index in wrong[:_LISTED]:
        twin = next((i for i in range(len(expected)) if _relative(found[index], expected[i]) <= _FLOAT), None)
        if not found[index].any():
            yield f"tile {index} of {len(found)} is empty"
            wrong = [i for i in wrong if i != index]
        elif twin is not None:
            yield f"tile {index} of {len(found)} is the reference's tile {twin}"
            wrong = [i for i in wrong if i != index]
    if wrong:
        yield from _of_channels(found[wrong], expected[wrong])


def _of_channels(found: np.ndarray, expected: np.ndarray) -> Iterator[str]:
    """Channels in another order, or normalized otherwise."""
    for order in permutations(range(found.shape[1])):
        if _relative(found[:, order], expected) <= _FLOAT:
            yield f"the colour channels are in the order {', '.join(map(str, np.argsort(order)))}"
            return
    for channel in range(found.shape[1]):
        seen = expected[:, channel] != 0  # padding is 0 whatever the normalization
        x, y = expected[:, channel][seen].astype(np.float64), found[:, channel][seen].astype(np.float64)
        if len(x) < _MATRIX or not x.std():
            continue
        gain, shift = np.polyfit(x, y, 1)
        if np.abs(gain * x + shift - y).max() > _FLOAT * max(1.0, float(np.abs(y).max())):
            continue
        causes = {"image_mean": abs(shift) > _FLOAT, "image_std": abs(gain - 1) > _FLOAT}
        named = " and ".join(name for name, is_one in causes.items() if is_one)
        if named:
            shifted = f"shifted by {round(shift, 3) + 0.0:+.3f}"
            yield f"channel {channel} is {gain:.3f} times the reference's, {shifted}: another {named}"


def _of_rows(found: np.ndarray, expected: np.ndarray) -> Iterator[str]:
    """Positions that have what belongs to others."""
    if found.shape != expected.shape:
        return
    wrong = np.flatnonzero((found != expected).any(-1))
    owners = {int(at): np.flatnonzero((expected == found[at]).all(-1)) for at in wrong}
    pairs = [(at, int(same[0])) for at, same in owners.items() if same.size]
    offsets = Counter(at - owner for at, owner in pairs)
    for offset, count in offsets.most_common(1):
        if count > 1:
            yield f"{count} positions have what belongs {abs(offset)} {'before' if offset > 0 else 'after'} them"
    yield from (f"position {at} has what belongs to position {owner}" for at, owner in pairs[:_LISTED])
