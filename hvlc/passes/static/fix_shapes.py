"""Fix every dimension, for targets that compile graphs ahead of time.

A part of a decoder becomes two graphs over the same weights: one runs over `chunk` tokens of the prompt at a time,
the other over one token of the answer. Their KV cache has room for the whole context from the start. A vision encoder
sees one tile at a time; one that takes pieces of several shapes becomes a graph for each, over the same weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from hvlc.graphs.bundle import Bundle, Component, Role, Skip, Wire
from hvlc.graphs.facts import encoder_component
from hvlc.graphs.placement import Phase
from hvlc.graphs.shapes import infer_shapes
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait

_TILE = {"tiles": 1, "batch": 1}
_SIDES = ("piece_height", "piece_width")  # names of dimensions


@dataclass(frozen=True)
class Piece:
    """A shape of an encoder's input.

    Attributes:
        height: in pixels.
        width: in pixels.
        tokens: visual tokens that the encoder makes of it.
    """

    height: int
    width: int
    tokens: int


@dataclass(frozen=True)
class FixShapes(BundlePass):
    """Fix the shapes of decoder parts, of which two copies are made, and of vision encoders.

    Attributes:
        chunk: tokens of the prompt that run at once.
        context: positions of the KV cache; a multiple of `chunk`, because the last chunk is padded.
        roles: whose shapes are fixed: decoders, vision encoders or both.
        pieces: shapes of the encoders' inputs, where there are several.
    """

    chunk: int
    context: int
    roles: frozenset[Role] = frozenset({Role.DECODER, Role.VISION_ENCODER})
    pieces: tuple[Piece, ...] = ()
    requires = frozenset({Trait.SYMBOLIC_SHAPES, Trait.COMPUTED_SHAPES})
    promises = frozenset({Trait.STATIC_SHAPES})
    ends = frozenset({Trait.SYMBOLIC_SHAPES})

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.context < self.chunk or self.context % self.chunk:
            raise ValueError(f"a context of {self.context} is not a whole number of chunks of {self.chunk}")

    def transform(self, bundle: Bundle) -> Outcome:
        """Fix every component that an NPU may run."""
        changed, skipped = 0, []
        copies: dict[str, list[Component]] = {}
        for name, component in bundle.components.items():
            copies[name] = [component]
            if component.role not in self.roles:
                skipped.append(Skip(name, f"a {component.role} keeps its shapes"))
            elif component.role is Role.VISION_ENCODER and self.pieces and _is_open(component):
                copies[name] = [_for_piece(component, piece) for piece in self.pieces]
                changed += 1
            elif component.role is Role.VISION_ENCODER:
                changed += fix(component.graph, _TILE)
            elif component.phase is Phase.ALWAYS:
                copies[name] = [self._fixed(component, phase) for phase in (Phase.PROMPT, Phase.TOKEN)]
                changed += 1
        bundle.wires = [new for wire in bundle.wires for new in _between_copies(wire, copies)]
        bundle.components = {copy.name: copy for some in copies.values() for copy in some}
        return Outcome(changed, tuple(skipped))

    def _fixed(self, component: Component, phase: Phase) -> Component:
        tokens = self.chunk if phase is Phase.PROMPT else 1
        graph = component.graph.clone()
        graph.name = f"{component.name}_{phase}"
        fix(graph, {"batch": 1, "sequence": tokens, "past": self.context, "total": self.context})
        model = ir.Model(graph, ir_version=component.model.ir_version, producer_name=component.model.producer_name)
        return replace(component, name=graph.name, model=model, phase=phase)


def _is_open(component: Component) -> bool:
    """Whether an encoder takes pieces of any shape."""
    dims = [dim for value in component.graph.inputs for dim in value.shape or ()]
    return any(isinstance(dim, ir.SymbolicDim) and dim.value in _SIDES for dim in dims)


def _for_piece(component: Component, piece: Piece) -> Component:
    """A copy of an encoder for one shape of its input."""
    graph = component.graph.clone()
    graph.name = encoder_component(component.name, piece.height, piece.width)
    sizes = dict(zip(_SIDES, (piece.height, piece.width), strict=True)) | {"tokens": piece.tokens}
    fix(graph, _TILE | sizes)
    model = ir.Model(graph, ir_version=component.model.ir_version, producer_name=component.model.producer_name)
    return replace(component, name=graph.name, model=model)


def fix(graph: ir.Graph, dims: Mapping[str, int]) -> int:
    """Replace named dimensions of a graph's inputs and outputs, and say what follows for the values between.

    Args:
        graph: changed in place.
        dims: size of each name.

    Returns:
        1 if an input had one of the names, else 0.
    """
    named = any(isinstance(d, ir.SymbolicDim) and d.value in dims for v in graph.inputs for d in v.shape or ())
    if not named:
        return 0
    for node in graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape([_size(d, dims) for d in value.shape or ()])
    infer_shapes(graph)
    return 1


def _size(dim: int | ir.SymbolicDim, dims: Mapping[str, int]) -> int | ir.SymbolicDim:
    return dim if isinstance(dim, int) else dims.get(str(dim.value), dim)


def _between_copies(wire: Wire, copies: Mapping[str, list[Component]]) -> list[Wire]:
    """The wire for every pair of copies that run together."""
    (source, output), (target, read) = wire.source.split(".", 1), wire.target.split(".", 1)
    pairs = [(a, b) for a in copies[source] for b in copies[target]]
    together = [(a, b) for a, b in pairs if Phase.ALWAYS in (a.phase, b.phase) or a.phase is b.phase]
    return [Wire(f"{a.name}.{output}", f"{b.name}.{read}") for a, b in together]
