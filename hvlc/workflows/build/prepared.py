"""Records that the functions of `hvlc.workflows.build.prepare` hand to each other, the calibration and the writer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hvlc.graphs.bundle import Bundle
from hvlc.graphs.plan import Plan
from hvlc.package.text import PackageText
from hvlc.passes.order import PassList
from hvlc.recipes.schema import Recipe
from hvlc.results.build import Estimate
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.request import Document

if TYPE_CHECKING:
    from hvlc.calibration.factors import ScaledGroup
    from hvlc.calibration.samples import CalibrationSet


@dataclass(frozen=True)
class BuildInputs:
    """Inputs that a build reads.

    Attributes:
        checkpoint: the input.
        recipe: a format for every weight; those that a budget leaves open are chosen.
        documents: texts of the recipe and the target.
        measured: whether sensitivities were measured for a budget, on the calibration set.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    documents: tuple[Document, Document]
    measured: bool = False


@dataclass(frozen=True)
class PlannedModel:
    """A model in float, and what is to become of it.

    Attributes:
        bundle: its graphs; lowering changes them in place.
        passes: that made them of the exported ones.
        plan: every weight's fate.
        scaled: linears that get factors, which the calibration finds.
    """

    bundle: Bundle
    passes: PassList
    plan: Plan
    scaled: "tuple[ScaledGroup, ...]"


@dataclass(frozen=True)
class PreparedBuild:
    """A build that is ready to be calibrated and written: every decision is made.

    Attributes:
        opened: what it reads.
        planned: its model, lowered to what the target runs.
        inputs: what the plan is calibrated on; None: nothing in it needs data.
        text: directory of the tokenizer while the build goes on.
        package_text: what of it the package takes.
        estimate: what writing takes.
    """

    opened: BuildInputs
    planned: PlannedModel
    inputs: "CalibrationSet | None"
    text: Path
    package_text: PackageText
    estimate: Estimate

    @property
    def bundle(self) -> Bundle:
        """The finished graphs, their weights lazy."""
        return self.planned.bundle

    @property
    def plan(self) -> Plan:
        """Every weight's fate."""
        return self.planned.plan
