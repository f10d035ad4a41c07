"""Images of every size become pieces and visual tokens, by every rule, in bounded memory and time."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvlc.graphs.sessions import open_session
from hvlc.imaging.rule import OVERVIEW, ImageRule
from hvlc.workflows.calibrate.sizes import _sizing
from tests.helpers.sessions import session
from tests.imaging.rules import IMAGE, RELEASED, TINY

RULES: dict[str, ImageRule] = {**RELEASED, **{f"tiny {name}": rule for name, rule in TINY.items()}}
MOST = 8192
#: Sides around those of cells and tiles, primes, powers of two.
EDGES = (1, 2, 3, 7, 16, 17, 27, 28, 32, 33, 61, 255, 256, 257, 449, 512, 1009, 1024, 2049, 4093, 4096, 8191, 8192)
FEW = (1, 2, 31, 257, 1024, 8192)
#: Scales, and bounds of visual tokens; None: the rule's own.
REQUESTS: tuple[tuple[float, int | None], ...] = ((1.0, None), (0.37, None), (1.0, 1), (1e-6, 300), (1.0, 1 << 24))
EXTREMES = ((1, 1), (1, 2), (2, 1), (1, 8192), (8192, 1), (10_000, 50), (50, 10_000), (13, 511), (97, 3))

Front = Callable[..., Mapping[str, np.ndarray]]


def running(opened: Any) -> Front:
    """A function of inputs by name, of which it takes those that its graph reads."""
    names, read = [o.name for o in opened.get_outputs()], {i.name for i in opened.get_inputs()}

    def run(**feeds: np.ndarray) -> Mapping[str, np.ndarray]:
        feeds = {name: value for name, value in feeds.items() if name in read}
        return dict(zip(names, opened.run(None, feeds), strict=True))

    return run


def limits(rule: ImageRule, scale: float, bound: int | None) -> dict[str, np.ndarray]:
    limit = rule.most_visual_tokens if bound is None else bound
    return {"scale": np.array([scale], np.float32), "max_visual_tokens": np.array([limit], np.int64)}


@cache
def sizing(name: str) -> Front:
    """The part of a front graph that makes ids and the grid, without pixels."""
    return running(open_session(_sizing(RULES[name].front())))


@cache
def front(name: str) -> Front:
    return running(session(RULES[name].front(), "optimized"))


def problems(rule: ImageRule, found: Mapping[str, np.ndarray], bound: int | None) -> list[str]:
    """What is wrong with ids and a grid."""
    tokens, (rows, columns) = int((found["image_ids"] == IMAGE).sum()), found["grid"].tolist()
    smallest = rule.tokens_per_piece or 1  # a bound below it cannot be obeyed
    limit = rule.most_visual_tokens if bound is None else bound
    wrong = [f"a grid of {rows} x {columns}"] if min(rows, columns) < 1 else []
    wrong += ["no visual token"] if tokens < 1 else []
    wrong += [f"{tokens} visual tokens of {limit}"] if tokens > max(limit, smallest, _least_grid(rule)) else []
    if rule.kind == "raster_tiles" or rule.piece_shape is None:
        made = rows * columns
    else:
        made = rule.pieces(rows, columns) * (rule.tokens_per_piece or 0)
    if made != tokens and not (rule.has_overview and tokens > made):
        wrong.append(f"{made} features for {tokens} visual tokens")
    return wrong


def _least_grid(rule: ImageRule) -> int:
    """Visual tokens of the smallest of fixed grids; 0 of other rules."""
    return min((height * width // rule.pixels_per_token for height, width in rule.grids), default=0)


def check(name: str, sides: tuple[int, int], scale: float, bound: int | None) -> None:
    found = sizing(name)(size=np.array(sides, np.int64), **limits(RULES[name], scale, bound))
    assert not problems(RULES[name], found, bound), (name, sides, scale, bound)


@pytest.mark.parametrize("name", RULES)
def test_every_size_has_a_grid_and_as_many_tokens_as_features(name: str) -> None:
    sizes = {*product(EDGES, FEW), *product(FEW, EDGES), *EXTREMES}
    for sides, request in product(sorted(sizes), REQUESTS):
        check(name, sides, *request)


@given(
    st.sampled_from(sorted(RULES)),
    st.integers(1, 10_000),
    st.integers(1, 10_000),
    st.one_of(st.floats(2**-20, 1, width=32), st.just(1.0)),
    st.one_of(st.none(), st.integers(1, 5000)),
)
@settings(max_examples=500)
def test_sizes_scales_and_bounds_of_any_kind(name: str, h: int, w: int, scale: float, bound: int | None) -> None:
    check(name, (h, w), scale, bound)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_sizes_all_over_the_square(name: str) -> None:
    sides = [*range(1, 130), *range(130, MOST, 61), MOST]
    random = np.random.default_rng(0)
    sizes = [*product(sides[:60:3], sides), *product(sides, sides[:60:3]), *random.integers(1, MOST + 1, (20_000, 2))]
    for h, w in sizes:
        for request in REQUESTS[:4]:
            check(name, (int(h), int(w)), *request)


def drawn(h: int, w: int) -> np.ndarray:
    """uint8 `[h, w, 3]`: stripes both ways."""
    image = np.zeros((h, w, 3), np.uint8)
    image[::7], image[:, ::5, 0] = 200, 90
    return image


def check_pixels(name: str, h: int, w: int, scale: float = 1.0, bound: int | None = None) -> None:
    """Pieces have their shape and finite values, and the whole graph has the ids that its sizes alone say."""
    rule, request = RULES[name], limits(RULES[name], scale, bound)
    found = front(name)(image=drawn(h, w), **request)
    expected = sizing(name)(size=np.array([h, w], np.int64), **request)
    for output in ("image_ids", "grid"):
        np.testing.assert_array_equal(found[output], expected[output])
    pieces, (rows, columns) = found["pixel_values"], found["grid"].tolist()
    assert len(pieces) == rule.pieces(rows, columns)
    assert pieces.shape[2:] == (rule.piece_shape or pieces.shape[2:])
    if rule.piece_shape is None:
        assert pieces.shape[2] * pieces.shape[3] == rows * columns * rule.pixels_per_token
    parts = [pieces, *([found[OVERVIEW]] if rule.has_overview else [])]
    assert all(np.isfinite(part).all() for part in parts)
    assert sum(len(part) for part in parts) >= 1
    assert 0 < found["used_scale"][0] <= 1


@pytest.mark.parametrize("sides", EXTREMES, ids=str)
@pytest.mark.parametrize("name", [name for name in RULES if name.startswith("tiny")])
def test_pixels_of_extreme_images(name: str, sides: tuple[int, int]) -> None:
    check_pixels(name, *sides)


@pytest.mark.parametrize("name", RELEASED)
def test_pixels_of_a_long_image_by_released_sizes(name: str) -> None:
    check_pixels(name, 10_000, 50, bound=600)


@given(
    st.sampled_from([name for name in RULES if name.startswith("tiny")]),
    st.integers(1, 300),
    st.integers(1, 300),
    st.floats(2**-20, 1, width=32),
    st.one_of(st.none(), st.integers(1, 200)),
)
@example("tiny lfm2_vl", 300, 1, 1.0, 1)
@settings(max_examples=80)
def test_pixels_of_any_image(name: str, h: int, w: int, scale: float, bound: int | None) -> None:
    check_pixels(name, h, w, scale, bound)


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ({"image_ids": np.full(3, IMAGE), "grid": np.array([1, 2])}, "2 features for 3 visual tokens"),
        ({"image_ids": np.full(2, 0), "grid": np.array([0, 2])}, "a grid of 0 x 2"),
        ({"image_ids": np.full(5000, IMAGE), "grid": np.array([50, 100])}, "5000 visual tokens of 4096"),
    ],
)
def test_a_wrong_answer_is_found(found: dict[str, np.ndarray], complaint: str) -> None:
    assert complaint in problems(RULES["hypervl"], found, None)


#: Bytes of memory for a pixel, of the largest images: the image, its pixels in float32 and a copy of them.
_PIXEL_BYTES, _PIECES_BYTES = 32, 400 << 20
_IN_A_PROCESS = """
import resource, sys
import numpy as np
from tests.imaging.test_sizes import check_pixels
from tests.imaging.rules import RELEASED
name, side, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
check_pixels(name, 64, 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
check_pixels(name, side, side, bound=2000)
taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
assert taken < most, f"{taken / 1e6:.0f} MB of {most / 1e6:.0f}"
"""


@pytest.mark.slow
@pytest.mark.parametrize("side", [4096, 8192])
@pytest.mark.parametrize("name", RELEASED)
def test_the_largest_images_take_bounded_memory_and_time(name: str, side: int) -> None:
    most = _PIXEL_BYTES * side * side + _PIECES_BYTES
    command = [sys.executable, "-c", _IN_A_PROCESS, name, str(side), str(most)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_front_graph_is_made_of_bytes_until_its_rule_asks_for_pixels() -> None:
    """A cast of all pixels before they are moved would double the memory of a large image."""
    casts = [node for node in RELEASED["gemma3"].front().graph if node.op_type == "Transpose"]
    assert casts[0].inputs[0] is not None
    assert casts[0].inputs[0].dtype == ir.DataType.UINT8
