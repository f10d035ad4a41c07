"""Put the Visual Resolution Compressor in front of the tiling: a scale of 0 means "ask the compressor"."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from hvlc.errors import HvlcError
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Skip
from hvlc.graphs.editing import register
from hvlc.graphs.facts import SCALE_MARGIN, CompressorFacts, scale_grid
from hvlc.imaging.arithmetic import f32, scaled_size
from hvlc.imaging.raster_tiles import resized_and_normalized
from hvlc.imaging.rule import CHOSEN_SCALE, PIXELS, SIZE
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait

#: Initializer of the front graph: megapixels that a right answer is worth, float32 `[1]`; absent where the network does
#: not say how sure it is.
PRICE = "answer_price"


@dataclass(frozen=True)
class CompressResolution(BundlePass):
    """Join components "front" and "resolution" into "front".

    The compressor runs in an `If` branch, only when the caller leaves the scale to it.

    Attributes:
        facts: of the compressor. None: the model has none.
    """

    facts: CompressorFacts | None
    requires = frozenset({Trait.FRONT_GRAPH, Trait.FRONT_PIXELS})

    def transform(self, bundle: Bundle) -> Outcome:
        """Replace the front's chosen scale by `scale > 0 ? scale : compressor(image)`.

        A compressor that reads the question adds input `question_ids` int64 `[question_tokens]`, which may be empty.
        """
        if "resolution" not in bundle.components or self.facts is None:
            return Outcome(0, (Skip("front", "the model has no resolution compressor"),))
        front = bundle.components["front"].graph
        network = bundle.components.pop("resolution").graph
        nodes = {node.name: node for node in front}
        chosen = nodes[CHOSEN_SCALE]
        given = chosen.inputs[0]
        if given is None:
            raise HvlcError("pass.front", "the front graph has lost its scale", "report it")
        predicted = _branch(self.facts, front, network, nodes[PIXELS].outputs[0], nodes[SIZE].outputs[0])
        kept = GraphBuilder("given_scale", subgraph=True)
        kept.output(kept.op("Identity", given, name="given_scale"), "given", ir.DataType.FLOAT, [1])
        zero = ir.tensor([0.0], dtype=ir.DataType.FLOAT, name="no_scale")
        asked = ir.node("Greater", [given, register(front, zero)], name="scale_is_given")
        branches = {"then_branch": kept.graph, "else_branch": predicted}
        choice = ir.node("If", [asked.outputs[0]], branches, name="choose_scale")
        for node in (asked, choice):
            node.outputs[0].name = f"{node.name}_out"
        chosen.replace_input_with(0, choice.outputs[0])
        front.insert_before(chosen, [asked, choice])
        bundle.facts = replace(bundle.facts, image=replace(bundle.facts.sees, compresses=True))
        return Outcome(1)


def _branch(facts: CompressorFacts, front: ir.Graph, network: ir.Graph, pixels: ir.Value, size: ir.Value) -> ir.Graph:
    """Letterbox, network, and the scale on its grid, as the else branch."""
    b = GraphBuilder("predicted_scale", subgraph=True)
    longest = b.op("ReduceMax", size, keepdims=1)
    fit = b.op("Div", f32(b, facts.proxy_size), longest)
    fitted = b.op("Min", scaled_size(b, size, fit), b.ints(facts.proxy_size))
    proxy = resized_and_normalized(b, pixels, fitted, facts.mean, facts.std)
    missing = b.op("Sub", b.ints(facts.proxy_size), fitted)
    pads = b.op("Concat", b.ints(0, 0, 0, 0, 0, 0), missing, axis=0)
    proxy = b.op("Pad", proxy, pads)
    outputs = _inline(front, b.graph, network, proxy)
    margin = register(front, ir.tensor([1.0], dtype=ir.DataType.FLOAT, name=SCALE_MARGIN))
    if facts.price is None:
        side = b.op("Mul", b.op("Exp", outputs[0]), f32(b, facts.proxy_size))
        wanted = b.op("Div", b.op("Mul", side, margin), longest)
    else:
        price = register(front, ir.tensor([facts.price], dtype=ir.DataType.FLOAT, name=PRICE))
        wanted = b.op("Mul", _cheapest(b, facts, outputs, size, longest, price), margin)
    bounds = (f32(b, facts.min_scale), f32(b, 1.0))
    step = f32(b, facts.scale_step)
    steps = b.op("Floor", b.op("Add", b.op("Div", b.op("Clip", wanted, *bounds), step), f32(b, 0.5)))
    b.output(b.op("Clip", b.op("Mul", steps, step), *bounds), "predicted", ir.DataType.FLOAT, [1])
    return b.graph


def _cheapest(
    b: GraphBuilder,
    facts: CompressorFacts,
    outputs: Sequence[ir.Value],
    size: ir.Value,
    longest: ir.Value,
    price: ir.Value,
) -> ir.Value:
    """The scale, float `[1]`, whose megapixels and the price of a wrong answer, as likely as it is, are least.

    The size below which an answer fails is distributed logistically around the predicted one, on a log scale.
    """
    scales = np.array(scale_grid(facts.min_scale, facts.scale_step), np.float32)
    grid = b.constant(scales)
    size_of = b.op("Div", b.op("Mul", grid, longest), f32(b, facts.proxy_size))
    above = b.op("Div", b.op("Sub", b.op("Log", size_of), outputs[0]), b.op("Exp", outputs[1]))
    fails = b.op("Sigmoid", b.op("Neg", above))
    pixels = b.op("ReduceProd", size, keepdims=1)
    megapixels = b.op("Mul", b.constant(scales**2 * np.float32(1e-6)), pixels)
    cost = b.op("Add", megapixels, b.op("Mul", fails, price))
    return b.op("Gather", grid, b.op("ArgMin", cost, axis=0, keepdims=1), axis=0)


def _inline(front: ir.Graph, branch: ir.Graph, network: ir.Graph, proxy: ir.Value) -> Sequence[ir.Value]:
    """Move the network's nodes into the branch, its weights into the front graph; returns its outputs."""
    results = tuple(network.outputs)
    network.outputs.clear()
    for value in network.inputs[1:]:  # the question, which the host gives
        given = ir.Value(name=value.name, type=value.type, shape=value.shape)
        front.inputs.append(given)
        ir.convenience.replace_all_uses_with(value, given)
    ir.convenience.replace_all_uses_with(network.inputs[0], proxy)
    for value in list(network.initializers.values()):
        del network.initializers[str(value.name)]
        value.name = f"resolution.{value.name}"
        front.register_initializer(value)
    for node in list(network):
        network.remove(node)
        node.name = f"resolution/{node.name}"
        for output in node.outputs:
            output.name = f"resolution/{output.name}"
        branch.append(node)
    return results
