"""What a build made."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvlc.bundle import JournalEntry
from hvlc.manifest import Manifest
from hvlc.plan import Plan


@dataclass(frozen=True)
class BuildResult:
    """What was built.

    Attributes:
        output: the package.
        manifest: its manifest.
        plan: every weight's fate.
        journal: every step.
        seconds: wall seconds of each stage.
    """

    output: Path
    manifest: Manifest
    plan: Plan
    journal: tuple[JournalEntry, ...]
    seconds: Mapping[str, float]
