"""Packages whose decoder runs in stages of fixed shapes, held against others: bisected, compared, read on a text."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hvlc.errors import UserError
from hvlc.package.layers import COMPILED
from hvlc.results import trace_points
from hvlc.results.bisection import Bisection
from hvlc.results.trace_points import Question
from hvlc.tracing.parts import Precision
from hvlc.workflows.bisect.bisect import Request, bisect, open_reference
from hvlc.workflows.bisect.opening import open_tracer
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from hvlc.workflows.evaluate.compare import EvaluationRequest, compare_models, open_models
from hvlc.workflows.evaluate.layerwise import weigh
from hvlc.workflows.evaluate.perplexity import evaluate_texts
from hvlc.zoo import documents
from tests.export.tiny_families import save_text
from tests.helpers.faults import FACTOR, FAULTS, planted
from tests.helpers.fixed_shapes import CHUNK, write_target
from tests.runtime.test_fixed import as_if_compiled, changed, deaf_head
from tests.workflows.test_fixed import BLOCKS, STATIC, write_recipe

PROMPT = "What is the total?"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.png"
    document, _ = next(documents.examples("heldout", 1, 0))
    document.image.crop((0, 0, 90, 50)).save(path)
    return path


@pytest.fixture(scope="module")
def built(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages of fixed shapes of the tiny checkpoint by recipe, and its int4 package for the CPU; read only."""
    root = tmp_path_factory.mktemp("staged")
    target, blocks = write_target(root / "npu.toml"), write_recipe(root / "blocks.yaml", **BLOCKS)
    asked = {"float32": (target, "float32"), "blocks": (target, blocks), "blocks on the CPU": ("cpu", blocks)}
    return {
        name: build(open_request(tiny_checkpoint, to, recipe, root / name, threads=1)).output
        for name, (to, recipe) in asked.items()
    }


@pytest.fixture(scope="module")
def ask(tiny_checkpoint: Path, image: Path) -> Iterator[Any]:
    """Bisects a package against the checkpoint that it was built from, which is loaded once."""
    opened: dict[Path, Any] = {}

    def open_once(directory: Path, manifest: Any, threads: int) -> Any:
        if directory not in opened:
            opened[directory] = open_reference(directory, manifest, threads)
        return opened[directory]

    def run(package: Path, reference: Path = tiny_checkpoint, **changes: Any) -> Bisection:
        return bisect(replace(Request(package, reference, PROMPT, (image,), max_new_tokens=6), **changes))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hvlc.workflows.bisect.bisect.open_reference", open_once)
        yield run


def beyond(found: Bisection) -> set[str]:
    return {stage.name for stage in found.stages if stage.departs}


@pytest.mark.parametrize(("recipe", "encoder"), [("float32", "base"), ("blocks", "large")])
def test_right_packages_depart_nowhere(built: dict[str, Path], ask: Any, recipe: str, encoder: str) -> None:
    found = ask(built[recipe], encoder=encoder)
    assert found.departs is None, (found.departing, found.hints)
    names = [stage.name for stage in found.stages]
    assert {"vision.layers.1", "projector", "merge", "decoder.layers.0", "decoder.layers.1", "decode"} <= set(names)
    errors = {stage.name: stage.own.relative for stage in found.stages}
    if recipe == "float32":
        assert max(error for error in errors.values() if error is not None) < 1e-4
    else:
        assert (errors["decoder.layers.0"] or 0) > 1e-3  # of 4 bits, which are compared with floats here


@pytest.mark.parametrize("first", ["float32", "cpu"])
def test_packages_of_both_kinds_are_each_others_reference(
    built: dict[str, Path], tiny_float32: Path, ask: Any, first: str
) -> None:
    sides = (built["float32"], tiny_float32)
    package, reference = sides if first == "float32" else sides[::-1]
    found = ask(package, reference)
    assert found.departs is None
    assert max(stage.own.relative or 0 for stage in found.stages) < 1e-4


@pytest.mark.parametrize(
    ("fault", "recipe", "hint"),
    [
        ("scaled projector weight", "float32", f"is {FACTOR} times the reference's"),
        ("swapped decoder layers", "float32", "weights are the reference's of model.language_model.layers.1"),
        ("wrong int4 scales", "blocks", f"weights are {FACTOR} times the reference's"),
    ],
)
def test_the_planted_stage_is_named(
    built: dict[str, Path], tmp_path: Path, ask: Any, fault: str, recipe: str, hint: str
) -> None:
    found = ask(planted(fault, built[recipe], tmp_path / "package"))
    assert found.departs == FAULTS[fault].stage
    assert any(hint in line for line in found.hints), found.hints
    others = {"decoder.layers.0", "decoder.layers.1"} if fault == "swapped decoder layers" else {found.departs}
    assert beyond(found) == others
    assert found.changed_files == ()


