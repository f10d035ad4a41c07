"""Stages stop, resume, and divide the work; the recipe's stages run."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hvlc.training import attention, card, nano, resolution, stages  # noqa: E402
from hvlc.training.measuring import BranchScore  # noqa: E402
from hvlc.training.optimizing import Optimizer  # noqa: E402
from hvlc.training.stages import Stage  # noqa: E402


def _stage(tmp_path, seconds, workers=1):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 1)
    truth = torch.tensor([[1.0, -2.0, 3.0, 0.5]])

    def draw(_):
        return torch.randn(16, 4)

    def loss(batch, _):
        error = torch.nn.functional.mse_loss(layer(batch), batch @ truth.T)
        return error, {"error": error.item()}

    optimizer = Optimizer([], 3e-2, plain=[layer], warmup=1)
    return Stage("line", {"layer": layer}, optimizer, draw, loss, seconds, tmp_path, workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_stage_learns_and_resumes(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(stages, "REPORT_EVERY", 0.05)
    first = _stage(tmp_path, 0.5, workers)
    first.run()
    assert first.curve[-1]["error"] < first.curve[0]["error"]

    done = _stage(tmp_path, 0.5, workers)
    done.run()
    assert done.optimizer.updates == first.optimizer.updates
    torch.testing.assert_close(done.modules["layer"].weight, first.modules["layer"].weight)

    longer = _stage(tmp_path, 0.8, workers)
    longer.run()
    assert longer.optimizer.updates > first.optimizer.updates
    assert len(longer.curve) > len(first.curve)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other", "directory"])
def test_a_damaged_state_has_a_code(tmp_path, damage):
    from hvlc.errors import UserError

    _stage(tmp_path, 0.01).run()
    path = tmp_path / "line.pt"
    content = path.read_bytes()
    if damage == "other":
        torch.save({"modules": {"layer": {}}, "spent": 0.0}, path)
    elif damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(UserError, match=r"train\.state") as error:
        _stage(tmp_path, 0.01).run()
    assert "line.pt" in error.value.cause


def test_an_interrupted_stage_keeps_what_it_learned(tmp_path):
    first = _stage(tmp_path, 60.0)
    draws = 0

    def interrupt(over, draw=first.draw):
        nonlocal draws
        draws += 1
        if draws > 10:
            raise KeyboardInterrupt
        return draw(over)

    first.draw = interrupt
    with pytest.raises(KeyboardInterrupt):
        first.run()
    resumed = _stage(tmp_path, first.spent)
    resumed.run()
    assert resumed.optimizer.updates == first.optimizer.updates > 0
    torch.testing.assert_close(resumed.modules["layer"].weight, first.modules["layer"].weight)


def test_two_workers_take_the_mean_gradient(tmp_path):
    stage = _stage(tmp_path, 1.0, 2)
    batches = [torch.randn(16, 4), torch.randn(16, 4)]
    list(stage._accumulate([stage._gradients(batch, 0.0) for batch in batches]))
    parts = stage.optimizer.parameters
    loss = sum(stage.loss(batch, 0.0)[0] for batch in batches) / 2
    for parameter, gradient in zip(parts, torch.autograd.grad(loss, parts), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_every_parameter_is_updated_once():
    recipe_model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Embedding(3, 4))
    head = torch.nn.Linear(4, 2)
    optimizer = Optimizer([recipe_model, recipe_model[0]], 1e-3, plain=[head])
    expected = [*recipe_model.parameters(), *head.parameters()]
    assert sorted(map(id, optimizer.parameters)) == sorted(map(id, expected))


@pytest.mark.parametrize("key_heads", [1, 3])
def test_attention_equals_pytorch(key_heads):
    torch.manual_seed(0)
    query = torch.randn(2, 3, 5, 8, requires_grad=True)
    key, value = (torch.randn(2, key_heads, 5, 8, requires_grad=True) for _ in range(2))
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9)
    ours, _ = attention.attend(torch.nn.Identity(), query, key, value, mask)
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    torch.testing.assert_close(ours.transpose(1, 2), theirs)
    weight = torch.randn_like(theirs)
    leaves = (query, key, value)
    mine = torch.autograd.grad((ours.transpose(1, 2) * weight).sum(), leaves)
    for ours_gradient, gradient in zip(mine, torch.autograd.grad((theirs * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(ours_gradient, gradient, atol=1e-5, rtol=1e-4)


def test_every_stage_runs_and_moves_its_part(tmp_path, monkeypatch):
    """One update each: the stages fit together and can be loaded by the next process."""
    monkeypatch.setattr(nano, "LABELLED", {"train": 24, "calibration": 4})
    monkeypatch.setattr(resolution, "SCALES", (0.5, 1.0))
    monkeypatch.setattr(nano, "BATCH", nano.Sizes(windows=2, tokens=600, documents=2, proxies=4, pool=4))
    minutes = dict.fromkeys(nano.MINUTES, 1e-4)
    recipe = nano.HyperVLNano(tmp_path, minutes=minutes)
    before = {name: p.detach().clone() for name, p in recipe.model.named_parameters()}
    recipe.run()
    moved = {name for name, p in recipe.model.named_parameters() if not torch.equal(p, before[name])}
    for part in ("branches.base", "branches.large", "language_model", "resolution_compressor"):
        assert any(part in name for name in moved)

    again = nano.HyperVLNano(tmp_path, minutes=minutes)
    again.run()
    for name, parameter in again.model.named_parameters():
        torch.testing.assert_close(parameter, recipe.model.get_parameter(name), msg=name)


def test_card_tells_scores_and_digests():
    score = BranchScore(256, 0.9375, (0.901, 0.961), 100.0, "large", False, 1.0)
    record = {
        "scores": [score.as_dict()],
        "digests": {"heldout": {"text": "ab" * 32, "pixels": "cd" * 32}},
        "stages": [{"name": "answer", "minutes": 2.0, "curve": [{"seconds": 60, "updates": 9, "loss": 0.5}]}],
    }
    text = card.render_card(record, 3_660_000, card.FIRST)
    assert "| narrow | large | off | 93.8% | 90.1% to 96.1% | 100.0 | 256 |" in text
    assert "3.66 million" in text
    assert "`" + "ab" * 8 + "`" in text
    assert "| answer | 2.0 | 1.0 | 9 | loss 0.500 |" in text
