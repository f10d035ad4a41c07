"""Bisecting names the stage where a package departs, and no other; it is silent about packages that are right."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from hvlc.errors import UserError
from hvlc.manifest.manifest import Manifest
from hvlc.results import trace_points
from hvlc.results.bisection import Bisection, Deviation, StageResult
from hvlc.workflows.bisect.bisect import Request, among_peers, bisect, choice, open_reference
from hvlc.workflows.bisect.opening import open_tracer
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from hvlc.zoo import documents
from tests.export.tiny_families import TEXT, save_text
from tests.helpers.faults import FACTOR, FAULTS, NAMES, planted
from tests.helpers.tiny import save_tiny

PROMPT = "What is the total?"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.png"
    document, _ = next(documents.examples("heldout", 1, 0))
    document.image.crop((0, 0, 90, 50)).save(path)  # of the kind that packages are calibrated on
    return path


@pytest.fixture(scope="module")
def ask(tiny_checkpoint: Path, image: Path) -> Iterator[Callable[..., Bisection]]:
    """Bisects a package against the checkpoint that it was built from."""

    def run(package: Path, reference: Path = tiny_checkpoint, **changes: Any) -> Bisection:
        return bisect(replace(Request(package, reference, PROMPT, (image,), max_new_tokens=6), **changes))

    opened: dict[tuple[Path, str], Any] = {}

    def open_once(directory: Path, manifest: Manifest, threads: int) -> Any:
        key = directory, manifest.sources.model_type
        if key not in opened:
            opened[key] = open_reference(directory, manifest, threads)
        return opened[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "hvlc.workflows.bisect.bisect.open_reference", open_once
        )  # loading the checkpoint is half of the time
        yield run


def beyond(found: Bisection) -> set[str]:
    return {stage.name for stage in found.stages if stage.departs}


HINTS = {
    "scaled projector weight": f"is {FACTOR} times the reference's",
    "swapped decoder layers": "weights are the reference's of model.language_model.layers.1",
    "wrong image mean": "another image_mean",
    "shifted positions": "position_embedding.weight are shifted by 1",
    "dropped tile": "is empty",
    "swapped token ids": "2 tokens of tokenizer.json have other ids: 'e' 101 -> 116, 't' 116 -> 101",
    "wrong int4 scales": f"weights are {FACTOR} times the reference's",
}


def planting() -> Iterator[Any]:
    """Every fault in the first recipe that can have it; in the others it takes more time than it tells."""
    for name in NAMES:
        for index, recipe in enumerate(FAULTS[name].recipes):
            yield pytest.param(name, recipe, marks=[pytest.mark.slow] * (index > 0))


@pytest.mark.parametrize(("fault", "recipe"), list(planting()))
def test_the_planted_stage_is_named(
    request: pytest.FixtureRequest, tmp_path: Path, ask: Callable[..., Bisection], fault: str, recipe: str
) -> None:
    package: Path = request.getfixturevalue({"float32": "tiny_float32", "w4a16-rtn": "tiny_w4a16"}[recipe])
    found = ask(planted(fault, package, tmp_path / "package"))
    assert found.departs == FAULTS[fault].stage
    assert any(HINTS[fault] in hint for hint in found.hints), found.hints
    others = {"decoder.layers.0", "decoder.layers.1"} if fault == "swapped decoder layers" else {found.departs}
    assert beyond(found) == others  # what comes after it is right, on the reference's inputs
    assert found.changed_files == ()


def test_errors_accumulate_after_a_fault_and_not_before(
    tiny_float32: Path, tmp_path: Path, ask: Callable[..., Bisection]
) -> None:
    found = ask(planted("scaled projector weight", tiny_float32, tmp_path / "package"))
    names = [stage.name for stage in found.stages]
    at = names.index(trace_points.PROJECTOR)
    sizes = [stage.accumulated.relative for stage in found.stages if stage.accumulated is not None]
    assert max(size for size in sizes[:at] if size is not None) < 1e-4
    assert all((sizes[names.index(trace_points.decoder_layer(i))] or 0) > 0.05 for i in range(2))
    assert all(stage.own.relative is not None and stage.own.relative < 1e-4 for stage in found.stages[at + 1 :])


RECIPES = {
    "genai-default": "genai-default",
    "rotated around the table": "prepare: {rotate: {seed: 3, heads: true}}",
    "rotated into the table": "prepare: {rotate: {seed: 3, untie: true}}",
    "w4a16-awq": "w4a16-awq",
    "w4a16-static": "w4a16-static",  # with GPTQ and an int8 cache
    "smoothed": "prepare: {smooth: {roles: [decoder, vision_encoder]}}\ncalibration: {samples: 2, tokens: 32}",
    "w4a16": "w4a16",
    "w4a16-kv8": "w4a16-kv8",
}
SLOW = ("smoothed", "w4a16", "w4a16-kv8")


def test_packages_that_are_right_depart_nowhere(
    tiny_float32: Path, tiny_w4a16: Path, ask: Callable[..., Bisection]
) -> None:
    assert ask(tiny_float32).departs is None
    assert ask(tiny_w4a16, encoder="base", vrc=False).departs is None


@pytest.mark.parametrize("recipe", [pytest.param(r, marks=[pytest.mark.slow] * (r in SLOW)) for r in RECIPES])
def test_a_package_that_is_right_departs_nowhere(
    tiny_checkpoint: Path, tmp_path: Path, ask: Callable[..., Bisection], recipe: str
) -> None:
    name = RECIPES[recipe]
    if ":" in name:
        (tmp_path / "own.yaml").write_text(f"schema_version: 1\nname: own\ndescription: own\n{name}\n", "utf-8")
        name = str(tmp_path / "own.yaml")
    calibrated = recipe in ("w4a16", "w4a16-awq", "w4a16-kv8", "w4a16-static")
    # With fewer than 16 samples the ranges of static activations cut values of this image off, and stages do depart.
    samples = 16 if calibrated else None
    package = build(open_request(tiny_checkpoint, "cpu", name, tmp_path / "package", samples=samples)).output
    found = ask(package)
    assert found.departs is None, (found.departing, found.hints)
    assert bool(found.notes) == recipe.startswith("rotated")
    if "w4a16" not in recipe and recipe != "genai-default":
        assert all(stage.own.relative is not None and stage.own.relative < 1e-4 for stage in found.stages)


def test_a_package_against_itself_is_exactly_itself(tiny_w4a16: Path, ask: Callable[..., Bisection]) -> None:
    found = ask(tiny_w4a16, tiny_w4a16)
    assert found.departs is None
    errors = {
        stage.name: (stage.own.relative, stage.accumulated and stage.accumulated.relative) for stage in found.stages
    }
    # The package's own run is one token at a time, in which sums have another order.
    assert all(own == 0 for name, (own, _) in errors.items() if name != trace_points.DECODE)
    assert all(accumulated is not None and accumulated < 1e-5 for _, accumulated in errors.values())
    assert found.answer == found.expected_answer
    assert found.reference_runs_on == "onnxruntime CPU"


def test_another_checkpoint_departs_wherever_it_has_weights(
    tiny_float32: Path, tmp_path: Path, ask: Callable[..., Bisection]
) -> None:
    found = ask(tiny_float32, save_tiny(tmp_path / "other", seed=1))
    inside = {name for name in (stage.name for stage in found.stages) if "layers" in name}
    assert beyond(found) >= inside | {trace_points.VISION_EMBEDDINGS, trace_points.PROJECTOR, trace_points.HEAD}


def test_a_given_tolerance_holds_for_every_stage_with_numbers(tiny_w4a16: Path, ask: Callable[..., Bisection]) -> None:
    found = ask(tiny_w4a16, tolerance=1e-3)
    assert found.departs == trace_points.vision_layer(0)
    assert found.hints[0].startswith("its weights are the reference's")
    assert {stage.tolerance for stage in found.stages} == {1e-3, 0.0, 0.05}  # tokenization and sampling are not numbers


def test_text_alone_is_compared_without_vision(tiny_w4a16: Path, ask: Callable[..., Bisection]) -> None:
    found = ask(tiny_w4a16, images=())
    assert found.departs is None
    assert (found.encoder, found.images) == ("", ())
    assert not any(stage.name.startswith(("vision", "merge", "pre")) for stage in found.stages)


def edited(package: Path, copy: Path, file: str, change: Callable[[onnx.ModelProto], None]) -> Path:
    shutil.copytree(package, copy)
    model = onnx.load(copy / file, load_external_data=False)
    change(model)
    onnx.save(model, copy / file)
    return copy


def _wrong_past(model: onnx.ModelProto) -> None:
    """Keys of earlier runs are made larger; a prompt, which has no earlier run, does not show it."""
    attention = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
    factor = numpy_helper.from_array(np.array(1.5, np.float32), "factor")
    larger = helper.make_node("Mul", [attention.input[3], "factor"], ["larger"], name="larger")
    attention.input[3] = "larger"
    model.graph.initializer.append(factor)
    model.graph.node.insert(list(model.graph.node).index(attention), larger)


def _late_placeholders(model: onnx.ModelProto) -> None:
    """Visual tokens go one position too far."""
    scatter = next(n for n in model.graph.node if n.op_type == "ScatterND")
    one = numpy_helper.from_array(np.array([[0, 1]], np.int64), "one")
    later = helper.make_node("Add", [scatter.input[1], "one"], ["later"], name="later")
    scatter.input[1] = "later"
    model.graph.initializer.append(one)
    model.graph.node.insert(list(model.graph.node).index(scatter), later)


def _not_finite(model: onnx.ModelProto) -> None:
    norm = next(t for t in model.graph.initializer if t.name.endswith("layers.1.input_layernorm.weight"))
    values = numpy_helper.to_array(norm).copy()
    values[3] = np.nan
    norm.CopyFrom(numpy_helper.from_array(values, norm.name))


EDITS: dict[str, tuple[str, Callable[[onnx.ModelProto], None], str, str]] = {
    "past keys": ("model.onnx", _wrong_past, trace_points.DECODE, ""),
    "placeholders": (
        "embedding.onnx",
        _late_placeholders,
        trace_points.MERGE,
        "positions have what belongs 1 before them",
    ),
    "NaN": ("model.onnx", _not_finite, trace_points.decoder_layer(1), "input_layernorm.weight"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_fault_in_a_graph_is_named(
    tiny_float32: Path, tmp_path: Path, ask: Callable[..., Bisection], case: str
) -> None:
    file, change, stage, hint = EDITS[case]
    found = ask(edited(tiny_float32, tmp_path / "package", file, change))
    assert found.departs == stage
    assert beyond(found) == {stage}
    assert found.changed_files == (file,)
    assert not hint or any(hint in line for line in found.hints), found.hints
    Bisection.model_validate_json(found.model_dump_json())  # NaN does not leak into the record


def test_an_engine_that_stops_early_departs_at_the_sampling(
    tiny_float32: Path, tmp_path: Path, ask: Callable[..., Bisection]
) -> None:
    right = ask(tiny_float32)
    assert len(right.answer) > 1
    copy = Path(shutil.copytree(tiny_float32, tmp_path / "package"))
    config = json.loads((copy / "genai_config.json").read_text("utf-8"))
    config["model"]["eos_token_id"] = right.answer[0]
    (copy / "genai_config.json").write_text(json.dumps(config), "utf-8")
    found = ask(copy)
    assert found.departs == trace_points.SAMPLING
    assert found.departing is not None
    assert found.departing.detail == f"the answer ends after 1 tokens, the reference's after {len(right.answer)}"


def test_a_package_that_breaks_on_the_way_is_compared_as_far_as_it_gets(
    tiny_float32: Path, tmp_path: Path, ask: Callable[..., Bisection]
) -> None:
    def drop(model: onnx.ModelProto) -> None:
        maker = next(n for n in model.graph.node if "pixel_values" in n.output)
        maker.output[:] = ["all" if name == "pixel_values" else name for name in maker.output]
        ints = {"first": [0], "last": [-1]}
        model.graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), n) for n, v in ints.items())
        model.graph.node.append(helper.make_node("Slice", ["all", "first", "last", "first"], ["pixel_values"]))

    found = ask(edited(tiny_float32, tmp_path / "package", "front.onnx", drop))
    assert found.departs == trace_points.PREPROCESSING
    assert "where the reference cuts" in found.hints[0]
    by_name = {stage.name: stage for stage in found.stages}
    assert by_name[trace_points.STITCHING].accumulated is None
    assert not by_name[trace_points.decoder_layer(0)].departs
    assert found.answer == ()


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: save_text(root / family, family) for family in TEXT}


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        *((family, "float32") for family in TEXT),
        *((f, "w4a16-rtn") for f in ("gemma3_text", "granite", "llama", "phi3", "qwen3")),
    ],
)
def test_language_packages_depart_nowhere(families: dict[str, Path], tmp_path: Path, family: str, recipe: str) -> None:
    package = build(open_request(families[family], "cpu", recipe, tmp_path / "package")).output
    found = bisect(Request(package, families[family], PROMPT, max_new_tokens=6))
    assert found.departs is None, found.hints
    assert [stage.name for stage in found.stages][:3] == ["tokenization", "embedding", "decoder.layers.0"]


@pytest.mark.parametrize("fault", ["swapped decoder layers", "swapped token ids"])
def test_faults_of_language_packages_are_named(families: dict[str, Path], tmp_path: Path, fault: str) -> None:
    package = build(open_request(families["llama"], "cpu", "float32", tmp_path / "package")).output
    found = bisect(Request(planted(fault, package, tmp_path / "copy"), families["llama"], PROMPT, max_new_tokens=6))
    assert found.departs == FAULTS[fault].stage
    assert found.hints


def test_what_cannot_be_compared_is_refused_before_the_work(
    families: dict[str, Path], tiny_float32: Path, tiny_checkpoint: Path, tmp_path: Path, ask: Callable[..., Bisection]
) -> None:
    (tmp_path / "text.png").write_text("no image", "utf-8")
    wide = save_tiny(tmp_path / "wide", hidden=96)
    refused: dict[str, dict[str, Any]] = {
        "bisect.reference": {"reference": tmp_path},
        "bisect.shape": {"reference": wide},
        "image.unreadable": {"images": (tmp_path / "text.png",)},
        "request.encoder": {"encoder": "huge"},
        "request.too_long": {"max_new_tokens": 10**6},
        "package.missing": {"package": tiny_checkpoint},
    }
    for code, changes in refused.items():
        with pytest.raises(UserError) as error:
            ask(**({"package": tiny_float32} | changes))
        assert (error.value.code, error.value.exit_code) == (code, 2)
    with pytest.raises(UserError) as error:
        ask(tiny_float32, families["llama"])
    assert error.value.code == "bisect.reference"


def test_a_reference_is_a_checkpoint_or_a_package(tiny_float32: Path, tiny_checkpoint: Path) -> None:
    manifest = open_tracer(tiny_float32).manifest
    kinds = [open_reference(directory, manifest).runs_on for directory in (tiny_checkpoint, tiny_float32)]
    assert kinds == ["torch CPU", "onnxruntime CPU"]


def layer(index: int, error: float, precision: str = "4-bit weights") -> StageResult:
    own = Deviation(relative=error, shape=(1,), expected_shape=(1,))
    return StageResult(name=trace_points.decoder_layer(index), own=own, tolerance=0.4, precision=precision)


def test_a_quantized_layer_is_held_against_its_peers() -> None:
    errors = [0.05, 0.06, 0.05, 0.25]
    assert [r.departs for r in among_peers([layer(i, e) for i, e in enumerate(errors)])] == [False, False, False, True]
    few = [layer(i, e) for i, e in enumerate(errors[1:])]
    assert among_peers(few) == few
    mixed = [*few, layer(3, 0.05, "8-bit weights")]
    assert among_peers(mixed) == mixed
    bad = [layer(i, 0.5) for i in range(8)]
    assert all(r.departs for r in among_peers(bad))


LOGITS = np.eye(4)[[1, 2, 3]] * 9.0


@pytest.mark.parametrize(
    ("answer", "expected", "read", "departs"),
    [
        ([1, 2, 3], [1, 2, 3], 3, False),
        ([1, 0, 3], [1, 2, 3], 3, True),  # not what the logits say
        ([1, 2], [1, 0, 3], 3, False),  # what they say, unlike the reference; what follows is another text
        ([1, 2], [1, 2, 3], 3, True),  # ends early
        ([1, 2, 3, 3], [1, 2, 3], 3, True),  # goes on
        ([1, 2, 3, 3], [1, 2], 1, False),  # nobody knows what comes behind a placeholder
        ([], [1, 2, 3], 3, True),
    ],
)
def test_an_engine_is_held_against_the_logits(answer: list[int], expected: list[int], read: int, departs: bool) -> None:
    own, detail = choice(np.array(answer, np.int64), np.array(expected), LOGITS[:read])
    assert own.exceeds(0.05) == departs
    assert bool(detail) == departs
