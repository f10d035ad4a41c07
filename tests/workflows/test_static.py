"""Whole builds with static activations and int8 caches: what they read of the calibration, and what they compute."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import onnxruntime_genai as og
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from hvlc.calibration.observation import Observers
from hvlc.calibration.samples import ImageSample, TextSample
from hvlc.errors import TargetError, UserError
from hvlc.export import export_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.graphs.plan import Plan
from hvlc.manifest.manifest import FLOAT_PRODUCTS, Manifest
from hvlc.passes.lists import structural_passes
from hvlc.passes.quantize.quantize_activations import calibrated_values
from hvlc.passes.quantize.quantize_weights import QuantizeWeights
from hvlc.passes.static.keep_all_logits import KeepAllLogits
from hvlc.runtime.generation import open_model
from hvlc.runtime.logits import TextScorer
from hvlc.runtime.vision import Vision
from hvlc.solvers.registry import SOLVERS
from hvlc.targets import load_target, target_path
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import open_request
from hvlc.workflows.calibrate import calibrate as calibrating
from tests.export.tiny_families import save_text, save_vision
from tests.helpers.calibration import StoppedError, request, stopping
from tests.helpers.sessions import session
from tests.helpers.tolerances import QUANTIZED_CACHE, STATIC_ACTIVATIONS

STATIC: dict[str, Any] = {"activations": "static", "static": {"range": "minmax"}}
LANGUAGES = ["llama", "smollm3"]  # tied; with a layer that rotates nothing. HyperVL's has head norms


def write_recipe(path: Path, solver: str = "rtn", bits: int = 4, block_size: int = 16, **settings: Any) -> str:
    """A recipe for decoder and encoders; the file's name."""
    spec = {"bits": bits, "block_size": block_size, "solver": solver}
    rules = [
        {"role": "decoder", "optional": True, "quantize": spec},
        {"role": "vision_encoder", "optional": True, "quantize": {**spec, "bits": 8, "solver": "rtn"}},
    ]
    content = {"schema_version": 1, "name": path.stem, "description": "static", "rules": rules, **settings}
    if settings or solver == "gptq":
        content["calibration"] = {"samples": 4, "tokens": 24}
    path.write_text(json.dumps(content), "utf-8")
    return str(path)


@dataclass(frozen=True)
class Built:
    """A checkpoint with its packages, all of the same levels; read only.

    Attributes:
        checkpoint: what was built.
        plain: weights alone.
        static: static activations too.
        cached: an int8 cache too.
        fed: the feeds of every component while `static` was calibrated.
    """

    checkpoint: Path
    plain: Path
    static: Path
    cached: Path
    fed: dict[str, list[dict[str, np.ndarray]]]


def spy(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, np.ndarray]]]:
    """Notes the feeds of every component that is calibrated."""
    found: dict[str, list[dict[str, np.ndarray]]] = {}

    class Spied(calibrating.Calibration):
        def run(self, *arguments: Any) -> Any:
            found[self.component.name] = [dict(feed) for feed in self.feeds]
            return super().run(*arguments)

    monkeypatch.setattr(calibrating, "Calibration", Spied)
    return found


