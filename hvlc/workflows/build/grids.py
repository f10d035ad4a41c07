"""Grids that images are resized to, where a compiler fixes the vision encoders of a model that sees any shape.

Those that a build names; else those that lie nearest to the images of its calibration.
"""

from collections.abc import Sequence

import numpy as np

from hvlc.errors import UserError
from hvlc.graphs.facts import Facts, ImageFacts
from hvlc.imaging.native_grid import NativeGrid
from hvlc.recipes.schema import Recipe
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.request import BuildRequest

#: Grids that are chosen where none are named, and the most visual tokens of each: attention grows with their square.
_COUNT, _MOST_TOKENS = 3, 1024
_LOOKED_AT = 32  # images of the calibration
_SHARE = 4  # part of the context that an image may fill

#: Heights and widths in pixels.
Grids = tuple[tuple[int, int], ...]


def grids_of(request: BuildRequest, checkpoint: Checkpoint, recipe: Recipe, facts: Facts, room: int | None) -> Grids:
    """The grids of a build; none where encoders take any shape, or their pieces have one.

    Args:
        request: of the build.
        checkpoint: that is built.
        recipe: has a calibration set.
        facts: of the exported bundle.
        room: positions of a sequence, where the shapes of vision encoders are fixed. None: they are not.

    Raises:
        UserError: grids are named and nothing is fixed, or have more visual tokens than a sequence takes; or none are
            named, and the calibration set has no images.
    """
    if request.grids and (facts.image is None or room is None):
        cause = "the vision encoders of a package for this target take any shape"
        cause = "the model sees no images" if facts.image is None else cause
        raise UserError("build.grids", cause, "leave --grids out, or choose a target of fixed shapes")
    if room is None or facts.image is None or not isinstance(facts.image.rule, NativeGrid):
        return request.grids
    _check_tokens(request.grids, facts.image.rule.cell_size, min(facts.image.max_visual_tokens, room - 1))
    if request.grids:
        return request.grids
    most = min(facts.image.max_visual_tokens, _MOST_TOKENS, facts.speaks.context_length // _SHARE)
    cell = facts.image.rule.cell_size
    native = _native(facts.image, _calibration_sizes(request, checkpoint, recipe, facts), most)
    return tuple((rows * cell, columns * cell) for rows, columns in nearest_grids(native, _COUNT))


def _check_tokens(grids: Grids, cell: int, most: int) -> None:
    """Refuse grids of more visual tokens than an image may have.

    Raises:
        UserError: there are some.
    """
    counted = {f"{height}x{width}": height // cell * (width // cell) for height, width in grids}
    over = [f"{name} has {tokens}" for name, tokens in counted.items() if tokens > most]
    if over:
        cause = f"{', '.join(over)} visual tokens, and an image may have {most}"
        raise UserError("build.grids", cause, "name smaller grids, or ask for more with --context")


def _calibration_sizes(
    request: BuildRequest, checkpoint: Checkpoint, recipe: Recipe, facts: Facts
) -> list[tuple[int, int]]:
    """Heights and widths of images of the calibration set.

    Raises:
        UserError: it has none, or cannot be read.
    """
    from hvlc.calibration.sources import Model, open_set
    from hvlc.workflows.calibrate.calibrate import default_source

    source = request.calibration or recipe.calibration.source or default_source(facts)
    found = open_set(source, Model(checkpoint.directory, facts), samples=_LOOKED_AT, shorten=True)
    sizes = [(sample.picture.height, sample.picture.width) for sample in found.images]
    if not sizes:
        cause = f"the target takes images of fixed shapes, and {source} has no images to choose them by"
        raise UserError("build.grids", cause, "name some, for instance --grids 448x448,448x896")
    return sizes


def _native(image: ImageFacts, sizes: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Rows and columns of visual tokens that images have by themselves, within a bound."""
    from hvlc.workflows.calibrate.sizes import sizing_of

    grid_of = sizing_of(image.rule)
    return [grid_of(height, width, most) for height, width in sizes]


def nearest_grids(native: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Some of the grids, such that each is near to one of them: by shape first, then by area.

    One after another, the one is taken that lessens the sum of distances most; none that lessens it by nothing.

    Args:
        native: rows and columns, at least one.
        count: how many at most.
    """
    choices = sorted(set(native))
    logs = np.log(np.array(native, np.float64)), np.log(np.array(choices, np.float64))
    (rows, columns), (r, c) = (part.T for part in logs)
    shapes = np.abs((rows - columns)[:, None] - (r - c))
    distances = shapes + np.abs((rows + columns)[:, None] - (r + c)) / 2
    taken: list[int] = []
    left = np.full(len(native), np.inf)
    for _ in range(count):
        sums = np.minimum(left[:, None], distances).sum(0)
        best = int(sums.argmin())
        if taken and sums[best] >= left.sum():
            break
        taken.append(best)
        left = np.minimum(left, distances[:, best])
    return [choices[index] for index in sorted(taken)]