def test_a_fault_in_the_graph_for_tokens_alone_is_one_of_decoding(
    built: dict[str, Path], tmp_path: Path, ask: Any
) -> None:
    package = Path(shutil.copytree(built["float32"], tmp_path / "package"))
    model = onnx.load(package / "decoder_1_token.onnx", load_external_data=False)
    norm = next(n for n in model.graph.node if n.name.endswith("layers.1.post_attention_layernorm"))
    gain = next(t for t in model.graph.initializer if t.name == norm.input[1])
    if gain.data_location == onnx.TensorProto.EXTERNAL:
        gain = next(t for t in onnx.load(package / "decoder_1_token.onnx").graph.initializer if t.name == gain.name)
    wrong = numpy_helper.from_array(FACTOR * numpy_helper.to_array(gain), "wrong")
    model.graph.initializer.append(wrong)
    norm.input[1] = "wrong"
    onnx.save(model, package / "decoder_1_token.onnx")
    found = ask(package)
    assert found.departs == trace_points.DECODE
    assert found.departing is not None
    assert found.departing.detail == "most in decoder.layers.1"
    assert found.changed_files == ("decoder_1_token.onnx",)


def test_a_head_that_gives_another_row_than_the_one_it_is_asked_for_is_named(
    built: dict[str, Path], tmp_path: Path, ask: Any
) -> None:
    found = ask(changed(built["float32"], tmp_path / "package", "head_prompt.onnx", deaf_head))
    assert found.departs == trace_points.HEAD
    assert beyond(found) == {trace_points.HEAD, trace_points.DECODE}  # the first token of an answer comes from there


def test_levels_between_parts_are_rounded_as_the_package_rounds_them(tmp_path: Path) -> None:
    checkpoint, recipe = save_text(tmp_path / "checkpoint", "llama"), write_recipe(tmp_path / "static.yaml", **STATIC)
    target = write_target(tmp_path / "npu.toml", part_bytes=40_000)
    fixed, plain = (
        build(open_request(checkpoint, to, recipe, tmp_path / name, threads=1)).output
        for name, to in (("fixed", target), ("plain", "cpu"))
    )
    assert (fixed / "decoder_2_prompt.onnx").is_file()
    tracers = [open_tracer(package) for package in (fixed, plain)]
    made, expected = (t.trace(t.resolved(Question("abcdefgh" * 3, max_new_tokens=4))) for t in tracers)
    assert list(made) == list(expected)
    assert len(made[trace_points.TOKENIZATION]) > CHUNK
    for name in ("decoder.layers.0", "decoder.layers.1", trace_points.HEAD):
        np.testing.assert_allclose(made[name], expected[name], atol=2e-3 * np.abs(expected[name]).max())


