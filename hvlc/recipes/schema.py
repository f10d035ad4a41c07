"""Recipes: strict, versioned YAML that says which weights become what."""

import fnmatch
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field

from hvlc.bundle import Role
from hvlc.errors import UserError, nearest
from hvlc.plan import ScaleType, WeightFormat
from hvlc.spec import StrictModel, read_yaml


class WeightSpec(StrictModel):
    """How a rule's weights are stored.

    Attributes:
        bits: width of an element.
        block_size: input channels that share one scale.
        symmetric: no zero points.
        scale_type: stored type of the scales.
        solver: who chooses the levels.
    """

    bits: Literal[4, 8]
    block_size: int = Field(ge=16)
    symmetric: bool = True
    scale_type: ScaleType = ScaleType.FLOAT16
    solver: str = "rtn"

    def format(self, *, negative_scales: bool) -> WeightFormat:
        """The format as a plan carries it."""
        return WeightFormat(self.bits, self.block_size, self.symmetric, self.scale_type, negative_scales)


class Rule(StrictModel):
    """The first rule that matches a weight decides it.

    Attributes:
        role: components it speaks of.
        weights: glob over the weights' dotted names.
        quantize: the format, or None to keep float.
        reason: why these weights stay, for rules that keep.
        optional: whether matching nothing is fine.
    """

    role: Role
    weights: str = "*"
    quantize: WeightSpec | None = None
    reason: str = ""
    optional: bool = False

    def matches(self, role: Role, weight: str) -> bool:
        """Whether the rule speaks of this weight."""
        return role is self.role and fnmatch.fnmatchcase(weight, self.weights)


class Recipe(StrictModel):
    """A quantization recipe.

    Attributes:
        schema_version: of the file.
        name: as given on the command line.
        description: one line.
        activations: "float" computes in float (the A16 of W4A16); "int8" lets the runtime quantize them.
        rules: in order; a weight that none matches stays float.
    """

    schema_version: int = Field(ge=1, le=1)
    name: str
    description: str
    activations: Literal["float", "int8"] = "float"
    rules: tuple[Rule, ...] = ()


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with hvlc, by name."""
    directory = Path(str(resources.files("hvlc") / "recipes"))
    return {path.stem: path for path in sorted(directory.glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe, or a user's own file.

    Raises:
        UserError: unknown name.
    """
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    raise UserError("recipe.unknown", f"no recipe {name!r}", nearest(name, shipped))


def load_recipe(name: str) -> Recipe:
    """A recipe by name or path.

    Raises:
        UserError: unknown name, or an invalid file.
    """
    path = recipe_path(name)
    return Recipe.parse(read_yaml(path), path.name)
