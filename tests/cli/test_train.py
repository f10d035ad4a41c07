"""`hvlc train`: what is looked at before hours of work, and what is told meanwhile."""

from __future__ import annotations

import pytest

from hvlc.cli.train import _progress

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["nano", "smolvlm-nano", "qwen3vl-nano"])
def test_an_output_that_exists_is_refused_before_the_work(tmp_path, hvlc, name):
    result = hvlc("train", name, "-o", tmp_path, "--work", tmp_path / "work", "--json")
    assert result.code == 2
    assert "output.exists" in result.out
    assert not (tmp_path / "work").exists()


def test_the_time_that_is_left_counts_later_stages(capsys):
    from hvlc.training.stages import Report

    _progress({"read": 10.0, "answer": 30.0})(Report("read", 0.5, 7, {"loss": 0.25}))
    assert "read  50% loss 0.250 | about 35 min left" in capsys.readouterr().err
