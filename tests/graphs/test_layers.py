"""Dotted names that lead through a layer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.graphs.layers import LayerName


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.3.mlp.up_proj.weight", LayerName("model.", "layers", 3, "mlp.up_proj.weight")),
        ("layers.0.input_layernorm", LayerName("", "layers", 0, "input_layernorm")),
        ("encoder.layer.11.output", LayerName("encoder.", "layer", 11, "output")),
        ("a.layers.1.b.layers.2.c", LayerName("a.", "layers", 1, "b.layers.2.c")),
        ("model.norm.weight", None),
        ("players.3.weight", None),
        ("model.layers.x.weight", None),
        ("model.layers.3", None),
    ],
)
def test_a_name_is_split_at_its_layer(name: str, found: LayerName | None) -> None:
    assert LayerName.of(name) == found


@given(st.integers(0, 999), st.integers(0, 999))
def test_a_name_in_another_layer_is_that_layers(index: int, other: int) -> None:
    name = f"model.layers.{index}.mlp.weight"
    found = LayerName.of(name)
    assert found is not None
    assert found.at(index) == name
    assert LayerName.of(found.at(other)) == LayerName("model.", "layers", other, "mlp.weight")
