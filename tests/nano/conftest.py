"""Packages of the shipped checkpoint, built once."""

from pathlib import Path

import pytest

from hvlc.pipeline.build import BuildRequest, build
from hvlc.zoo import nano_checkpoint


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages by recipe."""
    directory = tmp_path_factory.mktemp("nano")
    found = {}
    for recipe in ("float32", "w4a16"):
        found[recipe] = build(BuildRequest(nano_checkpoint(), "cpu", recipe, directory / recipe)).output
    return found
