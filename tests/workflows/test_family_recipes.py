"""Every shipped recipe builds decoders that are far from Llama's shape, and its packages speak like the checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvlc.errors import TargetError
from hvlc.evaluation.distributions import kl_divergence
from hvlc.recipes.loading import shipped_recipes
from hvlc.runtime.generation import open_model
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import save_text
from tests.helpers.fixed_shapes import write_target
from tests.helpers.tiny import picture
from tests.helpers.tiny_naflex import save_naflex

CONTEXT = 128
#: Families, and what differs from their tiny checkpoints: more layers than a period, a window shorter than the cache.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3_text": {"num_hidden_layers": 7, "layer_types": None, "sliding_window": 24, "max_position_embeddings": 256},
    "lfm2": {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention", "conv", "conv"],
        "max_position_embeddings": 256,
    },
    "lfm2_vl": {},
}
#: Families whose decoders have states, which no decoder of fixed shapes has.
STATES = ("lfm2", "lfm2_vl")
#: What a model that sees is shown with each prompt: an image that is cut into tiles, and a small one.
SHOWN = {"lfm2_vl": ([picture(60, 100)], [picture(20, 30)])}
PROMPTS = ("Hi", "abcdefg " * 10)  # the second leaves the window
ASKED: dict[str, Any] = {"encoder": "auto", "vrc": False}
#: Divergence from the float package as a share of that of other random weights; measured 0.1 to 0.2 with 4-bit weights.
NEAR = 0.3
STATIC = [*sorted(name for name in shipped_recipes() if name.startswith("npu")), "w4a16-rtn", "w4a16-static"]
DATA_FREE = {"float32", "genai-default", "w4a16-float-vision", "w4a16-rtn"}

Speaks = Callable[[Path], np.ndarray]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("recipes") / request.param, request.param)


def save(directory: Path, family: str, seed: int = 0) -> Path:
    if family == "lfm2_vl":
        return save_naflex(directory, seed=seed)
    return save_text(directory, family, seed=seed, **FAMILIES[family])


@pytest.fixture(scope="module")
def speaks(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Speaks:
    """Divergence of a package from that of the float weights, float64 `[tokens]`; about 1 for other weights."""
    reference = open_model(built(checkpoint, "cpu", "float32", tmp_path_factory.mktemp("float") / "package"))
    asked = list(zip(PROMPTS, SHOWN.get(checkpoint.name, ([], [])), strict=True))
    answers = [reference.answer(*question, max_new_tokens=6, **ASKED).tokens for question in asked]

    def logits(model: Any) -> np.ndarray:
        return np.concatenate([model.logits(*q, a, **ASKED) for q, a in zip(asked, answers, strict=True)])

    expected = logits(reference)
    other = logits(open_model(other_weights(checkpoint, tmp_path_factory.mktemp("other"), 1)))
    scale = kl_divergence(expected, other).mean()
    return lambda package: kl_divergence(expected, logits(open_model(package))) / scale


def other_weights(checkpoint: Path, root: Path, seed: int) -> Path:
    """The float package of the same architecture with other random weights."""
    other = save(root / checkpoint.name, checkpoint.name, seed)
    return built(other, "cpu", "float32", root / "package")


def built(checkpoint: Path, target: str, recipe: str, output: Path, **options: Any) -> Path:
    samples = {} if recipe in DATA_FREE else {"samples": 4}
    return build(open_request(checkpoint, target, recipe, output, threads=1, **samples, **options)).output


@pytest.mark.parametrize("recipe", sorted(shipped_recipes()))
def test_a_package_of_dynamic_shapes_speaks_like_the_checkpoint(
    checkpoint: Path, speaks: Speaks, tmp_path: Path, recipe: str
) -> None:
    found = speaks(built(checkpoint, "cpu", recipe, tmp_path / "package"))
    assert found.mean() < NEAR
    assert bool(found.max() > 0) is (recipe != "float32")


@pytest.mark.parametrize("recipe", STATIC)
def test_a_package_of_fixed_shapes_speaks_like_the_checkpoint(
    checkpoint: Path, speaks: Speaks, tmp_path: Path, recipe: str
) -> None:
    target = write_target(tmp_path / "npu.toml")
    if checkpoint.name in STATES:
        with pytest.raises(TargetError, match="convolutions would hold the padding"):
            built(checkpoint, target, recipe, tmp_path / "package", context=CONTEXT, aot=False)
        return
    found = speaks(built(checkpoint, target, recipe, tmp_path / "package", context=CONTEXT, aot=False))
    assert 0 < found.mean() < NEAR


def test_the_comparison_sees_other_weights(checkpoint: Path, speaks: Speaks, tmp_path: Path) -> None:
    assert speaks(other_weights(checkpoint, tmp_path, 2)).mean() > 2 * NEAR