def build_all(checkpoint: Path, root: Path) -> Built:
    with pytest.MonkeyPatch.context() as monkeypatch:
        plain = build(request(checkpoint, write_recipe(root / "plain.yaml"), root / "plain")).output
        fed = spy(monkeypatch)
        static = build(request(checkpoint, write_recipe(root / "static.yaml", **STATIC), root / "static")).output
        fed = dict(fed)
        recipe = write_recipe(root / "cached.yaml", kv_cache="int8")
        return Built(checkpoint, plain, static, build(request(checkpoint, recipe, root / "cached")).output, fed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """The packages of a tiny text decoder, by family."""
    root, known = tmp_path_factory.mktemp("static"), dict[str, Built]()

    def made(family: str) -> Built:
        if family not in known:
            (root / family).mkdir()
            checkpoint = save_text(root / family / "checkpoint", family, tie_word_embeddings=family == "llama")
            known[family] = build_all(checkpoint, root / family)
        return known[family]

    return made


@pytest.fixture(scope="module")
def llama(saved: Callable[[str], Built]) -> Built:
    return saved("llama")


@pytest.fixture(scope="module")
def hypervl(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_all(tiny_checkpoint, tmp_path_factory.mktemp("seeing"))


# What the package reads is what the graph computes with quantized weights.


def oracle(checkpoint: Path, plan: Plan | None) -> Bundle:
    """The float graphs with all positions; with a plan, with the levels of a package that nothing else was done to."""
    bundle = export_bundle(Checkpoint.open(checkpoint))
    for step in structural_passes(bundle.facts, load_target("cpu")):
        step.run(bundle)
    KeepAllLogits().run(bundle)
    if plan:
        QuantizeWeights(plan, SOLVERS).run(bundle)
    return bundle


def all_values(
    bundle: Bundle, component: str, feeds: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, list[np.ndarray]]:
    """Every value of a graph in float, of each sample, from one session that hands out all of them."""
    proto = ir.to_proto(bundle.components[component].model)
    known = {value.name for value in proto.graph.output}
    made = [name for node in proto.graph.node for name in node.output if name and name not in known]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    run = session(ir.from_proto(proto))
    names = [output.name for output in run.get_outputs()]
    found: dict[str, list[np.ndarray]] = {}
    for feed in feeds:
        for name, value in {**feed, **dict(zip(names, run.run(None, dict(feed)), strict=True))}.items():
            found.setdefault(name, []).append(value)
    return found


def initializers(package: Path, component: str) -> dict[str, np.ndarray]:
    model = onnx.load(package / f"{component}.onnx")
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def check_ranges(built: Built, component: str) -> None:
    recipe = built.static.parent / "static.yaml"
    plan = plan_build(request(built.checkpoint, str(recipe), built.static.parent / "other")).plan
    floats = oracle(built.checkpoint, None)
    names = calibrated_values(floats.components[component], plan)
    values, in_float = (
        all_values(bundle, component, built.fed[component]) for bundle in (oracle(built.checkpoint, plan), floats)
    )
    stored = initializers(built.static, component)
    assert len(names) > 20
    differences = []
    for name in names:
        low, high = (min(0, *(v.min() for v in values[name])), max(0, *(v.max() for v in values[name])))
        scale, zero = (stored[f"{name}.{part}"] for part in ("scale", "zero_point"))
        assert (scale.dtype, zero.dtype, scale.shape) == (np.float32, np.uint16, ())
        assert scale == pytest.approx((high - low) / 65535, rel=1e-4)
        assert int(zero) == pytest.approx(-low / scale, abs=8)  # 1e-4 of the range is 7 levels
        plain = max(0, *(v.max() for v in in_float[name])) - min(0, *(v.min() for v in in_float[name]))
        differences.append(abs(plain / (high - low) - 1))
    assert np.median(differences) > 5e-4  # float weights would have given other ranges


@pytest.mark.parametrize("family", LANGUAGES)
def test_scales_are_the_extremes_of_the_quantized_graph(saved: Callable[[str], Built], family: str) -> None:
    check_ranges(saved(family), "model")


@pytest.mark.parametrize("component", ["vision_base", "vision_large", "model"])
def test_scales_of_every_part_are_those_of_its_own_inputs(hypervl: Built, component: str) -> None:
    assert len(hypervl.fed[component]) == 4
    check_ranges(hypervl, component)


@pytest.mark.parametrize("family", LANGUAGES)
def test_scales_of_the_cache_bound_keys_and_values(saved: Callable[[str], Built], family: str) -> None:
    built = saved(family)
    plan = plan_build(request(built.checkpoint, str(built.plain.parent / "plain.yaml"), built.plain.parent / "x")).plan
    bundle = oracle(built.checkpoint, plan)
    values = all_values(bundle, "model", built.fed["model"])
    stored = initializers(built.cached, "model")
    attentions = [node for node in bundle.components["model"].graph if node.op_type == "GroupQueryAttention"]
    assert len(attentions) == 2
    for node in attentions:
        for kind, output in zip("kv", node.outputs[1:3], strict=True):
            rotated = kind == "k" and node.attributes.get_int("do_rotary", 0) == 1
            largest = np.zeros((2, 16))
            for sample in values[str(output.name)]:  # [batch, heads, positions, size]
                for head in range(2):
                    for i in range(16):
                        pair = sample[:, head, :, [i % 8, i % 8 + 8]] if rotated else sample[:, head, :, [i]]
                        largest[head, i] = max(largest[head, i], np.sqrt((pair.astype(np.float64) ** 2).sum(0)).max())
            np.testing.assert_allclose(stored[f"{node.name}.{kind}_scale"], largest.reshape(-1) / 127, rtol=1e-4)
    graph = onnx.load(built.cached / "model.onnx", load_external_data=False).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}
    assert {kinds[n] for n in kinds if n.startswith(("past", "present"))} == {onnx.TensorProto.INT8}


# What it computes.


@pytest.mark.parametrize("family", LANGUAGES)
def test_logits_stay_near_those_of_weights_alone(saved: Callable[[str], Built], family: str) -> None:
    built = saved(family)
    ids = built.fed["model"][0]["input_ids"][0]
    plain, static, cached = (TextScorer(p, threads=1).logits(ids) for p in (built.plain, built.static, built.cached))
    largest = np.abs(plain).max()
    assert 0 < np.abs(static - plain).max() <= STATIC_ACTIVATIONS * largest
    assert 0 < np.abs(cached - plain).max() <= QUANTIZED_CACHE * largest


def generate(package: Path, ids: np.ndarray, tokens: int = 12) -> tuple[list[int], np.ndarray]:
    """Greedy tokens, and the first layer's keys."""
    model = og.Model(str(package))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + tokens, min_length=len(ids) + tokens)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids.astype(np.int32))
    for _ in range(tokens):
        generator.generate_next_token()
    return generator.get_sequence(0)[len(ids) :].tolist(), np.array(generator.get_output("present.0.key"))


