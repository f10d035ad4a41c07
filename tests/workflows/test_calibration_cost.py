"""What plans say of a calibration follows from shapes and samples, and holds."""

from pathlib import Path

import pytest

from hvlc.calibration.sources import Model, open_set
from hvlc.export import export_bundle
from hvlc.recipes.loading import load_recipe
from hvlc.recipes.resolve import resolve
from hvlc.solvers.registry import CALIBRATED, SOLVERS
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.calibrate.cost import CalibrationCost, calibration_cost, product_speed, search_cost
from tests.export.tiny_families import save_text
from tests.helpers.calibration import write_recipe

MB = 1e6


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose head is by far its largest matrix, and whose second is the product behind the activation."""
    sizes = {"hidden_size": 128, "intermediate_size": 1024, "vocab_size": 20_000, "num_hidden_layers": 1}
    return save_text(tmp_path_factory.mktemp("cost") / "llama", "llama", **sizes)


def cost(checkpoint: Path, recipe: str, samples: int = 4, source: str = "text") -> CalibrationCost:
    bundle = export_bundle(Checkpoint.open(checkpoint))
    plan = resolve(load_recipe(recipe), bundle, load_target("cpu"), {*SOLVERS, *CALIBRATED})
    inputs = open_set(source, Model(checkpoint, bundle.facts), samples=samples, tokens=64)
    return calibration_cost(bundle, plan, inputs, CALIBRATED)


def test_memory_holds_the_largest_gram_matrix_and_no_run_of_the_head(wide: Path, tmp_path: Path) -> None:
    found = cost(wide, write_recipe(tmp_path / "gptq.yaml"))
    assert found.memory_bytes > 5 * 1024**2 * 4
    assert found.memory_bytes < 60 * MB  # logits of all positions alone would be 4 * 64 * 20000 * 4 = 20 MB, five times
    assert found.solved == 128 * (128 * 2 + 64 * 2 + 3 * 1024 + 20_000)


def test_work_grows_with_samples(wide: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "gptq.yaml")
    few, many = cost(wide, recipe, 4), cost(wide, recipe, 40)
    products = 128 * (128 * 2 + 64 * 2 + 3 * 1024)
    grams = 4 * 128**2 + 1024**2  # what attention, its output, the gate and the head are given; what the MLP puts out
    assert many.operations - few.operations == pytest.approx(64 * 36 * (4 * products + grams))


def test_images_count(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "gptq.yaml")
    few, many = (cost(tiny_checkpoint, recipe, n, "documents") for n in (2, 20))
    assert many.operations > 4 * few.operations
    assert many.memory_bytes > few.memory_bytes


def test_a_decoder_that_is_not_calibrated_does_not_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "gptq.yaml"
    write_recipe(recipe)
    both = cost(tiny_checkpoint, str(recipe), 4, "documents")
    recipe.write_text(recipe.read_text().replace('"solver": "gptq"', '"solver": "rtn"', 1))
    encoders = cost(tiny_checkpoint, str(recipe), 4, "documents")
    assert 0 < encoders.operations < both.operations


def test_a_search_counts_its_walk_and_what_it_rounds(wide: Path) -> None:
    bundle = export_bundle(Checkpoint.open(wide))
    inputs = open_set("text", Model(wide, bundle.facts), samples=4, tokens=64)
    group = "model.layers.0.self_attn.q_proj"
    assert group in {str(node.name) for node in bundle.components["model"].graph}
    rows, searched = 128 + 2 * 64, 20 * 3 * 32  # of q, k and v; exponents, matrices, rows of each
    found, walked = (search_cost(bundle, {("model", group): n}, inputs) for n in (searched, 0))
    assert walked.operations == 4 * 64 * 128**2  # the Gram matrix: products behind the last stop do not run
    assert found.operations - walked.operations == 4 * 128**2 * (searched + rows)
    assert found.memory_bytes == 4 * 128 * (4 * rows + 5 * 128) + 3 * 4 * 4 * 64 * 128
    assert search_cost(bundle, {}, inputs) == CalibrationCost(0, 0.0, 0)


def test_this_machine_multiplies() -> None:
    assert 1e8 < product_speed() < 1e14
