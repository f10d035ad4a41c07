"""Walking a graph in segments gives what running it at once gives, and leaves nothing behind."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.calibration import segments
from hvlc.calibration.segments import Walk, cut_segments, walk
from hvlc.export import export_bundle
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.linears import linear_groups
from hvlc.passes.fuse.fuse_skip_norm import FuseSkipNorm
from hvlc.passes.static.keep_all_logits import KeepAllLogits
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.lazy import Computed, Constant, LazyTensor
from hvlc.workflows.calibrate.inputs import decoder_feeds
from tests.export.tiny_families import TEXT, save_text, save_vision
from tests.helpers.sessions import run
from tests.helpers.tolerances import GRAPH_FLOAT32

Feeds = list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("segments")
    checkpoints = {family: save_text(directory / family, family) for family in TEXT}
    checkpoints |= {f: save_vision(directory / f, f) for f in ("siglip_vision_model", "siglip2_vision_model")}
    made = {}
    for name, checkpoint in {**checkpoints, "hypervl": tiny_checkpoint}.items():
        made[name] = export_bundle(Checkpoint.open(checkpoint))
        FuseSkipNorm(lambda role: load_target("cpu").takes_op).run(made[name])
        KeepAllLogits().run(made[name])
    return made


def feeds_of(component: Component, lengths: Sequence[int] = (7, 3, 12)) -> Feeds:
    """A batch for each length: of tokens, of embeddings or of tiles."""
    random, first = np.random.default_rng(0), component.graph.inputs[0]
    found: Feeds = []
    for batch, length in enumerate(lengths, 1):
        if component.role is Role.VISION_ENCODER:
            shape = [length if isinstance(d, ir.SymbolicDim) else int(d) for d in first.shape or ()]
            found.append({str(first.name): random.normal(size=shape).astype(np.float32)})
        elif first.name == "input_ids":
            found.append(decoder_feeds(component, "input_ids", random.integers(0, 200, (batch, length))))
        else:
            hidden = int(str((first.shape or ())[-1]))
            values = random.normal(size=(batch, length, hidden)).astype(np.float32)
            found.append(decoder_feeds(component, str(first.name), values))
    return found


def components(bundles: Mapping[str, Bundle]) -> dict[str, Component]:
    return {
        f"{name} {c.name}": c
        for name, bundle in bundles.items()
        for c in bundle.components.values()
        if c.role in (Role.DECODER, Role.VISION_ENCODER)
    }


CUTS = {
    "none": slice(0, 0),
    "first": slice(0, 1),
    "last": slice(-1, None),
    "some": slice(1, None, 3),
    "all": slice(None),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("spooled", [False, True], ids=["in memory", "spooled"])
def test_stretches_compute_what_the_graph_computes(
    bundles: dict[str, Bundle], cut: str, spooled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_ON_DISK", 1)
    for name, component in components(bundles).items():
        feeds, wanted = feeds_of(component), component.graph.outputs
        ends = [g.input for g in linear_groups(component.graph)][CUTS[cut]]
        steps = cut_segments(component.graph, ends, wanted)
        assert len(steps) == len(ends) + 1
        walked = Walk(feeds, 1, tmp_path if spooled else None)
        walk(steps, walked, lambda weight: None)
        for sample, feed in enumerate(feeds):
            for value, expected in zip(wanted, run(component.model, feed), strict=True):
                found = walked.value(value, sample)
                np.testing.assert_allclose(found, expected, atol=GRAPH_FLOAT32, err_msg=f"{name} {value.name}")
        assert list(tmp_path.iterdir()) == []


def test_every_node_runs_once_and_in_order(bundles: dict[str, Bundle]) -> None:
    for component in components(bundles).values():
        groups = linear_groups(component.graph)
        steps = cut_segments(component.graph, [g.input for g in groups], component.graph.outputs)
        ran = [node for step in steps for node in [*step.lookups, *step.nodes]]
        assert sorted(map(id, ran)) == sorted(id(n) for n in component.graph)
        for group, step, after in zip(groups, steps, steps[1:], strict=False):
            assert not set(group.nodes) & set(step.nodes)
            assert group.nodes[0] in after.nodes


def test_what_a_stretch_ends_with_is_there_before_its_readers_run(bundles: dict[str, Bundle]) -> None:
    component = components(bundles)["llama model"]
    groups = linear_groups(component.graph)
    walked = Walk(feeds_of(component), 1)
    for group, step in zip(groups, cut_segments(component.graph, [g.input for g in groups]), strict=True):
        walked.run(step, lambda weight: None)
        assert [walked.value(group.input, s).shape[-1] for s in range(len(walked))] == [
            64 if "down" not in str(group.nodes[0].name) else 96
        ] * 3


def test_what_nothing_reads_any_more_is_dropped(bundles: dict[str, Bundle]) -> None:
    component = components(bundles)["qwen3 model"]
    nodes = list(component.graph)
    groups = linear_groups(component.graph)
    steps = cut_segments(component.graph, [g.input for g in groups])
    walked = Walk(feeds_of(component), 1)
    for group, step in zip(groups, steps, strict=True):
        walked.run(step, lambda weight: None)
        behind = nodes[min(nodes.index(n) for n in group.input.consumers()) : nodes.index(groups[-1].nodes[0])]
        read = {str(v.name) for n in behind for v in n.inputs if v is not None} | {str(g.input.name) for g in groups}
        left = set(walked._values[0])
        assert left <= read
        assert len(left) < 14  # the residual stream, masks and caches; not one value for each layer before


def chain(*, extra: bool = False) -> tuple[ir.Graph, dict[str, ir.Value]]:
    """w @ a -> y; relu(x) @ b -> z; y + z: what z is given is read before y by something else when `extra`."""
    builder = GraphBuilder("chain")
    x, w = (builder.input(name, ir.DataType.FLOAT, ["n", 4]) for name in "xw")
    a = builder.initializer("a", Constant(np.eye(4, dtype=np.float32) * 2))
    b = builder.initializer("b", Constant(np.eye(4, dtype=np.float32) * 3))
    early = builder.op("Relu", x, name="early")
    used = builder.op("Neg", early, name="used") if extra else early
    y = builder.op("MatMul", w, a, name="y")
    z = builder.op("MatMul", early, b, name="z")
    total = builder.op("Add", y, z, name="total")
    builder.output(builder.op("Add", total, used, name="out"), "out", ir.DataType.FLOAT, ["n", 4])
    return builder.graph, {"x": x, "w": w, "early": early, "y": y, "out": builder.graph.outputs[0]}


@pytest.mark.parametrize("extra", [False, True])
def test_a_value_made_long_before_its_cut_is_still_there(extra: bool) -> None:
    graph, values = chain(extra=extra)
    data = np.array([[1, -2, 3, -4]], np.float32)
    steps = cut_segments(graph, [values["w"], values["early"]], [values["y"], values["out"]])
    ran = [str(n.name) for step in steps for n in step.nodes]
    assert len(ran) == len(set(ran)) == len(graph)
    walked = Walk([{"x": data, "w": data}], 1)
    for step in steps[:2]:
        walked.run(step, lambda weight: None)
    np.testing.assert_array_equal(walked.value(values["early"], 0), data.clip(0))
    walked.run(steps[2], lambda weight: None)
    np.testing.assert_array_equal(walked.value(values["y"], 0), 2 * data)
    assert set(walked._values[0]) == {str(values["y"].name), "out"}


@pytest.mark.parametrize("ends", [[], ["w"], ["w", "early"]], ids=str)
def test_an_observer_sees_every_value_once_a_sample_and_nothing_is_kept_for_it(ends: list[str]) -> None:
    graph, values = chain(extra=True)
    watched = {str(v.name): v for v in [values["x"], *(v for node in graph for v in node.outputs)]}
    del watched["out"]
    steps = cut_segments(graph, [values[name] for name in ends], [], watched.values())
    assert "out" not in {str(node.name) for step in steps for node in step.nodes}
    random = np.random.default_rng(0)
    feeds = [{n: random.normal(size=(2, 4)).astype(np.float32) for n in "xw"} for _ in range(3)]
    seen: dict[str, list[np.ndarray]] = {name: [] for name in watched}
    walked = Walk(feeds, 1)
    for step in steps:
        walked.run(step, lambda weight: None, observe=lambda name, found: seen[name].append(found))
        assert all(set(left) <= step.live for left in walked._values)
    for sample, feed in enumerate(feeds):
        early = feed["x"].clip(0)
        expected = {"x": feed["x"], "early:0": early, "used:0": -early, "y:0": 2 * feed["w"], "z:0": 3 * early}
        expected["total:0"] = expected["y:0"] + expected["z:0"]
        assert set(expected) == set(seen)
        for name, value in expected.items():
            assert len(seen[name]) == 3
            np.testing.assert_allclose(seen[name][sample], value, rtol=1e-6)


def test_the_last_end_is_kept_without_anything_wanted() -> None:
    graph, values = chain()
    walked = Walk([dict.fromkeys("xw", np.ones((2, 4), np.float32))], 1)
    walk(cut_segments(graph, [values["w"], values["early"]]), walked, lambda weight: None)
    assert walked.value(values["early"], 0).shape == (2, 4)


def test_weights_are_asked_for_and_may_be_others() -> None:
    graph, values = chain()
    asked = []

    def weights(weight: ir.Value) -> np.ndarray | None:
        asked.append(str(weight.name))
        return np.zeros((4, 4), np.float32) if weight.name == "a" else None

    walked = Walk([dict.fromkeys("xw", np.ones((2, 4), np.float32))], 1)
    walk(cut_segments(graph, [], [values["out"]]), walked, weights)
    np.testing.assert_array_equal(walked.value(values["out"], 0), np.full((2, 4), 4.0, np.float32))
    assert sorted(asked) == ["a", "b"]


def test_no_sample_is_no_work() -> None:
    graph, values = chain()
    walk(cut_segments(graph, [], [values["out"]]), Walk([], 1), lambda weight: None)


class CountingTable(Computed):
    """A table that knows which rows were read."""

    @property
    def whole(self) -> bool:
        return False

    def box(self, box: tuple[slice, ...]) -> np.ndarray:
        self.of[0].values[box[0]] += 1  # type: ignore[attr-defined]
        return self.function()[box]


@pytest.mark.parametrize("whole", [False, True])
def test_tables_are_looked_up_row_by_row(whole: bool) -> None:
    table, reads = np.arange(60, dtype=np.float32).reshape(20, 3), Constant(np.zeros(20))
    kind = Computed if whole else CountingTable
    builder = GraphBuilder("table")
    ids = builder.input("ids", ir.DataType.INT64, ["batch", "n"])
    rows = builder.initializer("table", kind(lambda *_: table, (reads,), (20, 3), np.dtype(np.float32)))
    assert isinstance(rows.const_value, LazyTensor)
    builder.output(builder.op("Gather", rows, ids, name="look"), "found", ir.DataType.FLOAT, ["batch", "n", 3])
    wanted = builder.graph.outputs
    steps = cut_segments(builder.graph, [], wanted)
    samples = [np.array([[3, 3, 19], [0, 3, 7]]), np.array([[5]]), np.empty((1, 0), np.int64)]
    walked = Walk([{"ids": s} for s in samples], 1)
    walk(steps, walked, lambda weight: None)
    for i, sample in enumerate(samples):
        np.testing.assert_array_equal(walked.value(wanted[0], i), table[sample])
    if not whole:
        assert set(np.flatnonzero(reads.values)) == {0, 3, 5, 7, 19}


def test_progress_is_told_for_each_sample(bundles: dict[str, Bundle]) -> None:
    component = components(bundles)["llama model"]
    told: list[int] = []
    walked = Walk(feeds_of(component), 1)
    steps = cut_segments(component.graph, [linear_groups(component.graph)[0].input])
    walked.run(steps[0], lambda weight: None, lambda: told.append(1))
    assert len(told) == 3


def test_spooled_values_are_no_files_and_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_ON_DISK", 1)
    graph, values = chain()
    walked = Walk([dict.fromkeys("xw", np.ones((2, 4), np.float32))], 1, tmp_path)
    walk(cut_segments(graph, [], [values["out"]]), walked, lambda weight: None)
    found = walked.value(values["out"], 0)
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(found, np.full((2, 4), 6.0))