@pytest.mark.parametrize("family", LANGUAGES)
@pytest.mark.parametrize("kind", ["static", "cached"])
def test_onnxruntime_genai_says_what_the_package_scores_highest(
    saved: Callable[[str], Built], family: str, kind: str
) -> None:
    built, ids = saved(family), np.arange(1, 17)
    package = built.static if kind == "static" else built.cached
    tokens, keys = generate(package, ids)
    assert keys.dtype == (np.int8 if kind == "cached" else np.float32)
    said = TextScorer(package, threads=1).logits(np.array([*ids, *tokens]))
    slack = 2 * STATIC_ACTIVATIONS * np.abs(said).max()  # a level may fall the other way in another kernel
    for step, token in enumerate(tokens):
        logits = said[len(ids) - 1 + step]
        assert logits.max() - logits[token] <= slack
    assert len(set(tokens)) > 1


def first_image(built: Built) -> ImageSample:
    """Of the calibration: no value of it lies outside the ranges."""
    recipe = str(built.static.parent / "static.yaml")
    inputs = plan_build(request(built.checkpoint, recipe, built.static.parent / "other")).inputs
    assert inputs is not None
    return inputs.images[0]


@pytest.mark.parametrize("encoder", ["base", "large"])
def test_encoders_see_what_they_saw_and_the_fused_graph_too(hypervl: Built, encoder: str) -> None:
    plain, static = (Vision(p, Manifest.load(p), threads=1) for p in (hypervl.plain, hypervl.static))
    seen = plain.see(first_image(hypervl).picture.pixels(), compress=True)
    expected, found = (vision.encode([seen], encoder).features[0] for vision in (plain, static))
    assert 0 < np.abs(found - expected).max() <= STATIC_ACTIVATIONS * np.abs(expected).max()
    fused = ort.InferenceSession(str(hypervl.static / "vision_fused.onnx"), providers=["CPUExecutionProvider"])
    feeds = {
        "pixel_values": seen.pieces,
        "grid": seen.grid,
        "encoder_id": np.array([list(Manifest.load(hypervl.static).encoders).index(encoder)], np.int64),
    }
    joined = fused.run(["image_features"], feeds)[0]
    assert np.abs(joined - found).max() <= STATIC_ACTIVATIONS * np.abs(expected).max()


def test_questions_about_images_are_answered(hypervl: Built) -> None:
    """Along the plain package's answer: of random weights the best two tokens may be a near tie."""
    sample = first_image(hypervl)
    image = Image.fromarray(sample.picture.pixels())
    plain, static, cached = (open_model(path) for path in (hypervl.plain, hypervl.static, hypervl.cached))
    for encoder in ("base", "large"):
        asked: dict[str, Any] = {"encoder": encoder, "vrc": True}
        answer = plain.answer(sample.question, [image], max_new_tokens=6, **asked)
        assert answer.encoder == encoder
        assert answer.tokens
        expected, *found = (
            model.logits(sample.question, [image], answer.tokens, **asked) for model in (plain, static, cached)
        )
        # what the encoder rounds, the decoder's steps of 16 bits round again
        for logits, share in zip(found, (4 * STATIC_ACTIVATIONS, QUANTIZED_CACHE), strict=True):
            assert np.abs(logits - expected).max() <= share * np.abs(expected).max()


