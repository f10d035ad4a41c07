"""Performs a plan: weight matrices become com.microsoft.MatMulNBits, tied tables GatherBlockQuantized.

The pass has no opinions; it does what the plan says, lazily: levels are computed when they are written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from hvlc.bundle import Component, Role, Skip, lazy_tensor
from hvlc.errors import HvlcError
from hvlc.graph import MICROSOFT
from hvlc.passes.base import ComponentPass, Outcome, replace_node
from hvlc.plan import Action, Assignment, Plan, ScaleType, WeightFormat
from hvlc.quantized import Levels

_FLOAT_COMPUTE, _INT8_COMPUTE = 1, 4  # accuracy_level of MatMulNBits


@dataclass
class _Solved:
    """One matrix, solved once and kept only until its parts are written.

    Attributes:
        solve: computes the levels.
        parts: how many tensors read them.
    """

    solve: Callable[[], Levels]
    parts: int
    _left: int = 0
    _levels: Levels | None = None

    def read(self) -> Levels:
        """The levels; recomputed after all parts have read them."""
        if self._levels is None:
            self._levels, self._left = self.solve(), self.parts
        levels, self._left = self._levels, self._left - 1
        if self._left == 0:
            self._levels = None
        return levels


@dataclass(frozen=True)
class QuantizeWeights(ComponentPass):
    """Replaces every planned product and look-up of a component.

    Attributes:
        plan: what to do.
        solvers: name to function.
    """

    roles = frozenset({Role.DECODER, Role.VISION_ENCODER, Role.EMBEDDING})
    plan: Plan
    solvers: Mapping[str, Callable[[np.ndarray, WeightFormat], Levels]]
    _solved: dict[str, _Solved] = field(default_factory=dict, repr=False, compare=False)

    def transform(self, component: Component) -> Outcome:
        """Perform the assignments of this component."""
        assignments = self.plan.for_component(component.name)
        nodes = {str(node.name): node for node in component.graph}
        changed, skipped = 0, []
        for name, assignment in assignments.items():
            if assignment.action is Action.KEEP:
                skipped.append(Skip(assignment.weight, assignment.reason))
                continue
            node = nodes.get(name)
            if node is None or node.domain:
                continue
            self._replace(component.graph, node, assignment)
            changed += 1
        return Outcome(changed, tuple(skipped))

    def _replace(self, graph: ir.Graph, node: ir.Node, assignment: Assignment) -> None:
        lookup = node.op_type == "Gather"
        weight = node.inputs[0 if lookup else 1]
        format = assignment.format
        if format is None or weight is None or weight.const_value is None:
            raise HvlcError("plan.incomplete", f"{assignment.weight} has no format or no value", "report it")
        solved = self._solution(assignment, format, weight.const_value, transposed=not lookup)
        parts = _initializers(graph, assignment, format, solved, flat=lookup)
        scales = self._float_scales(graph, node, parts[1], format)
        if lookup:
            new = _lookup(node, parts[0], scales, parts[2], format)
        else:
            new = self._product(node, parts[0], scales, parts[2], assignment, format)
        replace_node(node, new, {0: 0})
        if not weight.uses():
            del graph.initializers[str(weight.name)]

    def _solution(
        self, assignment: Assignment, format: WeightFormat, tensor: ir.TensorProtocol, *, transposed: bool
    ) -> _Solved:
        """One solution for all places that share the weight's name (a tied head and table)."""
        if assignment.weight not in self._solved:
            solver = self.solvers[str(assignment.solver)]

            def solve() -> Levels:
                values = tensor.numpy()
                return solver(np.ascontiguousarray(values.T if transposed else values), format)

            self._solved[assignment.weight] = _Solved(solve, 2 if format.symmetric else 3)
        return self._solved[assignment.weight]

    def _float_scales(self, graph: ir.Graph, node: ir.Node, scales: ir.Value, format: WeightFormat) -> ir.Value:
        """Scales stored as float16 are widened once, at load: onnxruntime folds a Cast of a constant."""
        if format.scale_type is ScaleType.FLOAT32:
            return scales
        cast = ir.node("Cast", [scales], {"to": int(ir.DataType.FLOAT)}, name=f"{scales.name}.widened")
        cast.outputs[0].name = f"{scales.name}.float32"
        graph.insert_before(node, cast)
        return cast.outputs[0]

    def _product(
        self,
        node: ir.Node,
        levels: ir.Value,
        scales: ir.Value,
        zeros: ir.Value | None,
        assignment: Assignment,
        format: WeightFormat,
    ) -> ir.Node:
        attributes = {
            "K": assignment.in_features,
            "N": assignment.out_features,
            "bits": format.bits,
            "block_size": format.block_size,
            "accuracy_level": _FLOAT_COMPUTE if self.plan.float_compute else _INT8_COMPUTE,
        }
        inputs = [node.inputs[0], levels, scales, *([zeros] if zeros is not None else [])]
        return ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT, name=f"{node.name}")


def _lookup(node: ir.Node, levels: ir.Value, scales: ir.Value, zeros: ir.Value | None, format: WeightFormat) -> ir.Node:
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": format.block_size, "bits": format.bits}
    inputs = [levels, node.inputs[1], scales, *([zeros] if zeros is not None else [])]
    return ir.node("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT, name=str(node.name))


def _initializers(
    graph: ir.Graph, assignment: Assignment, format: WeightFormat, solved: _Solved, *, flat: bool
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Packed levels, scales and zero points; `flat` is the look-up's 2-D view of the same bytes."""
    rows, blocks = assignment.out_features, -(-assignment.in_features // format.block_size)
    blob = format.block_size * format.bits // 8
    scale_type = ir.DataType.FLOAT16 if format.scale_type is ScaleType.FLOAT16 else ir.DataType.FLOAT

    def add(suffix: str, dtype: ir.DataType, shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> ir.Value:
        name = f"{assignment.weight}.{suffix}"
        tensor = lazy_tensor(name, dtype, shape, lambda: read().reshape(shape), storage=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        graph.register_initializer(value)
        return value

    packed_shape = (rows, blocks * blob) if flat else (rows, blocks, blob)
    levels = add(f"int{format.bits}", ir.DataType.UINT8, packed_shape, lambda: solved.read().packed())
    scale_shape = (rows, blocks) if flat else (rows * blocks,)
    scales = add("scales", scale_type, scale_shape, lambda: solved.read().stored_scales())
    if format.symmetric:
        return levels, scales, None
    columns = -(-blocks * format.bits // 8)
    zeros = add("zero_points", ir.DataType.UINT8, (rows, columns), lambda: _packed_zeros(solved.read(), format))
    return levels, scales, zeros


def _packed_zeros(levels: Levels, format: WeightFormat) -> np.ndarray:
    """uint8 `[out, ceil(blocks * bits / 8)]`, low nibble first."""
    zeros = levels.zero_points
    if zeros is None:
        raise HvlcError("solver.zero_points", "the solver gave no zero points for an asymmetric format", "report it")
    if format.bits == 8:
        return zeros
    if zeros.shape[1] % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))
    return zeros[:, 0::2] | (zeros[:, 1::2] << 4)
