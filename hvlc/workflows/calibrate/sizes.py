"""Visual sizes of images from their heights and widths alone: the front graph without its pixels."""

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx_ir as ir

from hvlc.graphs.facts import ImageFacts, ImageRule
from hvlc.graphs.sessions import open_session
from hvlc.results.calibration_set import VisualSize


def measure_of(image: ImageFacts) -> Callable[[int, int], VisualSize]:
    """Function to the visual size of an image from its height and width, at full size.

    Args:
        image: facts of the model that sees it.
    """
    run = _runner(image.rule)

    @cache
    def measure(height: int, width: int) -> VisualSize:
        ids, grid = run(height, width, image.max_visual_tokens)
        tokens, pieces = int((ids == image.image_token_id).sum()), image.rule.pieces(*grid.tolist())
        if image.rule.piece_shape is not None and not image.rule.has_overview:
            area = image.rule.piece_shape[0] * image.rule.piece_shape[1] * pieces
        else:
            area = tokens * image.rule.pixels_per_token
        return VisualSize(pieces + image.rule.has_overview, tokens, len(ids), area)

    return measure


def sizing_of(rule: ImageRule) -> Callable[[int, int, int], tuple[int, int]]:
    """Tells the grid, rows and columns, of an image of a height and a width within a bound of visual tokens.

    Args:
        rule: by which images become pieces.
    """
    run = _runner(rule)

    def grid_of(height: int, width: int, limit: int) -> tuple[int, int]:
        rows, columns = run(height, width, limit)[1].tolist()
        return rows, columns

    return grid_of


def _runner(rule: ImageRule) -> Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]:
    """Gives the ids and the grid of a height and a width within a bound of visual tokens, at full size."""
    session = open_session(_sizing(rule.front()))
    given = {value.name for value in session.get_inputs()}

    def run(height: int, width: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
        feeds = {
            "size": np.array([height, width], np.int64),
            "scale": np.ones(1, np.float32),
            "max_visual_tokens": np.array([limit], np.int64),
        }
        ids, grid = session.run(["image_ids", "grid"], {name: feeds[name] for name in given})
        return ids, grid

    return run


def _sizing(front: ir.Model) -> bytes:
    """The part of a front graph that makes ids and grid of a size, int64 `[2]` height and width."""
    graph = front.graph
    image = next(value for value in graph.inputs if value.name == "image")
    size = ir.val("size", ir.DataType.INT64, [2])
    graph.inputs.append(size)
    for node in list(graph):
        if node.op_type == "Shape" and node.inputs[0] is image:
            ir.convenience.replace_all_uses_with(node.outputs[0], size)
    outputs = [value for value in graph.outputs if value.name in ("image_ids", "grid")]
    given = [size, *(value for value in graph.inputs if value.name in ("scale", "max_visual_tokens"))]
    cut = ir.convenience.extract(graph, given, outputs)
    content: bytes = ir.to_proto(ir.Model(cut, ir_version=front.ir_version)).SerializeToString()
    return content
