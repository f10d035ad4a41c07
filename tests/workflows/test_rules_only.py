"""Packages for targets that nothing here can compile for: they hold to the rules, and the CPU answers for them."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from rich.console import Console

from hvlc.errors import TargetError, UserError
from hvlc.graphs.placement import Placement
from hvlc.manifest.manifest import Manifest
from hvlc.report.builds import manifest_tables
from hvlc.runtime.generation import open_model
from hvlc.runtime.logits import TextScorer
from hvlc.runtime.providers import runs_on
from hvlc.targets import load_target
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import open_request
from hvlc.workflows.lint.lint import lint
from hvlc.zoo import nano_checkpoint
from tests.export.tiny_families import save_text
from tests.helpers.tiny import picture
from tests.helpers.tolerances import GRAPH_FLOAT32

#: Where the vision encoders run, and the name of the provider that their session is told.
ENCODERS = {
    "coreml-ane": (Placement.NPU, "CoreML"),
    "openvino-npu": (Placement.NPU, "OpenVINO"),
    "webgpu": (Placement.GPU, "WebGPU"),
    "xnnpack": (Placement.CPU, "XNNPACK"),
}
TWIN = """
schema_version = 1
extends = "cpu"
name = "twin"
description = "the CPU with the scales that webgpu takes"
block_formats = [
    {bits = 4, block_sizes = [32], zero_points = true, negative_scales = false, evidence = "run", source = "a test"},
]
"""
RECIPE = "w4a16-float-vision"  # the one of four bits that all of them take


@pytest.fixture(scope="module")
def on_cpu(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cpu") / "package"
    return build(open_request(tiny_checkpoint, "cpu", RECIPE, output, threads=1)).output


@pytest.fixture(scope="module", params=ENCODERS)
def package(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp(request.param) / "package"
    return build(open_request(tiny_checkpoint, request.param, RECIPE, output, threads=1)).output


@pytest.fixture(scope="module")
def twin(package: Path, on_cpu: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the CPU with the same levels: where the decoder runs elsewhere, of scales as they are there."""
    target = load_target(target_of(package))
    if target.leaves_to_cpu("decoder"):
        return on_cpu
    root = tmp_path_factory.mktemp("twin")
    (root / "twin.toml").write_text(TWIN, "utf-8")
    request = open_request(tiny_checkpoint, str(root / "twin.toml"), RECIPE, root / "package", threads=1)
    return build(request).output


def target_of(package: Path) -> str:
    return Manifest.load(package).sources.target_name


def test_the_graphs_hold_to_the_rules(package: Path) -> None:
    found = lint(package, load_target(target_of(package)))
    assert not found.refused(allow_hazards=False)
    judged = {graph.name: graph for graph in found.graphs if not graph.on_cpu}
    assert {"vision_base", "vision_large"} <= set(judged)
    assert all(graph.partitions for graph in judged.values())
    assert found.partial is any(graph.refused for graph in judged.values())


def test_the_graphs_of_the_cpu_do_not(on_cpu: Path) -> None:
    """WebGPU has onnxruntime's MultiHeadAttention, as the CPU, and not the standard Attention."""
    verdicts = {name: lint(on_cpu, load_target(name)).refused(allow_hazards=False) for name in ENCODERS}
    assert verdicts == {"coreml-ane": True, "openvino-npu": True, "webgpu": False, "xnnpack": False}


@pytest.mark.parametrize("encoder", ["base", "large"])
def test_the_stand_in_answers_like_the_package_of_the_cpu(package: Path, twin: Path, encoder: str) -> None:
    expected, found = open_model(twin), open_model(package)
    assert found.runs_on == f"onnxruntime CPU, standing in for {target_of(package)}"
    assert expected.runs_on == "onnxruntime CPU"
    images = [picture(70, 150, seed=1)]
    said = expected.answer("What is this?", images, encoder=encoder, vrc=True, max_new_tokens=12)
    again = found.answer("What is this?", images, encoder=encoder, vrc=True, max_new_tokens=12)
    assert again.tokens == said.tokens
    rows = [m.logits("What is this?", images, said.tokens, encoder=encoder, vrc=True) for m in (expected, found)]
    np.testing.assert_allclose(rows[1], rows[0], atol=10 * GRAPH_FLOAT32, rtol=0)
    other = found.logits("What is this?", [picture(70, 150, seed=2)], said.tokens, encoder=encoder, vrc=True)
    assert np.abs(other - rows[0]).max() > 1e-3  # the encoder was asked


