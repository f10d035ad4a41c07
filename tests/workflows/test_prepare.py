"""Whole builds of recipes that change the float model first: still the same model, and factors by their definition."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime_genai as og
import pytest
from safetensors.numpy import load_file

from hvlc.calibration import factors as finding
from hvlc.calibration.samples import TextSample
from hvlc.calibration.scaling import awq_factors, smooth_factors
from hvlc.calibration.state import key_path
from hvlc.errors import UserError
from hvlc.export import export_bundle
from hvlc.graphs.bundle import Bundle, JournalEntry
from hvlc.graphs.linears import linear_groups
from hvlc.manifest.manifest import Manifest
from hvlc.passes.lists import structural_passes
from hvlc.passes.static.keep_all_logits import KeepAllLogits
from hvlc.recipes.loading import load_recipe
from hvlc.recipes.schema import FormatSpec
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.logits import TextScorer
from hvlc.runtime.settings import VisionSettings
from hvlc.runtime.vision import Vision
from hvlc.solvers.registry import CALIBRATED
from hvlc.solvers.rtn import round_to_nearest
from hvlc.solvers.statistics import InputStatistics
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.formats import WeightFormat, weight_format
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.sensitivity.sensitivity import SensitivityOptions, measure
from tests.export.tiny_families import save_text, save_vision
from tests.helpers.calibration import StoppedError, contents, request
from tests.helpers.sessions import session
from tests.helpers.tiny import picture
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.weights.prequantized.tiny_quantized import save_gguf

BOTH = {"roles": ["decoder", "vision_encoder"]}
PREPARATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "rotate": ({"rotate": {}}, "rtn"),
    "smooth": ({"smooth": {}}, "rtn"),
    "awq": ({"awq": {}}, "rtn"),
    "awq and gptq": ({"awq": {}}, "gptq"),
    "all": ({"rotate": {"seed": 3}, "smooth": {"exponent": 0.3}, "awq": {"exponents": 4}}, "gptq"),
}
FORMAT = weight_format(4, 32)
IDS = np.random.default_rng(0).integers(0, 200, 40)
INPUTS = {
    f"model.layers.{layer}.{linears[0]}": tuple(f"model.layers.{layer}.{linear}" for linear in linears)
    for layer in (0, 1)
    for linears in (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    )
}


def write(path: Path, prepare: dict[str, Any], solver: str | None = "rtn", source: str | None = None) -> str:
    """A recipe with a preparation; without a solver it keeps everything float."""
    spec = {"bits": 4, "block_size": 32, "solver": solver}
    rules: list[dict[str, Any]] = [
        {"role": "decoder", "weights": "*embed_tokens.weight", "optional": True, "reason": "shared"},
        {"role": "decoder", "weights": "lm_head.weight", "optional": True, "reason": "shared"},
        {"role": "decoder", "optional": True, "quantize": spec},
        {"role": "vision_encoder", "optional": True, "quantize": {**spec, "bits": 8}},
    ]
    calibration = {"samples": 4, "tokens": 24, **({"source": source} if source else {})}
    content = {"schema_version": 1, "name": path.stem, "description": "prepared", "calibration": calibration}
    path.write_text(json.dumps({**content, "prepare": prepare, "rules": rules if solver else []}))
    return str(path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied decoder whose heads share values in pairs."""
    return save_text(tmp_path_factory.mktemp("prepare") / "llama", "llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def float_logits(llama: Path) -> np.ndarray:
    return TextScorer(build(request(llama, "float32", llama.parent / "float32")).output, threads=1).logits(IDS)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def steps(journal: tuple[JournalEntry, ...], name: str) -> list[JournalEntry]:
    return [entry for entry in journal if entry.step == name]


# Packages.


@pytest.mark.parametrize("name", PREPARATIONS)
def test_a_prepared_llama_runs_and_says_what_the_float_model_says(
    llama: Path, tmp_path: Path, name: str, float_logits: np.ndarray
) -> None:
    prepare, solver = PREPARATIONS[name]
    package = build(request(llama, write(tmp_path / "mine.yaml", prepare, solver), tmp_path / "package")).output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "package"]  # no state is left
    plain = build(request(llama, write(tmp_path / "rtn.yaml", {}), tmp_path / "rtn")).output
    error, rounding = (relative(TextScorer(p, threads=1).logits(IDS), float_logits) for p in (package, plain))
    assert 1e-3 < error < 1.5 * rounding  # a fold on one side only is as bad as noise
    model = og.Model(str(package))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=12)
    generator = og.Generator(model, parameters)
    generator.append_tokens(IDS[:8].astype(np.int32))
    generator.generate_next_token()
    assert len(generator.get_sequence(0)) == 9


