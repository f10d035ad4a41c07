"""Whole builds with solvers that need data: what they are calibrated on, and what comes out."""

import copy
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime_genai as og
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from hvlc import cli
from hvlc.calibration.engine import Calibration
from hvlc.calibration.samples import ImageSample, TextSample
from hvlc.errors import UserError
from hvlc.manifest.manifest import Manifest
from hvlc.runtime.logits import TextScorer
from hvlc.runtime.settings import VisionSettings
from hvlc.runtime.vision import Vision
from hvlc.solvers.registry import CALIBRATED
from hvlc.solvers.statistics import InputStatistics
from hvlc.weights.formats import WeightFormat
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.calibrate import calibrate as calibrating
from tests.export.tiny_families import save_text, save_vision
from tests.helpers.calibration import contents, request, write_recipe
from tests.helpers.tiny import picture
from tests.helpers.tolerances import GRAPH_FLOAT32

Command = Callable[..., tuple[int, Any]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Exit code and parsed output of `hvlc ARGUMENTS --json`."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> tuple[int, Any]:
        capsys.readouterr()
        try:
            cli.main([*map(str, arguments), "--json"])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, json.loads(capsys.readouterr().out)

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied decoder."""
    return save_text(tmp_path_factory.mktemp("calibrate") / "llama", "llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def recipe(llama: Path) -> str:
    return write_recipe(llama.parent / "gptq.yaml")


@pytest.fixture(scope="module")
def package(llama: Path, recipe: str) -> Path:
    """The llama, calibrated."""
    return build(request(llama, recipe, llama.parent / "package")).output


def constant(node: ir.Node, position: int) -> np.ndarray:
    """What a node reads, behind the Cast that widens scales."""
    value = node.inputs[position]
    assert value is not None
    producer = value.producer()
    stored = value if producer is None else producer.inputs[0]
    assert stored is not None
    assert stored.const_value is not None
    return stored.const_value.numpy()


def simulated(checkpoint: Path, package: Path, directory: Path) -> Path:
    """The checkpoint with the weights that the levels of a package stand for; a tied head gets weights of its own."""
    shutil.copytree(checkpoint, directory)
    tensors = load_file(directory / "model.safetensors")
    for node in ir.load(package / "model.onnx").graph:
        if node.op_type != "MatMulNBits":
            continue
        rows, columns = (node.attributes[name].as_int() for name in "NK")
        packed = constant(node, 1)
        levels = np.stack([packed & 15, packed >> 4], -1).reshape(rows, -1)
        scales = np.repeat(constant(node, 2).astype(np.float32).reshape(rows, -1), 32, 1)
        values = ((levels.astype(np.float32) - 8) * scales)[:, :columns]
        path, _, leaves = str(node.name).rpartition(".")
        start = 0
        for leaf in leaves.split("+"):
            name = f"{path}.{leaf}.weight" if path else "lm_head.weight"
            like = tensors.get(name, tensors["model.embed_tokens.weight"])
            tensors[name] = np.ascontiguousarray(values[start : start + len(like)])
            start += len(like)
        assert start == rows
    assert "lm_head.weight" in tensors
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"].copy()  # the table is looked up in its levels
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return directory


@pytest.fixture(scope="module")
def simulation(llama: Path, package: Path) -> torch.nn.Module:
    directory = simulated(llama, package, llama.parent / "simulated")
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def test_the_package_says_what_its_levels_say(package: Path, simulation: torch.nn.Module, llama: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 200, 40)
    with torch.no_grad():
        expected = simulation(torch.from_numpy(ids)[None]).logits[0].numpy()
        plain = AutoModelForCausalLM.from_pretrained(llama)(torch.from_numpy(ids)[None]).logits[0].numpy()
    found = TextScorer(package, threads=1).logits(ids)
    np.testing.assert_allclose(found, expected, atol=20 * GRAPH_FLOAT32)
    assert np.abs(found - plain).max() > 0.05


def test_the_package_runs_in_onnxruntime_genai(package: Path) -> None:
    model = og.Model(str(package))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=24, min_length=24)
    generator = og.Generator(model, parameters)
    ids = np.arange(1, 9, dtype=np.int32)
    generator.append_tokens(ids)
    scorer = TextScorer(package, threads=1)
    for _ in range(6):
        generator.generate_next_token()
    sequence = np.array(generator.get_sequence(0), np.int64)
    said = scorer.logits(sequence)
    assert len(sequence) == 14
    for at in range(8, 14):  # greedy, up to what another kernel rounds otherwise
        assert said[at - 1].max() - said[at - 1][sequence[at]] < 1e-3


def test_a_tied_table_reads_the_calibrated_bytes_of_the_head(package: Path) -> None:
    graph = onnx.load(package / "model.onnx", load_external_data=False).graph
    places = {i.name: {e.key: e.value for e in i.external_data} for i in graph.initializer}
    (table,) = [n for n in graph.node if n.op_type == "GatherBlockQuantized"]
    (head,) = [n for n in graph.node if n.op_type == "MatMulNBits" and n.name.endswith("lm_head")]
    assert places[table.input[0]]["offset"] == places[head.input[1]]["offset"]
    assert places[table.input[0]]["length"] == places[head.input[1]]["length"]


def test_calibration_is_better_than_rounding_where_it_was_calibrated(llama: Path, package: Path) -> None:
    inputs = plan_build(request(llama, "w4a16-rtn", llama.parent / "rtn")).inputs
    assert inputs is None
    rounded = build(request(llama, write_recipe(llama.parent / "rtn.yaml", solver="rtn"), llama.parent / "rtn")).output
    prepared = plan_build(request(llama, str(llama.parent / "gptq.yaml"), llama.parent / "other"))
    assert prepared.inputs is not None
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    errors = {}
    for name, directory in {"rtn": rounded, "gptq": package}.items():
        scorer, missed = TextScorer(directory, threads=1), []
        for sample in prepared.inputs.samples:
            assert isinstance(sample, TextSample)
            with torch.no_grad():
                wanted = model(torch.from_numpy(sample.ids)[None]).logits[0].numpy()
            missed.append(np.square(scorer.logits(sample.ids) - wanted).mean())
        errors[name] = np.mean(missed)
    assert errors["gptq"] < 0.9 * errors["rtn"]


def test_a_layer_is_calibrated_on_what_the_quantized_layers_before_it_say(
    llama: Path,
    recipe: str,
    package: Path,
    simulation: torch.nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    seen: list[InputStatistics] = []
    entry = CALIBRATED["gptq"]

    def prepare(statistics: InputStatistics, format: WeightFormat, options: Any) -> Any:
        seen.append(replace(statistics, gram=statistics.gram.copy()))
        return entry.prepare(statistics, format, options)

    monkeypatch.setitem(CALIBRATED, "gptq", replace(entry, prepare=prepare))
    asked = request(llama, recipe, tmp_path / "package")
    inputs = plan_build(asked).inputs
    assert inputs is not None
    build(asked)
    names = [
        f"model.layers.{layer}.{linear}"
        for layer in (0, 1)
        for linear in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    ] + ["lm_head"]
    assert len(seen) == len(names)
    ids = [sample.ids for sample in inputs.samples if isinstance(sample, TextSample)]
    float_model, walked = AutoModelForCausalLM.from_pretrained(llama), copy.deepcopy(simulation)
    walked.get_input_embeddings().weight = float_model.get_input_embeddings().weight  # its levels are solved last
    quantized, plain = grams(walked, names, ids), grams(float_model, names, ids)
    for index, (name, found) in enumerate(zip(names, seen, strict=True)):
        assert found.count == sum(map(len, ids))
        np.testing.assert_allclose(found.gram, quantized[name], atol=1e-3 * quantized[name].max(), err_msg=name)
        assert index == 0 or np.abs(found.gram - plain[name]).max() > 5e-3 * quantized[name].max()


def grams(model: torch.nn.Module, names: list[str], samples: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The mean of `x x^T` over all positions of what some linears are given, in float64."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    modules = dict(model.named_modules())
    for name in names:
        modules[name].register_forward_pre_hook(
            lambda module, args, name=name: found[name].append(args[0].detach().numpy().reshape(-1, args[0].shape[-1]))
        )
    with torch.no_grad():
        for ids in samples:
            model(torch.from_numpy(ids)[None])
    rows = {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items()}
    return {name: x.T @ x / len(x) for name, x in rows.items()}


# HyperVL.


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Mapping[str, np.ndarray]]]:
    """The feeds of every component that is calibrated."""
    found: dict[str, list[Mapping[str, np.ndarray]]] = {}

    class Spied(Calibration):
        def run(self, *arguments: Any) -> Any:
            found[self.component.name] = [dict(feed) for feed in self.feeds]
            return super().run(*arguments)

    monkeypatch.setattr(calibrating, "Calibration", Spied)
    return found


def test_both_encoders_are_driven_and_the_decoder_sees_both(
    tiny_checkpoint: Path, tmp_path: Path, fed: dict[str, list[Mapping[str, np.ndarray]]]
) -> None:
    asked = request(tiny_checkpoint, write_recipe(tmp_path / "gptq.yaml"), tmp_path / "package")
    result = build(asked)
    inputs = plan_build(replace(asked, force=True)).inputs
    assert inputs is not None
    assert set(fed) == {"vision_base", "vision_large", "model"}
    vision = Vision(result.output, Manifest.load(result.output), VisionSettings(99), threads=1)
    assert len(inputs.samples) == 4
    for index, sample in enumerate(inputs.samples):
        assert isinstance(sample, ImageSample)
        assert sample.prompt is not None
        image = vision.see(sample.picture.pixels(), compress=True)
        for name in ("vision_base", "vision_large"):
            np.testing.assert_allclose(fed[name][index]["pixel_values"], image.pieces, atol=1e-6)
        ids = sample.prompt.ids(image.ids)
        embeds = fed["model"][index]["inputs_embeds"]
        assert embeds.shape[:2] == (1, len(ids))
        seen = embeds[0, ids == vision.images.token]
        by_encoder = {name: vision.encode([image], name).features[0] for name in ("base", "large")}
        mine, other = ("base", "large") if index % 2 == 0 else ("large", "base")
        np.testing.assert_allclose(seen, by_encoder[mine], atol=1e-3)
        assert np.abs(seen - by_encoder[other]).max() > 0.1
    assert set(result.manifest.sources.model_dump()) >= {"calibration", "calibration_name", "calibration_samples"}
    assert result.manifest.sources.calibration_name == "documents"
    assert result.manifest.sources.calibration_samples == 4
    assert result.manifest.sources.calibration == inputs.digest


def test_text_alone_calibrates_the_decoder_of_a_model_that_sees(
    tiny_checkpoint: Path, tmp_path: Path, fed: dict[str, list[Mapping[str, np.ndarray]]]
) -> None:
    recipe = write_recipe(tmp_path / "gptq.yaml", encoders=False)
    build(request(tiny_checkpoint, recipe, tmp_path / "package", calibration="text"))
    assert [feed["inputs_embeds"].shape[:2] for feed in fed["model"]] == [(1, 24)] * 4


def test_texts_of_one_length_run_together(llama: Path, recipe: str, tmp_path: Path, fed: dict[str, Any]) -> None:
    lines = ["short", "a line", "of six", "words", "Ω"]
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    build(request(llama, recipe, tmp_path / "package", calibration=str(tmp_path / "lines.jsonl"), samples=5))
    shapes = sorted(feed["input_ids"].shape for feed in fed["model"])
    assert shapes == [(1, 2), (2, 5), (2, 6)]


# What is refused.


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"calibration": "documents"}, "calibration.modality"),
        ({"calibration": "nothing.txt"}, "calibration.unreadable"),
        ({"calibration": "txet"}, "calibration.unknown"),
        ({"samples": 1}, "calibration.one_sample"),
    ],
)
def test_bad_inputs_are_found_before_the_work(
    llama: Path, recipe: str, tmp_path: Path, options: dict[str, Any], code: str
) -> None:
    told: list[str] = []
    for attempt in (build, plan_build):
        with pytest.raises(UserError) as error:
            attempt(request(llama, recipe, tmp_path / "package", **options), lambda what, *_: told.append(what))
        assert error.value.code == code
    assert "calibrate" not in told
    assert list(tmp_path.iterdir()) == []


def test_encoders_are_not_calibrated_on_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "gptq.yaml")
    with pytest.raises(UserError) as error:
        plan_build(request(tiny_checkpoint, recipe, tmp_path / "package", calibration="text"))
    assert error.value.code == "calibration.modality"


def test_towers_alone_are_not_calibrated(tmp_path: Path) -> None:
    checkpoint, recipe = save_vision(tmp_path / "siglip", "siglip_vision_model"), tmp_path / "gptq.yaml"
    write_recipe(recipe)
    recipe.write_text(recipe.read_text().replace('"role": "decoder"', '"role": "decoder", "optional": true'))
    with pytest.raises(UserError) as error:
        plan_build(request(checkpoint, str(recipe), tmp_path / "package"))
    assert "calibration.kind" in {p.code for p in error.value.problems or (error.value,)}


@pytest.mark.parametrize(
    ("spec", "cause", "fix"),
    [
        ({"options": {"dampign": 0.1}}, "no option 'dampign'", "did you mean 'damping'?"),
        ({"options": {"damping": 2.0}}, "damping 2.0 is not above 0", "range"),
        ({"options": {"damping": 0}}, "damping 0 is not above 0", "range"),
        ({"options": {"damping": True}}, "damping of gptq is True", "a number"),
        ({"options": {"act_order": 1}}, "act_order of gptq is 1", "true or false"),
        ({"solver": "rtn", "options": {"damping": 0.1}}, "rtn has no options", "leave them out"),
    ],
)
def test_settings_of_solvers_are_checked(
    llama: Path, tmp_path: Path, spec: dict[str, Any], cause: str, fix: str
) -> None:
    with pytest.raises(UserError) as error:
        plan_build(request(llama, write_recipe(tmp_path / "mine.yaml", **spec), tmp_path / "package"))
    assert error.value.code == "recipe.option"
    assert cause in error.value.cause
    assert fix in error.value.fix


def test_several_wrong_settings_come_together(llama: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "mine.yaml", options={"dampign": 0.1, "act_order": 3})
    with pytest.raises(UserError) as error:
        plan_build(request(llama, recipe, tmp_path / "package"))
    assert len({p.cause for p in error.value.problems}) == 2


def test_an_unknown_solver_is_named(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'gptq'") as error:
        plan_build(request(llama, write_recipe(tmp_path / "mine.yaml", solver="gtpq"), tmp_path / "package"))
    assert error.value.code == "recipe.solver"


def test_a_table_of_its_own_is_not_calibrated(tmp_path: Path) -> None:
    checkpoint, recipe = save_text(tmp_path / "llama", "llama"), tmp_path / "mine.yaml"
    write_recipe(recipe)
    content = json.loads(recipe.read_text())
    content["rules"].append({"role": "embedding", "quantize": {"bits": 4, "block_size": 32, "solver": "gptq"}})
    recipe.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        plan_build(request(checkpoint, str(recipe), tmp_path / "package"))
    assert error.value.code == "calibration.table"


@pytest.mark.parametrize(
    "options", [("--calibration", "text"), ("--samples", 4), ("--calibration-state", "state")], ids=lambda o: o[0]
)
@pytest.mark.parametrize("name", ["build", "plan"])
def test_options_of_calibration_are_refused_where_nothing_is_calibrated(
    command: Command, llama: Path, tmp_path: Path, options: tuple[object, ...], name: str
) -> None:
    code, found = command(name, llama, "--recipe", "w4a16-rtn", "-o", tmp_path / "package", *options)
    assert (code, found["error"]["code"]) == (2, "calibration.unused")
    assert str(options[0]) in found["error"]["fix"]


def test_numbers_that_overflow_are_told(tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "llama", "llama")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"] *= np.float32(1e25)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as error:
        build(request(checkpoint, write_recipe(tmp_path / "gptq.yaml"), tmp_path / "package"))
    assert error.value.code == "calibration.overflow"
    assert "layers.0.self_attn" in error.value.cause


# The command line, plans and rebuilds.


def test_the_command_line_builds_plans_and_verifies(
    command: Command, llama: Path, recipe: str, package: Path, tmp_path: Path
) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("Words that the user has. " * 60)
    output = tmp_path / "package"
    options = ("--recipe", recipe, "--calibration", text, "--samples", 3, "--threads", 1)
    code, planned = command("plan", llama, *options)
    assert code == 0
    assert planned["estimate"]["calibration_seconds"] > 0
    code, _built = command("build", llama, *options, "-o", output, "--calibration-state", tmp_path / "state")
    assert code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "package"]
    sources = Manifest.load(output).sources
    assert (sources.calibration_name, sources.calibration_samples) == ("mine", 3)
    assert contents(output)["model.onnx.data"] != contents(package)["model.onnx.data"]
    code, found = command("verify", output, "--rebuild", llama)
    assert (code, found["error"]["code"]) == (2, "package.calibration")
    assert "--calibration" in found["error"]["fix"]
    code, found = command("verify", output, "--rebuild", llama, "--calibration", "text")
    assert (code, found["error"]["code"]) == (2, "package.calibration")
    code, found = command("verify", output, "--rebuild", llama, "--calibration", text, "--threads", 1)
    assert (code, found["identical"]) == (0, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "package"]


def test_a_built_in_set_is_found_by_its_name(llama: Path, package: Path) -> None:
    assert rebuild(package, llama, threads=1).files > 3


def test_the_package_does_not_depend_on_the_number_of_threads(
    llama: Path, recipe: str, package: Path, tmp_path: Path
) -> None:
    assert contents(build(request(llama, recipe, tmp_path / "package", threads=2)).output) == contents(package)


def test_a_plan_has_the_memory_and_the_time_of_the_calibration(llama: Path, recipe: str, tmp_path: Path) -> None:
    asked = request(llama, recipe, tmp_path / "package")
    found = [plan_build(replace(asked, samples=n)).estimate.calibration_seconds for n in (4, 40, 400)]
    small, middle, large = (seconds for seconds in found if seconds is not None)
    assert 0 < small < middle
    assert large - small == pytest.approx((middle - small) * (400 - 4) / (40 - 4), rel=1e-6)  # solving takes its own
    assert plan_build(request(llama, "w4a16-rtn", tmp_path / "package")).estimate.calibration_seconds is None


def test_a_build_stays_below_the_memory_of_its_plan(llama: Path, recipe: str, tmp_path: Path) -> None:
    result = build(request(llama, recipe, tmp_path / "package"))
    assert result.memory.unshared < 1.1 * result.estimate.memory_bytes


def test_a_limit_of_memory_holds_for_the_calibration(llama: Path, recipe: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        build(request(llama, recipe, tmp_path / "package", max_memory=10_000_000))
    assert error.value.code == "memory.limit"


def test_an_asymmetric_8_bit_recipe_with_images_of_a_user(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        picture(40 + 30 * number, 60).save(tmp_path / "images" / f"{number}.png")
    recipe = write_recipe(tmp_path / "gptq.yaml", bits=8, symmetric=False, block_size=16)
    result = build(request(tiny_checkpoint, recipe, tmp_path / "package", calibration=str(tmp_path / "images")))
    assert result.manifest.sources.calibration_samples == 3
    solved = [a for a in result.plan.assignments if a.solver == "gptq"]
    assert {str(a.format) for a in solved} == {"int8 b16 asym f16"}
