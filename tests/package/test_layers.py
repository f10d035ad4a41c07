"""Errors of weights by layer, packed or not."""

from pathlib import Path

import numpy as np
import pytest

from hvlc.manifest.manifest import Manifest
from hvlc.package.initializers import Initializer
from hvlc.package.layers import layer_errors, paired, place_of_weight, plan_changes, unique_weights
from hvlc.package.weights import FloatValues, StoredWeight, stored_weights
from tests.helpers.faults import planted


def weights(directory: Path) -> dict[str, StoredWeight]:
    return unique_weights(stored_weights(directory, Manifest.load(directory)))


def stored(path: Path, name: str, values: np.ndarray) -> StoredWeight:
    file = path / f"{name}.bin"
    values.astype("<f4").tofile(file)
    tensor = Initializer(name, "float", values.shape, values.nbytes, file)
    return StoredWeight("model", name, values.shape, "float32", values.nbytes, FloatValues(tensor, False))


def test_a_package_against_itself_has_no_error(tiny_w4a16: Path) -> None:
    mine = weights(tiny_w4a16)
    pairs, alone = paired(mine, mine)
    found, without = layer_errors("b", pairs)
    assert (alone, without) == ([], [])
    assert found
    assert all(row.relative_error == row.worst_error == 0 for row in found)
    assert not plan_changes({"a": mine, "b": mine})


def test_quantization_shows_by_layer_and_kind(tiny_float32: Path, tiny_w4a16: Path) -> None:
    a, b = weights(tiny_float32), weights(tiny_w4a16)
    found, _ = layer_errors("b", paired(a, b)[0])
    by_place = {(row.layer, row.kind): row for row in found}
    assert 0.03 < by_place["model.layers.0", "mlp"].relative_error < 0.2
    assert by_place["model.layers.0", "norm"].relative_error == 0
    assert by_place["model.layers.1", "attention"].weights == 2  # the packed projections, and the output
    changes = {change.weight: change.formats for change in plan_changes({"a": a, "b": b})}
    assert changes["model.language_model.layers.0.self_attn.k_proj.weight"] == {"a": "float32", "b": "int4 b32 sym f16"}
    assert not any("norm" in name for name in changes)


@pytest.mark.parametrize(
    ("fault", "layers"),
    [
        ("wrong int4 scales", {"model.layers.1"}),
        ("swapped decoder layers", {"model.layers.0", "model.layers.1"}),
        ("shifted positions", {"vision_base.position_embedding", "vision_large.position_embedding"}),
    ],
)
def test_planted_faults_show_in_their_layers_alone(
    fault: str, layers: set[str], tiny_w4a16: Path, tmp_path: Path
) -> None:
    damaged = weights(planted(fault, tiny_w4a16, tmp_path / "p"))
    found, _ = layer_errors("b", paired(weights(tiny_w4a16), damaged)[0])
    assert {row.layer for row in found if row.relative_error} == layers


@pytest.mark.parametrize("swapped", [False, True])
def test_packed_projections_meet_their_members(tmp_path: Path, swapped: bool) -> None:
    random = np.random.default_rng(0)
    q, k = random.normal(size=(4, 6)).astype(np.float32), random.normal(size=(2, 6)).astype(np.float32)
    packed = {"a.q+k.weight": stored(tmp_path, "a.q+k.weight", np.concatenate([q, k]))}
    apart = {f"a.{n}.weight": stored(tmp_path, f"a.{n}.weight", v) for n, v in (("q", q), ("k", k))}
    first, second = (apart, packed) if swapped else (packed, apart)
    pairs, alone = paired(first, second)
    assert not alone
    assert [pair.name for pair in pairs] == ["a.q+k.weight"]
    assert layer_errors("b", pairs)[0][0].relative_error == 0
    assert not plan_changes({"a": first, "b": second})


def test_what_has_no_counterpart_or_no_error_is_named(tmp_path: Path) -> None:
    one = np.ones((2, 2), np.float32)
    first = {n: stored(tmp_path, n, v) for n, v in (("a.w", one), ("b.w", one), ("c.w", 0 * one), ("d.w", one))}
    there = tmp_path / "second"
    there.mkdir()
    bad = np.array([[np.nan, 1], [1, 1]], np.float32)
    second = {n: stored(there, n, v) for n, v in (("b.w", one[:1]), ("c.w", one), ("d.w", bad), ("e.w", one))}
    pairs, alone = paired(first, second)
    assert sorted(alone) == ["a.w", "b.w", "e.w"]
    found, without = layer_errors("b", pairs)
    assert (found, sorted(without)) == ([], ["c.w", "d.w"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.language_model.layers.3.mlp.up_proj.weight", ("c.layers.3", "mlp")),
        ("model.layers.3.self_attn.q_proj+k_proj+v_proj.weight", ("c.layers.3", "attention")),
        ("model.layers.3.self_attn.q_norm.weight", ("c.layers.3", "norm")),
        ("x.encoder.layers.0.mlp.fc1.bias", ("c.layers.0", "mlp")),
        ("model.branches.base.projector.linear_1.weight", ("c.projector", "other")),
        ("model.language_model.embed_tokens.weight", ("c.embed_tokens", "other")),
    ],
)
def test_names_have_places(name: str, expected: tuple[str, str]) -> None:
    assert place_of_weight("c", name) == expected
