"""Open packages for tracing, in the basis that their recipes put them in."""

from pathlib import Path

from hvlc.graphs.bundle import Role
from hvlc.graphs.plan import CacheType
from hvlc.manifest.lock import LOCK, Lock
from hvlc.opening.package import open_package
from hvlc.recipes.loading import parse_recipe
from hvlc.recipes.schema import Recipe
from hvlc.tracing.package import PackageTracer
from hvlc.tracing.parts import Precision
from hvlc.weights.rotation import Rotation


def open_tracer(directory: Path, threads: int = 0) -> PackageTracer:
    """A package's tracer, whose values have the checkpoint's basis whatever the recipe rotates.

    Args:
        directory: a language or vision-language package.
        threads: of onnxruntime; 0 lets it choose.

    Raises:
        UserError: it is none, or its graphs cannot be cut.
    """
    hidden = open_package(directory).manifest.hidden_size
    recipe = _recipe_of(directory)
    prepare = recipe.prepare
    rotation = Rotation(hidden, prepare.rotate.seed) if prepare.rotate else None
    prepared = [name for name, setting in prepare if setting]
    return PackageTracer(directory, rotation, ", ".join(prepared), _precisions(recipe), threads)


def _precisions(recipe: Recipe) -> dict[Role, Precision]:
    """Precision of an NPU for a recipe's components, by role: floats become numbers of 16 bits there."""
    activations = 8 if recipe.activations == "int8" else 16
    cache = 16 if recipe.kv_cache is CacheType.FLOAT else 8
    found = {}
    for role in (Role.DECODER, Role.VISION_ENCODER):
        bits = [rule.quantize.bits for rule in recipe.rules if rule.role in (role, None) and rule.quantize]
        weights = min(bits, default=Precision().weights)
        found[role] = Precision(weights, activations, cache if role is Role.DECODER else Precision().cache)
    return found


def _recipe_of(directory: Path) -> Recipe:
    """The recipe that a package was built with.

    Raises:
        UserError: its lock is missing or damaged.
    """
    return parse_recipe(
        Lock.load(directory).recipe, f"the recipe in {directory / LOCK}", "package.lock", "build the package again"
    )