@pytest.mark.parametrize("name", PREPARATIONS)
def test_a_prepared_hypervl_answers(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    prepare, solver = PREPARATIONS[name]
    prepare = {kind: {**spec, **(BOTH if kind != "rotate" else {})} for kind, spec in prepare.items()}
    result = build(request(tiny_checkpoint, write(tmp_path / "mine.yaml", prepare, solver), tmp_path / "package"))
    asked: dict[str, Any] = {"encoder": "base", "vrc": False, "max_new_tokens": 4}
    assert VisionLanguageModel(result.output, threads=1).answer("What?", [picture(50, 50)], **asked).tokens
    if "rotate" not in prepare or len(prepare) > 1:
        (planned,), (folded,) = steps(result.journal, "PlanFactors"), steps(result.journal, "ScaleChannels")
        assert planned.changed == folded.changed == 4 * 2 + 3 * (2 + 3) + ("rotate" in prepare)
        assert folded.skipped == ()
        reasons = {skip.reason for skip in planned.skipped}
        assert {"Gelu takes no factors", "it shares its bytes with a table, which would be stored again"} <= reasons


@pytest.mark.parametrize("prepare", [{"rotate": {}}, {"rotate": {"untie": True}}, {"smooth": {}}], ids=str)
def test_in_float_a_prepared_package_is_the_float_model(
    llama: Path, tmp_path: Path, prepare: dict[str, Any], float_logits: np.ndarray
) -> None:
    result = build(request(llama, write(tmp_path / "mine.yaml", prepare, None), tmp_path / "package"))
    assert relative(TextScorer(result.output, threads=1).logits(IDS), float_logits) < GRAPH_FLOAT32
    weights = (result.output / "model.onnx.data").read_bytes()
    assert weights != (llama.parent / "float32" / "model.onnx.data").read_bytes()


@pytest.mark.parametrize("prepare", [{"rotate": {}}, {"smooth": BOTH}, {"rotate": {}, "smooth": BOTH}], ids=str)
def test_in_float_a_prepared_hypervl_answers_as_the_float_model(
    tiny_checkpoint: Path, tiny_float32: Path, tmp_path: Path, prepare: dict[str, Any]
) -> None:
    result = build(request(tiny_checkpoint, write(tmp_path / "mine.yaml", prepare, None), tmp_path / "package"))
    asked: dict[str, Any] = {"encoder": "large", "vrc": False, "max_new_tokens": 8}
    found, expected = (
        VisionLanguageModel(p, threads=1).answer("What?", [picture(60, 90)], **asked).tokens
        for p in (result.output, tiny_float32)
    )
    assert found == expected


def test_where_nothing_is_quantized_awq_searches_nothing(llama: Path, tmp_path: Path, float_logits: np.ndarray) -> None:
    result = build(request(llama, write(tmp_path / "mine.yaml", {"awq": {}}, None), tmp_path / "package"))
    (planned,) = steps(result.journal, "PlanFactors")
    assert planned.changed == 0
    assert "none of it is quantized, so a search has no error to compare" in {s.reason for s in planned.skipped}
    assert relative(TextScorer(result.output, threads=1).logits(IDS), float_logits) == 0


# Factors.


def float_model(checkpoint: Path) -> Bundle:
    bundle = export_bundle(Checkpoint.open(checkpoint))
    for step in structural_passes(bundle.facts, load_target("cpu")):
        step.run(bundle)
    KeepAllLogits().run(bundle)
    return bundle


def whole_statistics(checkpoint: Path, samples: list[np.ndarray]) -> dict[str, InputStatistics]:
    """By first node, of what every group reads when onnxruntime runs the whole float graph, sample by sample."""
    graph = float_model(checkpoint).components["model"].graph
    groups = {str(g.nodes[0].name): g.input for g in linear_groups(graph)}
    known = {v.name for v in graph.outputs}
    graph.outputs.extend(v for v in groups.values() if v.name not in known)
    running = session(ir.Model(graph, ir_version=10))
    past = {
        i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in running.get_inputs() if "past" in i.name
    }
    rows: dict[str, list[np.ndarray]] = {name: [] for name in groups}
    for ids in samples:
        feeds = {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64), **past}
        made = running.run([str(v.name) for v in groups.values()], feeds)
        for name, values in zip(groups, made, strict=True):
            rows[name].append(values.reshape(-1, values.shape[-1]).astype(np.float64))
    found = {}
    for name, parts in rows.items():
        x = np.concatenate(parts)
        gram = (x.T @ x / len(x)).astype(np.float32)
        found[name] = InputStatistics(
            gram, np.abs(x).mean(0).astype(np.float32), np.abs(x).max(0).astype(np.float32), len(x)
        )
    return found


