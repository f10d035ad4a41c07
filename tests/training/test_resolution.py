"""Labels for the Visual Resolution Compressor, and how its offset is chosen."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hvlc.training import resolution  # noqa: E402
from hvlc.training.nano import nano_config, nano_processor  # noqa: E402
from hvlc.training.resolution import Label, Tolerance, smallest_scale  # noqa: E402
from hvlc.zoo.documents import render  # noqa: E402

TIGHT = Tolerance(ratio=1.1, nats=0.0)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({0.25: 9.0, 0.5: 1.0, 0.75: 1.0, 1.0: 1.0}, 0.5),
        ({0.25: 1.0, 0.5: 1.0, 0.75: 1.0, 1.0: 1.0}, 0.25),
        ({0.25: 9.0, 0.5: 9.0, 0.75: 9.0, 1.0: 1.0}, 1.0),
        # A small scale that passes below one that fails is luck.
        ({0.25: 0.5, 0.5: 9.0, 0.75: 1.0, 1.0: 1.0}, 0.75),
        ({0.25: 0.5, 0.5: 0.5, 0.75: 9.0, 1.0: 1.0}, 1.0),
        # Better than full size passes; exactly the limit passes.
        ({0.25: 9.0, 0.5: 1.1, 0.75: 0.2, 1.0: 1.0}, 0.5),
        ({0.25: math.nan, 0.5: 1.0, 0.75: 1.0, 1.0: 1.0}, 0.5),
    ],
)
def test_smallest_scale(losses, expected):
    assert smallest_scale(losses, TIGHT) == expected


def test_nats_forgive_a_loss_near_zero():
    losses = {0.5: 0.004, 1.0: 0.0001}
    assert smallest_scale(losses, TIGHT) == 1.0
    assert smallest_scale(losses, Tolerance(ratio=1.1, nats=0.01)) == 0.5


def test_quantile_loss_is_least_at_the_quantile():
    wanted = torch.linspace(0, 1, 101)
    losses = {q: resolution.quantile_loss(torch.tensor(q), wanted, 0.8).item() for q in (0.5, 0.7, 0.8, 0.9)}
    assert min(losses, key=losses.__getitem__) == 0.8


class _Constant(torch.nn.Module):
    """A compressor that always wants the proxy's own size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_2 = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.linear_2.bias)

    def scale(self, proxies, sizes):
        wanted = self.linear_2.bias.exp() * 160 / sizes.amax(-1)
        return wanted.clamp(0.1, 1.0)


def test_offset_is_the_smallest_that_keeps_the_answers():
    processor = nano_processor(nano_config()).image_processor
    labels = []
    for index in range(20):
        # Legible from 190 pixels on: the constant compressor is too small by log(190 / 160).
        sides = {s: s * max(render("calibration", index).image.size) for s in resolution.SCALES}
        right = {s: (side >= 190 or s == 1.0,) for s, side in sides.items()}
        labels.append(Label(index, dict.fromkeys(resolution.SCALES, 0.0), right))
    compressor = _Constant()
    chosen, tried = resolution.choose_offset(compressor, processor, labels, keep=1.0)
    assert chosen.kept == 1.0
    assert all(s.kept < 1.0 for s in tried if s.offset < chosen.offset)
    assert [s.saved for s in tried] == sorted((s.saved for s in tried), reverse=True)
    assert compressor.linear_2.bias.item() == pytest.approx(0.0, abs=1e-6)