def test_a_compiled_reference_hides_what_is_asked_of_it(
    built: dict[str, Path], tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvlc.runtime.providers._register", lambda provider: None)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    compiled = as_if_compiled(built["float32"], tmp_path / "compiled")
    with pytest.raises(UserError, match=r"bisect\.compiled.*does not show decoder\.layers\.0"):
        ask(built["float32"], compiled)


def test_stages_of_compiled_packages_are_their_components(
    built: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvlc.runtime.providers._register", lambda provider: None)
    tracer = open_tracer(as_if_compiled(built["blocks"], tmp_path / "compiled"))
    seen = Question(PROMPT, (np.zeros((40, 40, 3), np.uint8),), "base")
    found = {stage.label: stage for stage in tracer.stages(seen)}
    assert (tracer.is_compiled, tracer.layout.vision) == (True, {"base": None, "large": None})
    whole = ["vision_base", "stitching", "embedding", "merge", "decoder_1_prompt", "head_prompt"]
    assert list(found)[3:] == whole
    part = found["decoder_1_prompt"]
    assert (part.name, part.before, part.part) == ("decoder.layers.1", "merge", None)
    assert part.detail == "layers 0 to 1 at once: compiled for SM8750"
    assert part.precision == Precision(weights=4, activations=16, cache=16)
    assert found["vision_base"].precision == Precision(weights=8, activations=16)


def test_integers_between_binaries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvlc.runtime.providers._register", lambda provider: None)
    checkpoint, recipe = save_text(tmp_path / "checkpoint", "llama"), write_recipe(tmp_path / "static.yaml", **STATIC)
    target = write_target(tmp_path / "npu.toml", part_bytes=40_000)
    built = build(open_request(checkpoint, target, recipe, tmp_path / "static", threads=1)).output
    with pytest.raises(UserError, match=r"bisect\.compiled.*takes UINT16") as error:
        open_tracer(as_if_compiled(built, tmp_path / "compiled"))
    assert "--no-aot" in error.value.fix


# Compared.


def test_a_comparison_has_weights_and_values_of_stages(built: dict[str, Path], tmp_path: Path) -> None:
    dynamic, fixed = built["blocks on the CPU"], built["blocks"]
    for pair in ((dynamic, fixed), (fixed, dynamic)):
        asking = EvaluationRequest(encoders=("base",), count=1, max_new_tokens=4, traces=1)
        found = compare_models(open_models(pair), asking, work=tmp_path / pair[0].name).comparison
        assert {"decoder.layers.1", "decoder.head", "projector"} <= {one.stage for one in found.stages}
        assert all(one.relative_error is not None and one.relative_error < 1e-4 for one in found.stages)
        assert {layer.layer for layer in found.layers} >= {f"{found.layers[0].layer.split('.')[0]}.layers.0"}
        assert all(layer.relative_error == 0 for layer in found.layers)
        assert not found.plan
        assert not [note for note in found.notes if "not compared" in note or "no values" in note]
        kl = [run.measures["kl"] for run in found.runs if run.contestant != found.reference]
        assert [abs(k.value) < 1e-6 for k in kl] == [True]


def test_static_activations_per_channel_are_read(tiny_checkpoint: Path, tiny_float32: Path, tmp_path: Path) -> None:
    spec = {"bits": 8, "per_channel": True, "scale_type": "float32"}
    rules = [{"role": "vision_encoder", "quantize": spec}]
    static = {**STATIC, "static": {"range": "minmax", "roles": ["vision_encoder"]}, "rules": rules}
    recipe, target = write_recipe(tmp_path / "static.yaml", **static), write_target(tmp_path / "npu.toml")
    package = build(open_request(tiny_checkpoint, target, recipe, tmp_path / "package", threads=1)).output
    found = weigh({"float": tiny_float32, "npu": package}, {}, lambda *_: None)
    vision = {layer.layer: layer.relative_error for layer in found.layers if "vision" in layer.layer}
    matrices = [error for layer, error in vision.items() if "layers" in layer]
    assert 0 < max(matrices) < 0.02  # of 8 bits; transposed by mistake, they were 1 and more
    assert all(layer.relative_error == 0 for layer in found.layers if "vision" not in layer.layer)


def test_weights_inside_binaries_are_not_called_equal(built: dict[str, Path], tmp_path: Path) -> None:
    compiled = as_if_compiled(built["blocks"], tmp_path / "compiled")
    for name in ("decoder_1_prompt", "decoder_1_token", "head_prompt", "head_token", "vision_base", "vision_large"):
        _empty(compiled / f"{name}.onnx")
    found = weigh({"cpu": built["blocks on the CPU"], "chip": compiled}, {}, lambda *_: None)
    assert {layer.layer.partition(".")[0] for layer in found.layers} == {"embedding", "front"}
    (note,) = found.notes
    assert f"{COMPILED} (chip)" in note
    hidden = [change for change in found.plan if change.formats["chip"] == COMPILED]
    assert {"int4 b16 sym f16"} <= {change.formats["cpu"] for change in hidden}
    assert len(hidden) == len(found.plan) > 20


def _empty(path: Path) -> None:
    """What a compiled component's file holds of its weights."""
    model = onnx.load(path, load_external_data=False)
    del model.graph.initializer[:]
    del model.graph.node[:]
    onnx.save(model, path)


# Read.


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("speaking")
    checkpoint = save_text(root / "checkpoint", "llama")
    made = [
        build(open_request(checkpoint, to, "float32", root / name, threads=1)).output
        for name, to in (("dynamic", "cpu"), ("fixed", write_target(root / "npu.toml")))
    ]
    return made[0], made[1]


def test_a_text_has_one_perplexity_and_no_divergence(speaking: tuple[Path, Path], tmp_path: Path) -> None:
    text = tmp_path / "task.txt"
    text.write_text(" ".join(f"word {i} and {i * i % 97}" for i in range(200)), "utf-8")
    for order in (speaking, speaking[::-1]):
        first, second = evaluate_texts(order, text, against_first=True, tokens=160, window=2 * CHUNK + 8)
        assert len(first.windows) == len(second.windows) == 4
        assert second.reading.value == pytest.approx(first.reading.value, rel=1e-6)
        assert second.fidelity is not None
        assert abs(second.fidelity.kl.value) < 1e-9
        assert second.fidelity.top1.value == 1


def test_layers_of_no_one_sequence_are_refused(speaking: tuple[Path, Path], tmp_path: Path) -> None:
    package = Path(shutil.copytree(speaking[1], tmp_path / "package"))
    for phase in ("prompt", "token"):
        file = package / f"decoder_1_{phase}.onnx"
        model = onnx.load(file, load_external_data=False)
        for value in model.graph.input:
            if value.name.startswith("past_key_values.0."):
                renamed = value.name.replace(".0.", ".7.")
                for node in model.graph.node:
                    node.input[:] = [renamed if name == value.name else name for name in node.input]
                value.name = renamed
        onnx.save(model, file)
    with pytest.raises(UserError, match=r"bisect\.boundaries"):
        open_tracer(package)