def test_the_operators_are_those_of_the_form(hypervl: Built) -> None:
    for component in ("model", "vision_base", "vision_large"):
        graph = onnx.load(hypervl.static / f"{component}.onnx", load_external_data=False).graph
        ops = {node.op_type for node in graph.node}
        assert {"QuantizeLinear", "DequantizeLinear", "MatMul"} <= ops
        assert "MatMulNBits" not in ops


@pytest.mark.parametrize(("block_size", "needed"), [(16, False), (64, True)])
def test_a_session_option_keeps_rows_of_8_bits_in_float(tmp_path: Path, block_size: int, needed: bool) -> None:
    checkpoint = save_text(tmp_path / "checkpoint", "llama", intermediate_size=128)
    recipes = [
        write_recipe(tmp_path / f"{name}.yaml", bits=8, block_size=block_size, **settings)
        for name, settings in {"plain": {}, "static": STATIC}.items()
    ]
    requests = [request(checkpoint, recipe, tmp_path / Path(recipe).stem) for recipe in recipes]
    sample = plan_build(requests[1]).inputs.samples[0]  # type: ignore[union-attr]
    assert isinstance(sample, TextSample)
    packages = [build(asked).output for asked in requests]
    options = json.loads((packages[1] / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert (FLOAT_PRODUCTS in options.items()) == needed
    plain, static = (TextScorer(package, threads=1).logits(sample.ids) for package in packages)
    assert np.abs(static - plain).max() <= STATIC_ACTIVATIONS * np.abs(plain).max()
    assert len(generate(packages[1], np.arange(1, 9))[0]) == 12


# Builds.


def contents(package: Path) -> dict[str, bytes]:
    """Graphs and data."""
    return {path.name: path.read_bytes() for path in sorted(package.glob("*.onnx*"))}


def test_a_build_goes_on_where_it_was_stopped(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "static.yaml", "gptq", **STATIC, kv_cache="int8")
    whole = contents(build(request(tiny_checkpoint, recipe, tmp_path / "whole")).output)
    asked = request(tiny_checkpoint, recipe, tmp_path / "package")
    with pytest.raises(StoppedError):
        build(asked, stopping("calibrate model", 6))
    kept = {path.name for path in asked.state_directory.iterdir() if "observed" in path.name}
    assert kept == {f"vision_{name}%2Fobserved.safetensors" for name in ("base", "large")}
    seen: list[str] = []
    put = Observers.put
    monkeypatch.setattr(
        Observers, "put", lambda self, state: (seen.append(self._observation.component), put(self, state))
    )
    assert contents(build(asked).output) == whole
    assert seen == ["model"]
    assert not asked.state_directory.exists()


def test_a_decoder_that_is_known_does_not_run_again(llama: Built, tmp_path: Path) -> None:
    recipe = str(llama.static.parent / "static.yaml")
    asked, told = request(llama.checkpoint, recipe, tmp_path / "package"), []
    with pytest.raises(StoppedError):
        build(asked, stopping("package", 0))
    build(asked, lambda what, *_: told.append(what))
    assert not [what for what in told if what.startswith("calibrate ")]
    assert contents(asked.output) == contents(llama.static)


def test_a_damaged_record_of_ranges_is_made_again(llama: Built, tmp_path: Path) -> None:
    recipe = str(llama.static.parent / "static.yaml")
    asked = request(llama.checkpoint, recipe, tmp_path / "package")
    with pytest.raises(StoppedError):
        build(asked, stopping("package", 0))
    (record,) = asked.state_directory.glob("*observed*")
    record.write_bytes(record.read_bytes()[:-4])
    result = build(asked)
    assert contents(result.output) == contents(llama.static)
    assert result.memory.unshared < 1.1 * result.estimate.memory_bytes


def test_a_package_is_made_again_to_the_byte(llama: Built) -> None:
    assert rebuild(llama.static, llama.checkpoint, threads=2).files > 3
    assert rebuild(llama.cached, llama.checkpoint, threads=2).files > 3


@pytest.mark.parametrize("kind", ["static", "cached"])
def test_a_plan_says_what_a_build_takes(tiny_checkpoint: Path, hypervl: Built, kind: str, tmp_path: Path) -> None:
    asked = request(tiny_checkpoint, str(hypervl.static.parent / f"{kind}.yaml"), tmp_path / "package")
    planned = plan_build(asked)
    assert planned.inputs is not None
    assert len(planned.inputs.samples) == 4
    assert planned.estimate.calibration_seconds is not None
    assert list(tmp_path.iterdir()) == []
    written = sum(path.stat().st_size for path in (hypervl.static.parent / kind).iterdir())
    assert planned.estimate.disk_bytes == pytest.approx(written, rel=0.1)


@pytest.mark.parametrize(("range", "dtype"), [("mse", "int16"), ("percentile", "uint16")])
def test_other_ranges_and_types_lie_within_the_extremes(llama: Built, tmp_path: Path, range: str, dtype: str) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", activations="static", static={"range": range, "dtype": dtype})
    found, extremes = (
        initializers(package, "model")
        for package in (build(request(llama.checkpoint, recipe, tmp_path / "package")).output, llama.static)
    )
    scales = [name for name in extremes if name.endswith(":0.scale") and extremes[name] != np.float32(1 / 65536)]
    assert len(scales) > 20
    assert all(found[name] <= 1.0001 * extremes[name] for name in scales)
    assert found[scales[0].replace(".scale", ".zero_point")].dtype == dtype


# What is refused.


def test_a_target_that_takes_neither_is_named_with_both(llama: Built, tmp_path: Path) -> None:
    lines = target_path("cpu").read_text("utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("activation_dtypes", "cache_dtypes"))]
    (tmp_path / "old.toml").write_text("\n".join(kept).replace('name = "cpu"', 'name = "old"', 1))
    recipe = write_recipe(tmp_path / "static.yaml", **STATIC, kv_cache="int8")
    with pytest.raises(TargetError) as error:
        plan_build(open_request(llama.checkpoint, str(tmp_path / "old.toml"), recipe, tmp_path / "package"))
    causes = [problem.cause for problem in error.value.problems]
    assert causes == ["old keeps no KV cache of int8", "old takes no static uint16 activations"]


def damaged(llama: Built, directory: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    import shutil

    shutil.copytree(llama.checkpoint, directory)
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("settings", [STATIC, {"kv_cache": "int8"}], ids=["activations", "cache"])
def test_values_that_are_no_numbers_are_refused(llama: Built, tmp_path: Path, settings: dict[str, Any]) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.input_layernorm.weight"][3] = np.nan

    checkpoint = damaged(llama, tmp_path / "checkpoint", change)
    recipe = write_recipe(tmp_path / "static.yaml", **settings)
    with pytest.raises(UserError) as error:
        build(request(checkpoint, recipe, tmp_path / "package"))
    assert error.value.code == "calibration.not_finite"
    assert not (tmp_path / "package").exists()


def test_values_that_are_always_0_are_named_at_once(llama: Built, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][:] = 0

    checkpoint = damaged(llama, tmp_path / "checkpoint", change)
    with pytest.raises(UserError) as error:
        build(request(checkpoint, write_recipe(tmp_path / "static.yaml", **STATIC), tmp_path / "package"))
    assert error.value.code == "calibration.range"
    assert len(error.value.problems) > 1
    assert any("up_proj" in problem.cause for problem in error.value.problems)


def test_encoders_need_images_and_towers_a_decoder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "static.yaml", **STATIC)
    with pytest.raises(UserError) as error:
        plan_build(request(tiny_checkpoint, recipe, tmp_path / "package", calibration="text"))
    assert error.value.code == "calibration.modality"
    cached = write_recipe(tmp_path / "cached.yaml", kv_cache="int8")
    assert plan_build(request(tiny_checkpoint, cached, tmp_path / "package", calibration="text")).inputs is not None
    tower = save_vision(tmp_path / "siglip", "siglip_vision_model")
    with pytest.raises(UserError) as error:
        plan_build(request(tower, recipe, tmp_path / "package"))
    assert error.value.code == "calibration.kind"
    assert plan_build(request(tower, cached, tmp_path / "package")).inputs is None  # it has no cache
