"""Every graph that is known to compile and compute something else is seen before it is compiled."""

from pathlib import Path

import pytest

from hvlc.lint.linting import lint_graph
from hvlc.target import load_target
from tests.compilation import graphs

NPU = load_target("qnn-sm8750")


@pytest.mark.parametrize("hazard", graphs.HAZARDS)
def test_the_wrong_form_is_seen_and_the_right_one_passes(tmp_path: Path, hazard: str) -> None:
    wrong, right = (
        lint_graph(graphs.HAZARDS[hazard](tmp_path / f"{form}.onnx", wrong=form == "wrong"), NPU)
        for form in ("wrong", "right")
    )
    assert wrong.findings
    assert right.findings == ()
    # The compiler itself refuses N5, the weight of a norm around another zero point than 32768.
    assert (wrong.refused, wrong.hazards) == ((1, 0) if hazard == "N5" else (0, 1))
