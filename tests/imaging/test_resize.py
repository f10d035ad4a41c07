"""Resizing in the graph is Pillow's to the byte, and torch's within a grey level."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from hvlc.errors import UserError
from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.resize import Resampling, resized
from tests.helpers.sessions import OPTIMIZATIONS, session
from tests.helpers.tiny import picture
from tests.helpers.tolerances import TORCH_RESIZE

PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Resize = Callable[[np.ndarray, int, int], np.ndarray]


def resizer(resampling: Resampling, optimization: str = "optimized") -> Resize:
    b = GraphBuilder("resize")
    image = b.input("image", ir.DataType.UINT8, ["h", "w", 3])
    size = b.input("size", ir.DataType.INT64, [2])
    b.output(resized(b, image, size, resampling, "once"), "resized", ir.DataType.UINT8, ["height", "width", 3])
    ready: ort.InferenceSession = session(b.model(), optimization)
    return lambda pixels, height, width: ready.run(None, {"image": pixels, "size": np.array([height, width])})[0]


def noise(height: int, width: int, seed: int, extremes: bool) -> np.ndarray:
    """Random grey levels, or black and white alone, which overshoot and clip."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(levels > 127, 255, 0).astype(np.uint8) if extremes else levels


@pytest.fixture(scope="module", params=PILLOW)
def filter_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def resizers(filter_name: str) -> dict[str, Resize]:
    return {name: resizer(Resampling(filter_name), name) for name in OPTIMIZATIONS}


def assert_pillows(resize: Resize, filter_name: str, image: np.ndarray, height: int, width: int) -> None:
    expected = np.asarray(Image.fromarray(image).resize((width, height), PILLOW[filter_name]))
    np.testing.assert_array_equal(resize(image, height, width), expected)


small = st.one_of(st.integers(1, 12), st.integers(1, 120))


@given(small, small, small, small, st.integers(0, 9), st.booleans(), st.sampled_from(list(OPTIMIZATIONS)))
@example(1, 1, 1, 1, 0, False, "as written")
@example(1, 1, 300, 200, 0, False, "as written")
@example(40, 30, 40, 30, 0, True, "optimized")  # nothing to do
@example(40, 30, 40, 70, 0, True, "optimized")  # the width alone
@example(40, 30, 17, 30, 0, True, "optimized")  # the height alone
@example(40, 30, 20, 20, 0, True, "optimized")  # twice as many pixels: the width first
@example(40, 30, 19, 20, 0, True, "optimized")  # one more: the height first
@example(4096, 1, 1, 3, 0, True, "optimized")
@example(1, 4096, 2, 1, 0, True, "optimized")
@example(2, 4096, 5, 4095, 0, True, "optimized")
@example(4095, 3, 4096, 2, 0, True, "optimized")
@settings(max_examples=60)
def test_bytes_are_those_of_pillow(
    resizers, filter_name: str, h: int, w: int, height: int, width: int, seed: int, extremes: bool, optimization: str
) -> None:
    assert_pillows(resizers[optimization], filter_name, noise(h, w, seed, extremes), height, width)


def test_weights_are_those_of_pillow_for_every_pair_of_small_sizes(resizers, filter_name: str) -> None:
    """A column of random levels shows a wrong last bit of a weight sooner or later."""
    column = noise(150, 16, 1, False)
    for source in range(1, 150, 7):
        for target in range(1, 150, 5):
            assert_pillows(resizers["as written"], filter_name, column[:source], target, 16)


sides = st.one_of(st.integers(1, 4096), st.sampled_from([1, 2, 448, 512, 1023, 1024, 2048, 4095, 4096]))


@pytest.mark.slow
@given(sides, sides, sides, sides, st.integers(0, 9), st.booleans())
@example(4096, 4096, 4096, 4096, 0, False)
@example(4096, 4096, 1, 1, 0, True)
@example(4096, 4096, 512, 512, 0, True)
@example(1, 1, 4096, 4096, 0, True)
@settings(max_examples=60)
def test_bytes_are_those_of_pillow_for_every_size(
    resizers, filter_name: str, h: int, w: int, height: int, width: int, seed: int, extremes: bool
) -> None:
    assert_pillows(resizers["optimized"], filter_name, noise(h, w, seed, extremes), height, width)


@pytest.mark.parametrize(
    ("filter_name", "antialias"),
    [("bilinear", True), ("bicubic", True), ("lanczos", True), ("bilinear", False), ("bicubic", False)],
)
def test_levels_are_those_of_torch(filter_name: str, antialias: bool) -> None:
    """What torchvision's processors compute: the same kernels, with weights of 16 bits."""
    resize = resizer(Resampling(filter_name, antialias, width_first=True))
    random, differences = np.random.default_rng(0), []
    for seed in range(60):
        h, w, height, width = (2 ** random.uniform(0, 7.5, 4)).astype(int).tolist()
        image = np.array(picture(h, w, seed)) if seed % 2 else noise(h, w, seed, False)
        planes = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(planes, (height, width), mode=filter_name, antialias=antialias)
        levels = expected[0].permute(1, 2, 0).numpy().astype(int)
        differences.append(np.abs(resize(image, height, width) - levels).ravel())
    together = np.concatenate(differences)
    assert together.max() <= 2
    assert (together > 1).mean() <= TORCH_RESIZE


@pytest.mark.skipif("AVX" not in torch.backends.cpu.get_cpu_capability(), reason="torch computes in float32 then")
@given(small, small, small, small, st.integers(0, 9), st.booleans(), st.sampled_from(["bilinear", "bicubic"]))
@example(77, 33, 64, 96, 0, False, "bilinear")
@example(40, 30, 40, 70, 0, True, "bilinear")  # the width alone
@example(40, 30, 17, 30, 0, True, "bicubic")  # the height alone
@example(1, 1, 100, 100, 0, True, "bicubic")
@example(4096, 2, 1, 3, 0, True, "bilinear")
@settings(max_examples=60, deadline=None)
def test_bytes_are_those_of_torch(
    short: dict[str, Resize], h: int, w: int, height: int, width: int, seed: int, extremes: bool, name: str
) -> None:
    image = noise(h, w, seed, extremes)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(planes, (height, width), mode=name, antialias=True)
    np.testing.assert_array_equal(short[name](image, height, width), expected[0].permute(1, 2, 0).numpy())


@pytest.fixture(scope="module")
def short() -> dict[str, Resize]:
    return {name: resizer(Resampling(name, width_first=True, short_weights=True)) for name in ("bilinear", "bicubic")}


def test_the_bits_of_weights_matter() -> None:
    """Otherwise torch and Pillow could not be told apart above."""
    image = noise(77, 33, 0, False)
    both = (
        resizer(Resampling("bilinear", width_first=True, short_weights=bits))(image, 64, 96) for bits in (True, False)
    )
    assert not np.array_equal(*both)


def test_the_order_matters() -> None:
    """Otherwise the two orders could not be told apart above."""
    image = noise(60, 30, 0, True)
    pillows, torchs = (resizer(Resampling("lanczos", width_first=first))(image, 7, 40) for first in (False, True))
    assert np.abs(pillows.astype(int) - torchs).max() > 2


@pytest.mark.parametrize(("filter_name", "antialias"), [("nearest", True), ("box", True), ("lanczos", False)])
def test_what_no_graph_is_made_for_is_refused(filter_name: str, antialias: bool) -> None:
    with pytest.raises(UserError) as problem:
        Resampling(filter_name, antialias)
    assert problem.value.code == "checkpoint.processor"
    assert filter_name in problem.value.cause
