"""Rows of the corpus: `tables/*.yaml`, a list of blocks each.

A block has `models`, from a row's id to a graph as text (`notation.py`) or, with a `template` of `templates.py`, to
its parameters. `each` repeats them for every combination of its axes: `$axis` in ids and texts is the axis' value, and
a template takes all of them as parameters. An axis is a list, or a mapping from what stands in the id to the value; a
value that is a mapping is several variables. `each` may be a list of such mappings, one after the other.

`opset` is the models', 21 unless stated. With `allowed: TYPE` a row is there only if ONNX lets its operator have the
type.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from string import Template
from typing import Any

from hvlc.inputs.documents import read_yaml
from tests.lint import blocks, templates
from tests.lint.notation import graph, operator_of
from tests.lint.tape import Case, may_have

TABLES = Path(__file__).with_name("tables")
_TEMPLATES: dict[str, Callable[..., Case]] = {
    function.__name__: function
    for function in (
        graph,
        *(templates.blockwise, templates.convolution, templates.convolution_over, templates.dequantized_operand),
        *(templates.grouped, templates.normalization, templates.product, templates.transposed_weight),
        *(blocks.branch, blocks.decoder, blocks.loop, blocks.mobile, blocks.vision),
    )
}
_KEYS = {"models", "each", "template", "opset", "allowed"}


@dataclass(frozen=True)
class Row:
    """One model of the corpus.

    Attributes:
        id: unique; the key of its verdict.
        template: function of `templates.py`, or "graph".
        parameters: of the template.
    """

    id: str
    template: str = "graph"
    parameters: dict[str, Any] = field(default_factory=dict)

    def case(self) -> Case:
        """The row's model."""
        return _TEMPLATES[self.template](self.id, **self.parameters)


def table(name: str) -> Iterator[Row]:
    """Rows of `tables/NAME.yaml`."""
    for block in read_yaml(TABLES / f"{name}.yaml"):
        if unknown := set(block) - _KEYS:
            raise ValueError(f"{name}.yaml: unknown {sorted(unknown)}")
        yield from rows(block)


def rows(block: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of a block."""
    opset = block.get("opset", 21)
    for pattern, model in block["models"].items():
        for labels, values in _combinations(block.get("each", {})):
            name = Template(pattern).substitute(labels)
            if "template" in block:
                yield Row(name, block["template"], values | (model or {}))
                continue
            text = Template(model).substitute(values)
            allowed = Template(block.get("allowed", "")).substitute(values)
            if not allowed or may_have(operator_of(text), allowed, opset):
                yield Row(name, "graph", {"text": text, "opset": opset})


def _combinations(each: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What ids and what models have for every axis, for every combination."""
    for axes in each if isinstance(each, list) else [each]:
        choices = [[(name, *pair) for pair in _values(axis)] for name, axis in axes.items()]
        for chosen in product(*choices):
            labels, values = {}, {}
            for name, label, value in chosen:
                several = value if isinstance(value, dict) else {name: value}
                labels |= several | {name: label}
                values |= several
            yield labels, values


def _values(axis: Any) -> list[tuple[Any, Any]]:
    """What stands in the id, and the value."""
    if isinstance(axis, dict):
        return list(axis.items())
    return [(value, value) for value in (axis if isinstance(axis, list) else [axis])]
