"""Every graph that is known to compile and compute something else is seen before it is compiled."""

from pathlib import Path

import pytest

from hvlc.lint.engine import lint_graph
from hvlc.targets import load_target
from tests.qnn import graphs

NPU = load_target("qnn-sm8750")
#: What the compiler itself refuses: N5, the weight of a norm around another zero point than 32768; and products whose
#: number of inputs is refused by its limit.
REFUSED = ("N5", "N11")
#: Scales of two activations and of channels whose levels are not all 0: no rule speaks of so much. Builds are checked.
UNSEEN = ("N12",)


@pytest.mark.parametrize("hazard", [name for name in graphs.HAZARDS if name not in UNSEEN])
def test_the_wrong_form_is_seen_and_the_right_one_passes(tmp_path: Path, hazard: str) -> None:
    wrong, right = (
        lint_graph(graphs.HAZARDS[hazard](tmp_path / f"{form}.onnx", wrong=form == "wrong"), NPU)
        for form in ("wrong", "right")
    )
    assert wrong.findings
    assert right.findings == ()
    assert (wrong.refused, wrong.hazards) == ((1, 0) if hazard in REFUSED else (0, 1))


@pytest.mark.parametrize("hazard", UNSEEN)
def test_what_only_the_check_of_a_build_sees(tmp_path: Path, hazard: str) -> None:
    path = graphs.HAZARDS[hazard](tmp_path / "wrong.onnx", wrong=True)
    assert lint_graph(path, NPU).findings == ()