def test_the_manifest_says_where_everything_runs_and_that_only_rules_were_tried(package: Path) -> None:
    manifest, name = Manifest.load(package), target_of(package)
    assert manifest.tried == "rules only"
    target = load_target(name)
    for entry in manifest.components.values():
        if entry.role in target.cpu_roles:
            assert (entry.placement, entry.provider) == (Placement.CPU, None)
            assert entry.reason == dict(target.cpu_roles)[entry.role]
        else:
            assert entry.provider is not None
            assert entry.provider.options == target.provider_options
    encoder = manifest.components["vision_large"]
    assert encoder.provider is not None
    assert (encoder.placement, encoder.provider.name) == ENCODERS[name]
    shown = io.StringIO()
    Console(file=shown, width=300).print(manifest_tables(manifest, {}))
    assert "rules only" in shown.getvalue()
    assert f"({encoder.provider.name})" in shown.getvalue()


def test_genai_is_told_the_provider_of_the_decoder_alone(package: Path) -> None:
    model = json.loads((package / "genai_config.json").read_text("utf-8"))["model"]
    told = {part: model[part]["session_options"]["provider_options"] for part in ("decoder", "vision", "embedding")}
    decoder = [{"WebGPU": {}}] if target_of(package) == "webgpu" else []
    assert told == {"decoder": decoder, "vision": [], "embedding": []}


def test_the_decoder_has_four_bits_where_the_cpu_runs_it(package: Path, on_cpu: Path) -> None:
    bits = {path: Manifest.load(path).bits_per_decoder_weight for path in (package, on_cpu)}
    assert bits[package] == bits[on_cpu]
    assert 4 < (bits[package] or 0) < 5


def test_such_a_package_is_rebuilt_to_the_byte(package: Path, tiny_checkpoint: Path) -> None:
    assert rebuild(package, tiny_checkpoint, threads=1).files > len(Manifest.load(package).components)


def test_an_onnxruntime_that_has_the_provider_uses_it(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.load(package)
    _, name = ENCODERS[target_of(package)]
    has = [f"{name.capitalize()}ExecutionProvider", "CPUExecutionProvider"]  # XnnpackExecutionProvider
    monkeypatch.setattr(ort, "get_available_providers", lambda: has)
    assert runs_on(manifest) == f"onnxruntime CPU and {name}"


def test_a_recipe_that_does_not_fit_is_refused_with_those_that_do(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError) as error:
        plan_build(open_request(tiny_checkpoint, "coreml-ane", "w4a16-rtn", tmp_path / "o"))
    assert "coreml-ane takes no bits, not 8" in error.value.cause
    assert error.value.fix.endswith("float32, genai-default, w4a16-float-vision")


def test_a_cache_that_grows_has_no_context(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        plan_build(open_request(tiny_checkpoint, "coreml-ane", RECIPE, tmp_path / "o", context=128))
    assert error.value.code == "build.context"


@pytest.mark.slow
@pytest.mark.parametrize("target", ENCODERS)
def test_the_reference_model_holds_to_the_rules(target: str, tmp_path: Path) -> None:
    output = build(open_request(nano_checkpoint(), target, RECIPE, tmp_path / "package", threads=1)).output
    assert not lint(output, load_target(target)).refused(allow_hazards=False)


@pytest.mark.parametrize("target", ENCODERS)
def test_a_text_decoder_is_written_too(target: str, tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "checkpoint", "qwen2")
    made = [
        build(open_request(checkpoint, name, "float32", tmp_path / name, threads=1)).output for name in ("cpu", target)
    ]
    models = [open_model(path) for path in made]
    expected, found = (m.answer("Hi", [], encoder="", vrc=False, max_new_tokens=8) for m in models)
    assert found.tokens == expected.tokens
    stands_in = target == "webgpu"  # the only one that runs decoders
    assert models[1].runs_on == ("onnxruntime CPU, standing in for webgpu" if stands_in else "onnxruntime CPU")
    with contextlib.closing(TextScorer(made[1])) as scorer:
        assert scorer.encode("Hi").size
    assert not lint(made[1], load_target(target)).refused(allow_hazards=False)
