"""Packages of the shipped checkpoint, built once."""

from pathlib import Path

import pytest

from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from hvlc.workflows.demo import RECIPES
from hvlc.zoo import nano_checkpoint
from tests.helpers.sharing import once


def _built(directory: Path) -> dict[str, Path]:
    found = {}
    for recipe, samples in RECIPES.items():
        request = open_request(nano_checkpoint(), "cpu", recipe, directory / recipe, samples=samples)
        found[recipe] = build(request).output
    return found


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages by recipe; read only."""
    return once(tmp_path_factory, "nano", _built)
