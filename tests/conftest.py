"""Settings of every test: offline, silent, the same on every run."""

import os

import pytest
from hypothesis import settings

# Before any test imports a library that reads them.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("hvlc", deadline=None, derandomize=True, database=None)
settings.load_profile("hvlc")


def refuse_regeneration(environment: os._Environ[str] | dict[str, str]) -> None:
    """Rewriting goldens is for a person who then reads the difference."""
    if environment.get("HVLC_REGEN") == "1" and environment.get("CI"):
        raise pytest.UsageError("HVLC_REGEN=1 rewrites the expected results; unset it where CI is set")


def pytest_configure() -> None:
    refuse_regeneration(os.environ)
