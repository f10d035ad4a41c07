"""Opens packages for tracing, in the basis that their recipes put them in."""

import tempfile
from pathlib import Path

from hvlc.lock import Lock
from hvlc.manifest import Manifest
from hvlc.recipes.schema import Recipe, load_recipe
from hvlc.rotation import Rotation
from hvlc.runtime.tracing import PackageTracer


def open_tracer(directory: Path, threads: int = 0) -> PackageTracer:
    """A package's tracer, whose values have the checkpoint's basis whatever the recipe rotates.

    Args:
        directory: a language or vision-language package.
        threads: of onnxruntime; 0 lets it choose.

    Raises:
        UserError: it is none, or its graphs cannot be cut.
    """
    hidden = Manifest.load(directory).hidden_size
    prepare = _recipe_of(directory).prepare
    rotation = Rotation(hidden, prepare.rotate.seed) if prepare.rotate else None
    prepared = [name for name, setting in prepare if setting]
    return PackageTracer(directory, rotation, ", ".join(prepared), threads)


def _recipe_of(directory: Path) -> Recipe:
    """The recipe that a package was built with.

    Raises:
        UserError: its lock is missing or damaged.
    """
    with tempfile.TemporaryDirectory(prefix="hvlc-") as work:
        file = Path(work) / "recipe.yaml"
        file.write_text(Lock.load(directory).recipe, "utf-8")
        return load_recipe(str(file))
