"""Rotation and factors together: still the same model, and the same bytes on any number of threads, in any chunks."""

from pathlib import Path

import numpy as np
import pytest

from hvlc.graphs.bundle import Bundle
from hvlc.graphs.linears import linear_groups
from hvlc.graphs.producers import producer_of
from hvlc.package import streaming
from hvlc.package.onnx_files import write_components
from hvlc.passes.prepare.rotate_heads import RotateHeads
from hvlc.passes.prepare.rotate_residual import RotateResidual
from hvlc.passes.prepare.scale_channels import ScaleChannels
from hvlc.passes.quantize.quantize_weights import QuantizeWeights
from hvlc.recipes.loading import load_recipe
from hvlc.recipes.resolve import resolve
from hvlc.solvers import SOLVERS
from hvlc.targets import load_target
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.passes.float_models import bundle_of, difference, image_logits


def prepare(bundle: Bundle) -> None:
    RotateResidual().run(bundle)
    RotateHeads().run(bundle)
    factors = {}
    for component in bundle.components.values():
        for seed, group in enumerate(linear_groups(component.graph)):
            producer = producer_of(group)
            if not isinstance(producer, str):
                made = np.random.default_rng(seed).uniform(0.3, 3, producer.channels.size).astype(np.float32)
                factors[component.name, str(group.input.name)] = made[producer.channels]
    ScaleChannels(factors).run(bundle)


def test_one_after_another_they_leave_the_model_as_it_is(tiny_checkpoint: Path, untied_checkpoint: Path) -> None:
    for checkpoint in (tiny_checkpoint, untied_checkpoint):
        assert difference(checkpoint, prepare, image_logits) < GRAPH_FLOAT32


@pytest.mark.usefixtures("checked")
def test_one_after_another_they_find_what_they_did(untied_checkpoint: Path) -> None:
    prepare(bundle_of(untied_checkpoint))


@pytest.mark.parametrize("recipe", ["float32", "w4a16-rtn"])
def test_neither_threads_nor_chunks_change_a_byte(
    untied_checkpoint: Path, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, target = bundle_of(untied_checkpoint), load_target("cpu")
    prepare(bundle)
    QuantizeWeights(resolve(load_recipe(recipe), bundle, target, SOLVERS), SOLVERS).run(bundle)
    found = []
    for threads, chunk, strip in ((1, 1 << 20, 1 << 18), (3, 1 << 6, 1 << 9), (2, 1 << 10, 1 << 7)):
        monkeypatch.setattr(streaming, "CHUNK", chunk)
        monkeypatch.setattr("hvlc.weights.rotation._STRIP", strip)
        directory = tmp_path / str(threads)
        directory.mkdir()
        write_components(bundle, directory, threads, lambda done: None)
        found.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert found[0] == found[1] == found[2]
    assert any(name.endswith(".data") for name in found[0])