def stopping_at(stage: str, after: int = 0) -> Callable[[str, int, int], None]:
    """Progress that stops a build when it was told of exactly this more than so often."""
    told = [0]

    def progress(what: str, done: int, total: int) -> None:
        told[0] += what == stage
        if told[0] > after:
            raise StoppedError

    return progress


def found_factors(
    checkpoint: Path, recipe: str, directory: Path, component: str = "model", nodes: Iterable[str] = INPUTS
) -> dict[str, dict[str, np.ndarray]]:
    """The factors and their inverse by first node, from the state of a build that stops before it writes."""
    asked = request(checkpoint, recipe, directory / "stopped")
    with pytest.raises(StoppedError):
        build(asked, stopping_at("package"))
    return {first: load_file(key_path(asked.state_directory, f"factors.{component}.{first}")) for first in nodes}


def rounded(rows: np.ndarray) -> np.ndarray:
    return round_to_nearest(np.ascontiguousarray(rows), FORMAT).dequantize(rows.shape[1])


def shared_channels(first: str, size: int) -> np.ndarray:
    """The value channel of each input: two query heads of 16 read one value head."""
    if "o_proj" not in first:
        return np.arange(size)
    head = 16
    return np.array([(channel // head // 2) * head + channel % head for channel in range(size)])


def expected_factors(
    checkpoint: Path, statistics: dict[str, InputStatistics], prepare: dict[str, Any]
) -> dict[str, np.ndarray]:
    """By the definitions: peaks first, then a search on inputs that were divided by them."""
    tensors, expected = load_file(checkpoint / "model.safetensors"), {}
    for first, nodes in INPUTS.items():
        weights, seen = [tensors[f"{node}.weight"] for node in nodes], statistics[first]
        channels, factors = shared_channels(first, seen.peak.size), np.ones(seen.peak.size, np.float32)
        if "smooth" in prepare:
            factors = smooth_factors(weights, seen, channels, **prepare["smooth"])
            seen = InputStatistics(
                seen.gram / np.outer(factors, factors), seen.mean_abs / factors, seen.peak / factors, seen.count
            )
        if "awq" in prepare:
            scaled = [weight * factors for weight in weights]
            factors = factors * awq_factors(scaled, [rounded] * len(nodes), seen, channels, **prepare["awq"]).factors
        expected[first] = factors
    return expected


@pytest.mark.parametrize(
    "prepare",
    [{"awq": {}}, {"awq": {"exponents": 5, "rows": 7}}, {"smooth": {"exponent": 0.7}}, {"smooth": {}, "awq": {}}],
    ids=str,
)
@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_factors_are_those_of_the_float_model(
    llama: Path, tmp_path: Path, prepare: dict[str, Any], solver: str
) -> None:
    recipe = write(tmp_path / "mine.yaml", prepare, solver)
    inputs = plan_build(request(llama, recipe, tmp_path / "package")).inputs
    assert inputs is not None
    statistics = whole_statistics(llama, [s.ids for s in inputs.samples if isinstance(s, TextSample)])
    expected, found = expected_factors(llama, statistics, prepare), found_factors(llama, recipe, tmp_path)
    for first, factors in expected.items():
        np.testing.assert_allclose(found[first]["factors"], factors, rtol=1e-4, err_msg=first)
        inverse = np.ones(found[first]["inverse"].size)
        for channel, factor in zip(shared_channels(first, factors.size), factors, strict=True):
            inverse[channel] = 1 / factor
        np.testing.assert_allclose(found[first]["inverse"], inverse, rtol=1e-4, err_msg=first)
    assert max(factors.max() / factors.min() for factors in expected.values()) > 1.5


@pytest.mark.parametrize("encoder", ["base", "large"])
def test_factors_of_an_encoder_are_those_of_all_images(
    tiny_checkpoint: Path, tiny_float32: Path, tmp_path: Path, encoder: str
) -> None:
    recipe = write(tmp_path / "mine.yaml", {"smooth": {"roles": ["vision_encoder"], "exponent": 1}})
    inputs = plan_build(request(tiny_checkpoint, recipe, tmp_path / "package")).inputs
    assert inputs is not None
    graph = float_model(tiny_checkpoint).components[f"vision_{encoder}"].graph
    groups = {str(g.nodes[0].name): g.input for g in linear_groups(graph)}
    normed = {name: value for name, value in groups.items() if name.endswith(("q_proj", "fc1"))}
    graph.outputs.extend(normed.values())
    running = session(ir.Model(graph, ir_version=10))
    vision = Vision(tiny_float32, Manifest.load(tiny_float32), VisionSettings(99), threads=1)
    peaks = {name: np.zeros(1, np.float32) for name in normed}
    for image in inputs.images:
        tiles = vision.see(image.picture.pixels(), compress=True).pieces
        made = running.run([str(v.name) for v in normed.values()], {"pixel_values": tiles})
        for name, values in zip(normed, made, strict=True):
            peaks[name] = np.maximum(peaks[name], np.abs(values).reshape(-1, values.shape[-1]).max(0))
    found = found_factors(tiny_checkpoint, recipe, tmp_path, f"vision_{encoder}", normed)
    assert len(found) == 2 * (2 if encoder == "base" else 3)
    for name, peak in peaks.items():  # with an exponent of 1, factors are the peaks
        np.testing.assert_allclose(found[name]["factors"], peak, rtol=1e-4, err_msg=name)


def test_factors_are_in_the_package(llama: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "mine.yaml", {"awq": {}})
    found = found_factors(llama, recipe, tmp_path)
    package = build(request(llama, recipe, tmp_path / "package")).output
    tensors, nodes = load_file(llama / "model.safetensors"), {n.name: n for n in ir.load(package / "model.onnx").graph}
    norms = {v.name: v for n in nodes.values() for v in n.inputs if v is not None and "norm" in str(v.name)}
    for layer in (0, 1):
        parts = {"input_layernorm": "self_attn.q_proj", "post_attention_layernorm": "mlp.gate_proj"}
        for norm, first in parts.items():
            name = f"model.layers.{layer}.{norm}.weight"
            factors = found[f"model.layers.{layer}.{first}"]["factors"]
            stored = norms[name].const_value
            assert stored is not None
            np.testing.assert_allclose(stored.numpy(), tensors[name] / factors, rtol=1e-5)
        first = f"model.layers.{layer}.mlp.down_proj"
        packed, scales = (nodes[first].inputs[i] for i in (1, 2))
        expected = round_to_nearest(tensors[f"{first}.weight"] * found[first]["factors"], FORMAT)
        assert packed is not None
        assert packed.const_value is not None
        levels = np.stack([packed.const_value.numpy() & 15, packed.const_value.numpy() >> 4], -1)
        np.testing.assert_array_equal(levels.reshape(expected.levels.shape), expected.levels)
        assert scales is not None


def test_solvers_see_the_model_with_its_factors(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[InputStatistics] = []
    entry = CALIBRATED["gptq"]

    def prepare(statistics: InputStatistics, format: WeightFormat, options: Any) -> Any:
        seen.append(statistics)
        return entry.prepare(statistics, format, options)

    monkeypatch.setitem(CALIBRATED, "gptq", type(entry)("gptq", entry.options, prepare))
    recipe = write(tmp_path / "mine.yaml", {"smooth": {}}, "gptq")
    first = next(iter(INPUTS))
    inputs = plan_build(request(llama, recipe, tmp_path / "package")).inputs
    assert inputs is not None
    factors = found_factors(llama, recipe, tmp_path)[first]["factors"]
    plain = whole_statistics(llama, [s.ids for s in inputs.samples if isinstance(s, TextSample)])[first].gram
    np.testing.assert_allclose(seen[0].gram, plain / np.outer(factors, factors), atol=1e-4 * seen[0].gram.max())


# Stopped builds, threads, rebuilds.


@pytest.mark.parametrize(
    ("stage", "after", "left"),
    [("calibrate model (factors)", 3, 5), ("calibrate model", 0, 0), ("calibrate model", 4, 0), ("package", 0, 0)],
    ids=str,
)
def test_a_stopped_build_goes_on_with_the_factors_that_it_knows(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, after: int, left: int
) -> None:
    recipe = write(tmp_path / "mine.yaml", {"awq": {}}, "gptq")
    whole = contents(build(request(llama, recipe, tmp_path / "whole")).output)
    asked, searched = request(llama, recipe, tmp_path / "package"), []
    with pytest.raises(StoppedError):
        build(asked, stopping_at(stage, after))
    assert asked.state_directory.is_dir()

    def counted(*arguments: Any, **options: Any) -> Any:
        searched.append(arguments)
        return awq_factors(*arguments, **options)

    monkeypatch.setattr(finding, "awq_factors", counted)
    assert contents(build(asked).output) == whole
    assert len(searched) == left


def test_the_package_does_not_depend_on_the_number_of_threads_and_is_made_again(llama: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "mine.yaml", PREPARATIONS["all"][0], "gptq")
    one, two = (build(request(llama, recipe, tmp_path / f"{n}", threads=n)).output for n in (1, 2))
    assert contents(one) == contents(two)
    assert rebuild(one, llama, threads=1).files > 3


def test_progress_counts_both_walks(llama: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    recipe = write(tmp_path / "mine.yaml", {"awq": {}}, "gptq")
    build(request(llama, recipe, tmp_path / "package"), lambda *step: told.append(step))
    walks = {name: [s[1:] for s in told if s[0] == name] for name in ("calibrate model (factors)", "calibrate model")}
    for steps_of_walk in walks.values():
        assert [done for done, _ in steps_of_walk] == list(range(1, steps_of_walk[-1][1] + 1))
    assert list(dict.fromkeys(s[0] for s in told if s[0] in walks)) == list(walks)


def test_a_search_has_its_time_in_the_plan(llama: Path, tmp_path: Path) -> None:
    def seconds(prepare: dict[str, Any], solver: str) -> float:
        planned = plan_build(request(llama, write(tmp_path / "mine.yaml", prepare, solver), tmp_path / "package"))
        assert planned.estimate.calibration_seconds is not None
        return planned.estimate.calibration_seconds

    search, solving = seconds({"awq": {}}, "rtn"), seconds({}, "gptq")
    assert search > 0
    assert seconds({"awq": {}}, "gptq") == pytest.approx(search + solving)


def test_a_sensitivity_is_that_of_the_rotated_model(llama: Path, tmp_path: Path) -> None:
    how = SensitivityOptions((FormatSpec(bits=4, block_size=32),), samples=2, tokens=16, loss=False, cache=tmp_path)
    checkpoint, target = Checkpoint.open(llama), load_target("cpu")
    asked: tuple[dict[str, Any], ...] = ({}, {"rotate": {}})
    recipes = [load_recipe(write(tmp_path / "mine.yaml", prepare)) for prepare in asked]
    found = [measure(checkpoint, llama, recipe, target, how) for recipe in recipes]
    weights = [{weight for part in one.parts for weight in part.weights} for one in found]
    assert weights[1] - weights[0] == {"residual.rotate.weight", "model.norm.unrotate.weight"}


# What is refused.


@pytest.mark.parametrize("prepare", [{"rotate": {}}, {"smooth": {}}, {"awq": {}}], ids=str)
def test_stored_levels_are_not_prepared(tmp_path: Path, prepare: dict[str, Any]) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_0")
    asked = request(tmp_path / "model.gguf", write(tmp_path / "mine.yaml", prepare), tmp_path / "package")
    told: list[str] = []
    for attempt in (build, plan_build):
        with pytest.raises(UserError) as error:
            attempt(asked, lambda what, *_: told.append(what))
        problems = {p.code: p for p in error.value.problems or (error.value,)}
        assert next(iter(prepare)) in problems["prepare.stored"].cause
    assert "calibrate" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "model.gguf"]


@pytest.mark.parametrize("role", ["embedding", "front", "vision_merger"])
@pytest.mark.parametrize("kind", ["smooth", "awq"])
def test_factors_are_for_components_that_are_calibrated(tmp_path: Path, kind: str, role: str) -> None:
    with pytest.raises(UserError, match=f"prepare.{kind}.roles.0: ") as error:
        load_recipe(write(tmp_path / "mine.yaml", {kind: {"roles": [role]}}))
    assert error.value.code == "spec.invalid"


def test_a_role_that_the_model_does_not_have_is_in_the_journal(llama: Path, tmp_path: Path) -> None:
    result = build(request(llama, write(tmp_path / "mine.yaml", {"smooth": BOTH}), tmp_path / "package"))
    (planned,) = steps(result.journal, "PlanFactors")
    assert ("vision_encoder", "the model has none") in {(s.where, s.reason) for s in planned.skipped}


def test_a_rotation_alone_needs_no_data(llama: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "mine.yaml", {"rotate": {}})
    assert plan_build(request(llama, recipe, tmp_path / "package")).inputs is None
    with pytest.raises(UserError) as error:
        plan_build(request(llama, recipe, tmp_path / "package", samples=4))
    assert error.value.code == "calibration.unused"


def test_factors_of_encoders_need_images(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "mine.yaml", {"awq": {"roles": ["vision_encoder"]}}, source="text")
    with pytest.raises(UserError) as error:
        plan_build(request(tiny_checkpoint, recipe, tmp_path / "package"))
    assert error.value.code == "calibration.modality"


def test_towers_alone_get_no_factors(tmp_path: Path) -> None:
    checkpoint = save_vision(tmp_path / "siglip", "siglip_vision_model")
    with pytest.raises(UserError) as error:
        plan_build(request(checkpoint, write(tmp_path / "mine.yaml", {"awq": BOTH}), tmp_path / "package"))
    assert "calibration.kind" in {p.code for p in error.value.problems or (error.value,)}


@pytest.mark.parametrize("name", ["w4a16-awq", "w4a16-awq-gptq"])
def test_a_shipped_recipe_quantizes_a_tower_alone_without_data(tmp_path: Path, name: str) -> None:
    checkpoint = save_vision(tmp_path / "siglip", "siglip_vision_model")
    assert plan_build(request(checkpoint, name, tmp_path / "package")).inputs is None


@pytest.mark.parametrize("name", ["w4a16-awq", "w4a16-awq-gptq"])
def test_a_shipped_recipe_builds(tmp_path: Path, name: str) -> None:
    checkpoint = save_text(tmp_path / "llama", "llama", tie_word_embeddings=True, max_position_embeddings=512)
    result = build(request(checkpoint, name, tmp_path / "package", samples=2))
    (folded,) = steps(result.journal, "ScaleChannels")
    assert folded.changed == len(INPUTS)
    assert result.memory.unshared < 1.1 * result.estimate.memory_bytes
