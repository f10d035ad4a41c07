"""The passes that add components: valid graphs, idempotent, and no byte stored twice."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.export import export_bundle
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.package.onnx_files import write_components
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.fuse.fuse_skip_norm import FuseSkipNorm
from hvlc.passes.lists import structural_passes
from hvlc.passes.quantize.quantize_weights import QuantizeWeights
from hvlc.passes.vision.select_encoder import SelectEncoder
from hvlc.recipes.loading import load_recipe
from hvlc.recipes.resolve import resolve
from hvlc.solvers import SOLVERS
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from tests.helpers.facts import raster_tiles
from tests.helpers.sessions import session
from tests.helpers.tiny import CELL, HIDDEN, TILE
from tests.helpers.tolerances import GRAPH_FLOAT32

CPU = load_target("cpu")
SELECT = SelectEncoder(raster_tiles(tile_size=TILE, cell_size=CELL), HIDDEN)


def structured(checkpoint: Path) -> Bundle:
    bundle = export_bundle(Checkpoint.open(checkpoint))
    for step in structural_passes(bundle.facts, CPU):
        step.run(bundle)
    return bundle


@pytest.mark.parametrize("recipe", ["float32", "w4a16-rtn"])
@pytest.mark.usefixtures("checked")
def test_every_pass_of_a_build_leaves_valid_graphs_and_nothing_to_do(tiny_checkpoint: Path, recipe: str) -> None:
    bundle = structured(tiny_checkpoint)
    QuantizeWeights(resolve(load_recipe(recipe), bundle, CPU, SOLVERS), SOLVERS).run(bundle)
    SELECT.run(bundle)
    assert [e.component for e in bundle.journal if e.step == "SelectEncoder"] == ["*"]


def test_the_fusion_takes_every_norm_after_a_residual(tiny_checkpoint: Path) -> None:
    bundle = structured(tiny_checkpoint)
    fused = {e.component: e.changed for e in bundle.journal if e.step == "FuseSkipNorm"}
    # two per layer, less the first norm, and the last norm after the layers
    assert fused == {"vision_base": 2 * 2, "vision_large": 2 * 3, "model": 2 * 2}


@pytest.mark.parametrize("recipe", ["float32", "w4a16-rtn"])
def test_the_fused_graph_equals_each_encoder(tiny_checkpoint: Path, recipe: str) -> None:
    bundle = structured(tiny_checkpoint)
    QuantizeWeights(resolve(load_recipe(recipe), bundle, CPU, SOLVERS), SOLVERS).run(bundle)
    SELECT.run(bundle)
    pixels = np.random.default_rng(0).normal(size=(6, 3, TILE, TILE)).astype(np.float32)
    grid = np.array([3, 5], np.int64)
    fused, stitch = session(bundle.components["vision_fused"].model), session(bundle.components["stitch"].model)
    answers = []
    for index, name in enumerate(bundle.facts.sees.encoders):
        (features,) = session(bundle.components[f"vision_{name}"].model).run(None, {"pixel_values": pixels})
        (expected,) = stitch.run(None, {"tile_features": features, "grid": grid})
        feeds = {"pixel_values": pixels, "grid": grid, "encoder_id": np.array([index], np.int64)}
        (found,) = fused.run(None, feeds)
        np.testing.assert_allclose(found, expected, atol=GRAPH_FLOAT32, rtol=0)
        answers.append(found)
    assert np.abs(answers[0] - answers[1]).max() > 0.01


@pytest.mark.parametrize("recipe", ["float32", "w4a16-rtn"])
def test_the_fused_graph_adds_no_weights_to_the_disk(tiny_checkpoint: Path, tmp_path: Path, recipe: str) -> None:
    sizes = []
    for fused in (False, True):
        bundle = structured(tiny_checkpoint)
        QuantizeWeights(resolve(load_recipe(recipe), bundle, CPU, SOLVERS), SOLVERS).run(bundle)
        if fused:
            SELECT.run(bundle)
        directory = tmp_path / str(fused)
        directory.mkdir()
        write_components(bundle, directory, 1, lambda done: None)
        sizes.append({p.name: p.stat().st_size for p in directory.glob("*.data")})
    assert sizes[0] == sizes[1]


def test_one_encoder_leaves_nothing_to_choose() -> None:
    b = GraphBuilder("one")
    b.output(b.op("Identity", b.input("x", ir.DataType.FLOAT, [1])), "y", ir.DataType.FLOAT, [1])
    bundle = Bundle("test")
    bundle.add(Component("one", Role.VISION_ENCODER, b.model(), "vision"))
    SELECT.run(bundle)
    assert list(bundle.components) == ["one"]
    assert bundle.journal[0].skipped[0].reason == "there is one encoder: nothing to choose"


class _Restless(ComponentPass):
    def transform(self, component: Component) -> Outcome:
        return Outcome(1)


class _Breaking(ComponentPass):
    def transform(self, component: Component) -> Outcome:
        component.graph.outputs[0].name = "image"
        return Outcome()


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(("step", "complaint"), [(_Restless(), "the second time"), (_Breaking(), "image")])
def test_the_check_of_passes_fails_for_a_bad_pass(step: ComponentPass, complaint: str) -> None:
    b = GraphBuilder("one")
    image = b.input("image", ir.DataType.FLOAT, [1])
    b.output(b.op("Exp", b.op("Exp", image)), "y", ir.DataType.FLOAT, [1])
    bundle = Bundle("test")
    bundle.add(Component("one", Role.DECODER, b.model(), "vision"))
    with pytest.raises(Exception, match=complaint):
        step.run(bundle)


def test_a_bundle_pass_skips_a_model_without_compressor(tiny_checkpoint: Path) -> None:
    bundle = export_bundle(Checkpoint.open(tiny_checkpoint))
    del bundle.components["resolution"]
    for step in structural_passes(bundle.facts, CPU):
        step.run(bundle)
    entries = {e.step: e for e in bundle.journal}
    assert entries["CompressResolution"].skipped[0].reason == "the model has no resolution compressor"
    assert FuseSkipNorm(lambda role: CPU.takes_op).name in entries
