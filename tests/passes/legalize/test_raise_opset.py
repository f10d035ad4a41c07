"""A later opset where every operator means the same, and not otherwise."""

import numpy as np
import pytest

from hvlc.passes.legalize.raise_opset import RaiseOpset
from tests.helpers.sessions import run
from tests.lint.texts import bundle_of, feeds, nodes_of, skips

GRAPH = """
graph (float[2, 3] x) => (float[3, 2] y) <int64[2] shape = {3, 2}> {
      [relu] a = Relu (x)
      [shape_it] b = Reshape (a, shape)
      [norm] y = com.microsoft.FastGelu (b)
}
"""


@pytest.mark.usefixtures("checked")
def test_the_opset_is_raised_and_nothing_else() -> None:
    made = bundle_of(GRAPH, 21)
    before = nodes_of(made)
    RaiseOpset(23).run(made)
    model = made.components["graph"].model
    assert (model.opset_imports[""], nodes_of(made), made.journal[-1].changed) == (23, before, 1)


def test_the_numbers_stay() -> None:
    old, new = bundle_of(GRAPH, 21), bundle_of(GRAPH, 21)
    RaiseOpset(23).run(new)
    models = [made.components["graph"].model for made in (old, new)]
    given = feeds(models[0])
    np.testing.assert_array_equal(*(run(model, given)[0] for model in models))


@pytest.mark.parametrize(
    ("text", "opset", "reason"),
    [
        (GRAPH, 17, "opset 17 is older than 21: export the model again"),
        (GRAPH.replace("a = Relu (x)", "a = Cast <to = 1> (x)"), 21, "opset 24 changes Cast"),
    ],
)
@pytest.mark.usefixtures("checked")
def test_a_near_miss_stays_untouched_and_is_explained(text: str, opset: int, reason: str) -> None:
    made = bundle_of(text, opset)
    RaiseOpset(24).run(made)
    assert made.components["graph"].model.opset_imports[""] == opset
    assert skips(made) == [("graph", reason)]


def test_a_later_opset_stays() -> None:
    made = bundle_of(GRAPH, 23)
    RaiseOpset(21).run(made)
    assert (made.components["graph"].model.opset_imports[""], made.journal[-1].changed) == (23, 0)
