"""Packages of the shipped checkpoint, built once."""

from pathlib import Path

import pytest

from hvlc.pipeline.build import build
from hvlc.pipeline.demo import RECIPES
from hvlc.pipeline.request import BuildRequest
from hvlc.zoo import nano_checkpoint


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages by recipe."""
    directory = tmp_path_factory.mktemp("nano")
    found = {}
    for recipe, samples in RECIPES.items():
        request = BuildRequest(nano_checkpoint(), "cpu", recipe, directory / recipe, samples=samples)
        found[recipe] = build(request).output
    return found
