"""Each of the seven faults shows in the numbers of the shipped checkpoint, also where every answer survives it."""

from pathlib import Path

import pytest

from hvlc.evaluation.documents import DocumentsTask
from hvlc.results import Evaluation, Fidelity
from hvlc.workflows.evaluate.evaluate import ReferenceModel, Setting, evaluate_directory
from tests.helpers.faults import FAULTS, planted

BASE = Setting("base", True)
TASK = DocumentsTask(12)


@pytest.fixture(scope="module")
def float32(packages: dict[str, Path]) -> list[Evaluation]:
    return evaluate_directory(packages["float32"], TASK, [BASE])


def fidelity(package: Path, reference: Path, expected: list[Evaluation]) -> Fidelity:
    (found,) = evaluate_directory(package, TASK, [BASE], against=ReferenceModel(reference, expected))
    assert found.fidelity
    return found.fidelity


@pytest.fixture(scope="module")
def clean(packages: dict[str, Path], float32: list[Evaluation]) -> dict[str, Fidelity]:
    return {recipe: fidelity(package, packages["float32"], float32) for recipe, package in packages.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_the_distributions_show_the_fault(
    packages: dict[str, Path], float32: list[Evaluation], clean: dict[str, Fidelity], tmp_path: Path, name: str
) -> None:
    recipe = "float32" if "float32" in FAULTS[name].recipes else "w4a16"
    damaged = fidelity(planted(name, packages[recipe], tmp_path / "damaged"), packages["float32"], float32)
    assert damaged.kl.low > max(1e-5, 2 * clean[recipe].kl.high)


def test_the_same_package_shows_none(clean: dict[str, Fidelity]) -> None:
    assert (clean["float32"].kl.high, clean["float32"].top1.value) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["swapped decoder layers", "dropped tile"])
def test_the_answers_show_a_large_fault(
    packages: dict[str, Path], float32: list[Evaluation], tmp_path: Path, name: str
) -> None:
    damaged = planted(name, packages["float32"], tmp_path / "damaged")
    against = ReferenceModel(packages["float32"], float32, fidelity=False)
    (found,) = evaluate_directory(damaged, TASK, [BASE], against=against)
    assert found.agreement
    assert found.agreement.p_value < 0.05
    assert found.summary.exact_match.high < float32[0].summary.exact_match.value
