"""What a network says becomes a scale; what labels say becomes a loss, and a price."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression
from scipy.stats import logistic

from hvlc.graphs.facts import scale_grid
from hvlc.models.hypervl.configuration import HyperVLResolutionConfig
from hvlc.training.vrc import fitting
from hvlc.training.vrc.fitting import Questions, choose_price, fit, interval_loss, predicted, rising, scales_of
from hvlc.training.vrc.labels import Label
from hvlc.training.vrc.network import ResolutionNetwork, start

CONFIG = HyperVLResolutionConfig(proxy_size=64, depth_multiplier=0.25)
SCALES = (0.25, 0.5, 0.75, 1.0)


def made(passes: int, height: int = 100, width: int = 80, question: tuple[int, ...] = (1,)) -> Label:
    """A label of which the largest `passes` scales pass."""
    equivalent = tuple(at >= len(SCALES) - passes for at in range(len(SCALES)))
    return Label(
        id="a",
        height=height,
        width=width,
        question=question,
        scales=SCALES,
        tokens=tuple(round(scale * scale * height * width / 100) for scale in SCALES),
        losses=tuple(0.0 if good else 1.0 for good in equivalent),
        answers=tuple("x" if good else "y" for good in equivalent),
        equivalent=equivalent,
        scores=tuple(float(good) for good in equivalent),
    )


def test_the_grid_has_the_full_size_and_steps_below_it() -> None:
    assert np.allclose(scale_grid(0.1, 0.05), np.arange(2, 21) * 0.05)
    assert scale_grid(0.3, 0.25) == [0.5, 0.75, 1.0]
    assert scale_grid(1.0, 0.05) == [1.0]


@given(
    st.lists(
        st.tuples(st.floats(-2, 2), st.floats(-3, 1), st.floats(-3, 3), st.floats(0.01, 2)), min_size=1, max_size=9
    )
)
def test_the_loss_is_the_likelihood_of_an_interval(rows: list[tuple[float, float, float, float]]) -> None:
    said = torch.tensor([[place, spread] for place, spread, *_ in rows], dtype=torch.float64)
    bounds = torch.tensor([[low, low + more] for *_, low, more in rows], dtype=torch.float64)
    place, spread = said[:, 0].numpy(), said[:, 1].exp().numpy()
    share = logistic.cdf(bounds[:, 1].numpy(), place, spread) - logistic.cdf(bounds[:, 0].numpy(), place, spread)
    if share.min() > 1e-9:  # below, the difference has few digits
        assert float(interval_loss(said, bounds)) == pytest.approx(-np.log(share).mean(), rel=1e-4, abs=1e-6)


def test_an_interval_may_be_open() -> None:
    said = torch.tensor([[0.0, 0.0]])
    for bounds in ((-np.inf, 0.0), (0.0, np.inf)):
        assert float(interval_loss(said, torch.tensor([bounds]))) == pytest.approx(np.log(2), abs=1e-6)
    assert float(interval_loss(said, torch.tensor([(-np.inf, np.inf)]))) == pytest.approx(0.0, abs=1e-6)


def test_what_is_far_off_is_drawn_nearer() -> None:
    said = torch.tensor([[0.0, -4.0]], requires_grad=True)
    interval_loss(said, torch.tensor([[5.0, 5.1]])).backward()
    assert said.grad is not None
    assert said.grad[0, 0] < -10
    assert said.grad[0, 1] < 0


def test_bounds_of_a_label_are_sizes_that_fail_and_pass() -> None:
    questions = Questions([made(1), made(2), made(4)], torch.zeros(3), [3, 2, 0])
    side = np.log(np.array([[0.75, np.inf], [0.5, 0.75], [0.0, 0.25]]) * 100 / 64 + 1e-300)
    found = questions.bounds(64).numpy()
    assert np.allclose(found[1], side[1])
    assert found[0, 0] == pytest.approx(side[0, 0])
    assert np.isinf(found[0, 1])
    assert np.isneginf(found[2, 0])


@given(st.lists(st.floats(-1, 2), min_size=1, max_size=30))
def test_a_rising_sequence_is_the_isotonic_regression(values: list[float]) -> None:
    assert np.allclose(rising(np.array(values)), isotonic_regression(values).x, atol=1e-9)


@given(st.floats(-2, 2), st.floats(-3, 1), st.integers(20, 4000), st.integers(20, 4000), st.floats(1e-3, 1e3))
def test_a_dearer_answer_is_never_seen_smaller(
    place: float, spread: float, height: int, width: int, price: float
) -> None:
    said, labels = np.array([[place, spread]]), [made(1, height, width)]
    few, many = (scales_of(said, labels, CONFIG, paid)[0] for paid in (price, 2 * price))
    assert few <= many


def test_what_is_sure_is_seen_just_large_enough() -> None:
    said = np.array([[np.log(0.6 * 1000 / 64), -4.0]])
    assert scales_of(said, [made(1, 1000, 800)], CONFIG, 10.0)[0] == pytest.approx(0.7, abs=0.051)


def test_the_price_is_the_smallest_that_keeps_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction that is right needs no high price; one that is far too small needs one for its answers."""
    labels = [made(2, 400, 300)] * 20
    questions = Questions(labels, torch.zeros(20), [2] * 20)
    network = ResolutionNetwork(CONFIG)

    def said(place: float) -> tuple[float, list[tuple[float, float, float]]]:
        rows = np.tile([[np.log(place * 400 / 64), -1.5]], (20, 1))
        monkeypatch.setattr(fitting, "predicted", lambda *_: rows)
        return choose_price(network, questions, 8, 0.99)

    good, tried = said(0.7)
    low, _ = said(0.3)
    assert good < low
    (kept, saved) = next((kept, saved) for price, kept, saved in tried if price == good)
    assert kept == 1
    assert saved > 0
    below = [kept for price, kept, _ in tried if price < good]
    assert all(share < 1 for share in below)


def test_a_network_learns_what_labels_say(tmp_path: Path) -> None:
    """Views in fine stripes need the full size, those in coarse ones a quarter."""
    torch.manual_seed(0)
    stripes = [(torch.arange(64) // width % 2).float().expand(3, 64, 64) for width in (16, 2)]
    proxies = torch.stack([stripes[kind] * 2 - 1 for kind in (0, 1) * 24]).half()
    labels = [made(4 if kind == 0 else 1, 400, 300) for kind in (0, 1) * 24]
    network = ResolutionNetwork(CONFIG, 4)
    start(network, None)
    questions = Questions(labels, proxies, [0, 3] * 24)
    fit(network, questions, max_tokens=4, minutes=0.15, work=tmp_path, seed=0)
    said = predicted(network, questions, 4)
    assert said[0::2, 0].mean() < said[1::2, 0].mean() - 0.5
