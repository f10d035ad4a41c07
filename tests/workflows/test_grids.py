"""Fixed grids: chosen by name or by images; each encoder computes what the tower over any grid does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hvlc.errors import HvlcError
from hvlc.graphs.placement import Placement
from hvlc.manifest.manifest import Manifest
from hvlc.recipes.loading import load_recipe
from hvlc.results import trace_points
from hvlc.results.trace_points import Question
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.tracing.package import PackageTracer
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.grids import nearest_grids
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import open_request
from tests.helpers.tiny import picture
from tests.helpers.tiny_vision_language import save_grid, save_overview
from tests.helpers.tolerances import GRAPH_FLOAT32

TARGET, CONTEXT = "qnn-sm8750", 640

#: A tower whose widths are whole blocks of 32.
BLOCKS = {"qwen2_vl": {"embed_dim": 64, "num_heads": 4}}
WIDE = {"hidden_size": 64, "intermediate_size": 64, "num_heads": 4}

#: Grids whose sides are windows of 24 pixels, and one that cuts them off.
GRIDS = ((48, 48), (24, 72), (40, 64))


def saved(directory: Path, family: str) -> Path:
    return save_grid(directory / "checkpoint", family, vision=BLOCKS.get(family, WIDE))


def fixed(checkpoint: Path, output: Path, **options: Any) -> VisionLanguageModel:
    """A package for an NPU that is not compiled, so that onnxruntime runs it here."""
    asked = {"context": CONTEXT, "aot": False} | options
    build(open_request(checkpoint, TARGET, "w4a16-rtn", output, **asked))
    return VisionLanguageModel(output, threads=1)


def in_blocks(path: Path) -> Path:
    """The recipe with the form of encoders that an NPU takes: a CPU multiplies integers otherwise."""
    recipe = load_recipe("w4a16-rtn")
    rules = []
    for rule in recipe.rules:
        spec = rule.quantize
        rules.append(rule.model_copy(update={"quantize": spec.fallback}) if spec and spec.products else rule)
    changed = recipe.model_copy(update={"rules": tuple(rules)})
    path.write_text(yaml.safe_dump(changed.model_dump(mode="json", exclude_none=True)))
    return path


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_every_grid_computes_what_the_tower_over_any_grid_does(tmp_path: Path, family: str) -> None:
    checkpoint = saved(tmp_path, family)
    package = fixed(checkpoint, tmp_path / "fixed", grids=GRIDS)
    build(open_request(checkpoint, "cpu", str(in_blocks(tmp_path / "blocks.yaml")), tmp_path / "any"))
    open_one = VisionLanguageModel(tmp_path / "any", threads=1)
    for height, width in GRIDS:
        seen = package._vision.see(np.asarray(picture(2 * height, 2 * width)), compress=False)
        assert seen.pieces.shape == (1, 3, height, width)
        found, expected = (one._vision.encode([seen], "main").features[0] for one in (package, open_one))
        np.testing.assert_allclose(found, expected, atol=GRAPH_FLOAT32, rtol=0)
    images = [picture(50, 48), picture(20, 70)]
    answer = package.answer("What is it?", images, encoder="auto", vrc=True, max_new_tokens=4)
    assert len(answer.tokens) >= 1
    found = package.manifest
    assert found.images is not None
    assert found.images.grids == GRIDS
    placed = {name for name, entry in found.components.items() if entry.placement is Placement.NPU}
    assert placed == set(found.components) - {"front", "stitch", "embedding", "vision"}
    assert {f"vision_main_{height}x{width}" for height, width in GRIDS} <= placed


def test_fixed_encoders_hold_no_positions_and_share_their_weights(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"context": CONTEXT, "aot": False, "grids": GRIDS}
    result = build(open_request(saved(tmp_path, "qwen3_vl"), TARGET, "w4a16-rtn", tmp_path / "fixed", **asked))
    files = result.manifest.files
    assert files["vision.onnx.data"].bytes < 750_000  # weights of 0.48 MB, there once, and positions of three grids
    folded = [entry for entry in result.journal if entry.step == "FoldConstants"]
    assert {entry.component for entry in folded} == {f"vision_main_{h}x{w}" for h, w in GRIDS}
    assert all(entry.changed and not entry.skipped for entry in folded)


def test_grids_are_chosen_by_the_images_of_the_calibration(tmp_path: Path) -> None:
    checkpoint, images = saved(tmp_path, "qwen3_vl"), tmp_path / "images"
    images.mkdir()
    for number, size in enumerate([(64, 64)] * 3 + [(40, 96)] * 3 + [(96, 40)] * 2):
        picture(*size).save(images / f"{number}.png")
    request = open_request(
        checkpoint,
        TARGET,
        "npu-w4a16",
        tmp_path / "package",
        context=CONTEXT,
        aot=False,
        calibration=str(images),
        samples=8,
    )
    rule = plan_build(request).planned.bundle.facts.sees.rule
    assert rule.grids == ((40, 96), (64, 64), (96, 40))


def test_a_rebuild_takes_the_grids_of_the_package(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, "qwen3_vl")
    fixed(checkpoint, tmp_path / "package", grids=GRIDS)
    assert rebuild(tmp_path / "package", checkpoint).files == len(Manifest.load(tmp_path / "package").files) - 1


@pytest.mark.parametrize(
    ("target", "family", "grids", "expected"),
    [
        ("cpu", "qwen3_vl", GRIDS, "for this target take any shape"),
        (TARGET, "qwen3_vl", ((48, 50),), "multiples of 8"),
        (TARGET, "smolvlm", GRIDS, "pieces of one shape"),
        (TARGET, "qwen3_vl", ((48, 48), (4096, 4096)), "4096x4096 has 262144 visual tokens, and an image may have"),
    ],
)
def test_grids_that_mean_nothing_are_refused(
    tmp_path: Path, target: str, family: str, grids: tuple[tuple[int, int], ...], expected: str
) -> None:
    save = save_overview if family == "smolvlm" else saved
    checkpoint = save(tmp_path, family)
    asked: dict[str, Any] = {} if target == "cpu" else {"context": CONTEXT, "aot": False}
    with pytest.raises(HvlcError, match=expected) as error:
        plan_build(open_request(checkpoint, target, "w4a16-rtn", tmp_path / "package", grids=grids, **asked))
    assert "build.grids" in str(error.value)


natives = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30)


@given(natives, st.integers(1, 4))
def test_nearest_grids_are_some_of_them_and_more_are_nearer(native: list[tuple[int, int]], count: int) -> None:
    found = nearest_grids(native, count)
    assert len(found) == len(set(found)) == min(count, len(set(native)))
    assert set(found) <= set(native)
    assert apart(native, nearest_grids(native, count + 1)) <= apart(native, found)


def apart(native: list[tuple[int, int]], grids: list[tuple[int, int]]) -> float:
    """Sum of the distances to the nearest grid: of shape, and half of that of area."""

    def distance(one: tuple[int, int], other: tuple[int, int]) -> float:
        (r, c), (rows, columns) = np.log(one), np.log(other)
        return float(abs((r - c) - (rows - columns)) + abs((r + c) - (rows + columns)) / 2)

    return sum(min(distance(one, grid) for grid in grids) for one in native) - 1e-9


def test_an_image_like_most_comes_first() -> None:
    assert nearest_grids([(4, 4)] * 5 + [(4, 5)] + [(20, 4)], 1) == [(4, 4)]
    assert nearest_grids([(4, 4)] * 5 + [(4, 5)] + [(20, 4)], 2) == [(4, 4), (20, 4)]


def test_a_trace_runs_the_graph_of_the_images_grid(tmp_path: Path) -> None:
    package = fixed(saved(tmp_path, "qwen3_vl"), tmp_path / "fixed", grids=GRIDS)
    tracer = PackageTracer(package.directory)
    wide, square = (np.asarray(picture(*size)) for size in ((20, 60), (48, 48)))
    for image in (wide, square):
        question = tracer.resolved(Question("What is it?", (image,), encoder="main"))
        seen = package._vision.see(image, compress=False)
        traced = tracer.trace(question)[trace_points.STITCHING]
        np.testing.assert_allclose(
            traced, package._vision.encode([seen], "main").features[0], atol=GRAPH_FLOAT32, rtol=0
        )
    question = tracer.resolved(Question("What is it?", (wide, square), encoder="main"))
    with pytest.raises(HvlcError, match=r"bisect\.grids"):
        tracer.trace(question)
