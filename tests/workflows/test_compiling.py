"""A package compiled for a Snapdragon, from the tiny checkpoint: what it is made of, and that it runs in emulation."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from hvlc.errors import TargetError, UserError
from hvlc.graphs.placement import Placement
from hvlc.manifest.lock import LOCK, Lock
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.package.contents import contents_of
from hvlc.qnn.checking import Sample
from hvlc.qnn.compiler import CompileOptions
from hvlc.qnn.isolation import Isolation
from hvlc.results.build import Content
from hvlc.results.compilation import read_compilation
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.providers import runs_on
from hvlc.targets import load_target
from hvlc.workflows.build import compiling
from hvlc.workflows.build.build import build
from hvlc.workflows.build.compiling import (
    CompiledPackage,
    CompileRequest,
    compile_in_place,
    compile_package,
    with_provider,
)
from hvlc.workflows.build.emulation import Amount, component_samples
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import save_text
from tests.helpers.tiny import picture
from tests.qnn.conftest import needs_qnn

TARGET = "qnn-sm8750"
AMOUNT = Amount(tiles=1, windows=1, tokens=1)


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose graphs are left to their runtime; read only."""
    output = tmp_path_factory.mktemp("source") / "package"
    build(open_request(tiny_checkpoint, TARGET, "float32", output, context=256, aot=False))
    return output


@pytest.fixture(scope="module")
def compiled(source: Path, tmp_path_factory: pytest.TempPathFactory) -> CompiledPackage:
    output = tmp_path_factory.mktemp("compiled") / "package"
    return compile_package(source, output, CompileOptions.of(load_target(TARGET)), CompileRequest(amount=AMOUNT))


def placed(manifest: Manifest) -> set[str]:
    return {name for name, entry in manifest.components.items() if entry.placement is Placement.NPU}


@needs_qnn
def test_every_npu_component_is_compiled_and_checked(source: Path, compiled: CompiledPackage) -> None:
    wanted = placed(Manifest.load(source))
    assert {"vision_base", "vision_large", "decoder_1_prompt", "decoder_1_token", "head_token"} <= wanted
    assert {graph.component for graph in compiled.compilation.graphs} == wanted
    assert {check.component for check in compiled.compilation.checks} == wanted
    assert all(check.holds for check in compiled.compilation.checks)
    assert {graph.chip for graph in compiled.compilation.graphs} == {"SM8750"}
    scores = [o for check in compiled.compilation.checks for o in check.outputs if o.name == "logits"]
    assert all(output.top1 is not None and output.top1.value > 0.9 for output in scores)
    assert [gap.what for gap in compiled.compilation.not_checked] == ["speed, memory and the last bit on a device"]


@needs_qnn
def test_the_package_says_what_it_is(compiled: CompiledPackage) -> None:
    manifest = Manifest.load(compiled.directory)
    manifest.verify(compiled.directory)
    assert set(manifest.files) == {path.name for path in compiled.directory.iterdir()} - {MANIFEST}
    for name in placed(manifest):
        entry = manifest.components[name].compiled
        assert entry is not None
        assert (entry.chip, entry.soc_model, entry.htp_arch) == ("SM8750", 69, 79)
        model = onnx.load(compiled.directory / manifest.components[name].file, load_external_data=False)
        assert [node.op_type for node in model.graph.node] == ["EPContext"]
        assert next(value.name for value in model.graph.input) in manifest.components[name].inputs
    lock = Lock.load(compiled.directory)
    assert lock.outputs == {name: entry for name, entry in manifest.files.items() if name != LOCK}
    assert manifest.sources.versions["onnxruntime-qnn"] == lock.versions["onnxruntime-qnn"]
    assert read_compilation(compiled.directory) == compiled.compilation


@needs_qnn
def test_weights_of_compiled_graphs_are_not_kept_twice(source: Path, compiled: CompiledPackage) -> None:
    """What the embedding reads stays; the rest of the decoder's data file and all of the encoders' goes."""
    before = {name: entry.bytes for name, entry in Manifest.load(source).files.items()}
    after = {name: entry.bytes for name, entry in compiled.manifest.files.items()}
    assert after["model.onnx.data"] < 0.5 * before["model.onnx.data"]
    assert "vision.onnx.data" not in after
    assert after["front.onnx.data"] == before["front.onnx.data"]


@needs_qnn
def test_every_byte_is_accounted_for(compiled: CompiledPackage) -> None:
    totals = contents_of(compiled.directory, compiled.manifest).totals()
    binaries = {graph.component: graph.binary_bytes for graph in compiled.compilation.graphs}
    assert {key[0][0]: size for key, size in totals.items() if key[1] is Content.COMPILED} == binaries
    assert sum(totals.values()) == compiled.manifest.total_bytes + (compiled.directory / MANIFEST).stat().st_size


@needs_qnn
def test_answers_come_from_the_emulated_npu(source: Path, compiled: CompiledPackage) -> None:
    emulated, static = VisionLanguageModel(compiled.directory), VisionLanguageModel(source)
    assert emulated.runs_on == "emulated NPU of SM8750, and onnxruntime CPU"
    assert static.runs_on == "onnxruntime CPU"
    images = [picture(30, 40)]
    answers = [
        model.logits("What is this?", images, [65, 66], encoder="base", vrc=False) for model in (emulated, static)
    ]
    one, other = answers
    assert np.abs(one - other).max() < 0.02 * np.abs(other).max()
    assert not np.array_equal(one, other)  # so it was not the CPU that ran
    assert (one.argmax(-1) == other.argmax(-1)).all()


@needs_qnn
def test_shared_weights_take_less_and_the_rest_stays_the_same(
    source: Path, compiled: CompiledPackage, tmp_path: Path
) -> None:
    request = CompileRequest(check=False, share_weights=True)
    made = compile_package(source, tmp_path / "shared", CompileOptions.of(load_target(TARGET)), request)
    graphs = {graph.component: graph for graph in made.compilation.graphs}
    assert graphs["decoder_1_token"].binary == "decoder_1_prompt_qnn.bin"
    assert graphs["decoder_1_token"].shared_with == ("decoder_1_prompt",)
    assert graphs["vision_base"].shared_with == ()
    before, after = compiled.manifest.files, made.manifest.files
    both = before["decoder_1_prompt_qnn.bin"].bytes + before["decoder_1_token_qnn.bin"].bytes
    assert after["decoder_1_prompt_qnn.bin"].bytes < 0.7 * both
    assert "decoder_1_token_qnn.bin" not in after
    unshared = ("vision_base.onnx", "vision_base_qnn.bin", "vision_large_qnn.bin", "genai_config.json")
    assert {name: after[name] for name in unshared} == {name: before[name] for name in unshared}
    gaps = {gap.what for gap in made.compilation.not_checked}
    assert gaps > {"every compiled graph", "decoder_1_prompt_qnn.bin", "head_prompt_qnn.bin"}
    assert made.compilation.checks == ()
    made.manifest.verify(made.directory)


@needs_qnn
def test_a_compiled_package_is_not_compiled_again(compiled: CompiledPackage, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compile\.done"):
        compile_package(compiled.directory, tmp_path / "output", CompileOptions.of(load_target(TARGET)))


def a_compiled_graph(name: str, size: int) -> Any:
    return SimpleNamespace(record=SimpleNamespace(component=name, binary_bytes=size))


def test_what_takes_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: dict[str, float] = {}

    def check(made: Any, samples: Any, inputs: str, tolerance: float | None, isolation: Isolation) -> str:
        seconds[made.record.component] = isolation.seconds
        if made.record.component == "large":
            raise TargetError("check.timeout", "too long", "wait")
        return made.record.component

    monkeypatch.setattr(compiling, "check_compiled", check)
    made = {name: a_compiled_graph(name, size) for name, size in {"large": 3, "small": 1, "unfed": 2}.items()}
    samples = {name: [Sample({})] for name in ("large", "small")}
    checks, gaps = compiling._checks(made, samples, CompileRequest(check_seconds=60), lambda *_: None)
    assert [str(check) for check in checks] == ["small"]
    assert [gap.what for gap in gaps] == ["unfed", "large"]
    assert "60 s" in gaps[1].reason
    assert seconds["large"] <= seconds["small"] <= 60


@pytest.mark.parametrize("code", ["check.noise", "check.emulation"])
def test_a_failed_check_is_no_gap(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    def check(*_: Any) -> None:
        raise TargetError(code, "it departs", "lint it")

    monkeypatch.setattr(compiling, "check_compiled", check)
    with pytest.raises(TargetError, match=code):
        compiling._checks({"a": a_compiled_graph("a", 1)}, {"a": [Sample({})]}, CompileRequest(), lambda *_: None)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler seems to be there; nothing here gets as far as asking it."""
    monkeypatch.setattr(compiling, "require_qnn", lambda: None)


@pytest.mark.usefixtures("pretended")
def test_a_package_for_the_cpu_has_nothing_to_compile(tiny_float32: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compile\.nothing.*cpu"):
        compile_package(tiny_float32, tmp_path / "output", CompileOptions.of(load_target(TARGET)))
    with pytest.raises(UserError, match=r"target\.chip"):
        compile_package(tiny_float32, tmp_path / "output", CompileOptions.of(load_target("cpu")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pretended")
def test_a_package_for_another_chip_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"compile\.target\] {source.name} was .*qnn-sm8750, not for qnn-sm8550"):
        compile_package(source, tmp_path / "output", CompileOptions.of(load_target("qnn-sm8550")))


@pytest.mark.usefixtures("pretended")
def test_nothing_is_left_of_a_package_that_does_not_compile(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise TargetError("compile.refused", "it does not take it", "lint it")

    monkeypatch.setattr(compiling, "compile_graph", refuse)
    with pytest.raises(TargetError, match=r"compile\.refused"):
        compile_package(
            source, tmp_path / "output", CompileOptions.of(load_target(TARGET)), CompileRequest(check=False)
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pretended")
def test_a_changed_package_is_refused(source: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(source, changed)
    (changed / "chat_template.jinja").write_text("", "utf-8")
    with pytest.raises(UserError, match=r"package\.digest"):
        compile_package(changed, tmp_path / "output", CompileOptions.of(load_target(TARGET)))


def test_samples_are_what_the_stages_would_meet(source: Path) -> None:
    manifest = Manifest.load(source)
    samples = component_samples(source, manifest, Amount(tiles=2, windows=2, tokens=3))
    assert placed(manifest) <= samples.keys()
    counts = {name: len(found) for name, found in samples.items()}
    assert (counts["decoder_1_prompt"], counts["decoder_1_token"]) == (2, 3)
    assert counts["vision_base"] == 2
    second = samples["decoder_1_prompt"][1]
    chunk = second.feeds["inputs_embeds"].shape[1]
    assert second.feeds["past_seq_len"].tolist() == [[2 * chunk - 1]]
    assert np.abs(second.feeds["past_key_values.0.key"][:, :, :chunk]).min() > 0  # filled by the first window
    assert second.valid["present.1.value"][2] == slice(0, 2 * chunk)
    places = [int(sample.feeds["past_seq_len"][0, 0]) for sample in samples["decoder_1_token"]]
    assert places == [places[0] + step for step in range(3)]
    assert chunk < places[0] < 2 * chunk  # the first token takes the place of the padding


def test_samples_lead_to_the_models_own_answer(source: Path) -> None:
    """The stages, driven here, choose the tokens that onnxruntime-genai chooses."""
    from hvlc.workflows.build import emulation

    document, question = next(emulation.examples("calibration", 1))
    manifest = Manifest.load(source)
    samples = component_samples(source, manifest, Amount(tiles=1, windows=9, tokens=4))
    model = VisionLanguageModel(source)
    answered = model.answer(question.text, [document.image], encoder="auto", vrc=False, max_new_tokens=4)
    tokens = answered.tokens
    assert samples["decoder_1_token"][0].feeds["past_seq_len"].tolist() == [[answered.prompt_tokens]]
    table = embedding_rows(source, list(tokens))
    for step, row in enumerate(table[: len(samples["decoder_1_token"])]):
        assert np.array_equal(samples["decoder_1_token"][step].feeds["inputs_embeds"][0, 0], row)


def test_samples_stay_within_a_short_cache(tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "checkpoint", "llama")
    source = build(open_request(checkpoint, TARGET, "float32", tmp_path / "package", aot=False)).output
    manifest = Manifest.load(source)
    samples = component_samples(source, manifest, Amount(windows=9, tokens=9))
    places = [int(s.feeds["past_seq_len"][0, 0]) for n in ("prompt", "token") for s in samples[f"decoder_1_{n}"]]
    assert manifest.context_length == 64  # one window, most of which is padding
    assert places == [63, *range(places[1], places[1] + 9)]
    assert places[-1] < 63


def embedding_rows(directory: Path, ids: list[int]) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(directory / "embedding.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": np.array([ids], np.int32)})[0][0]


def test_only_compiled_stages_name_the_provider() -> None:
    def stage(file: str) -> dict[str, object]:
        return {"filename": file, "session_options": {"provider_options": []}}

    config = {"model": {"decoder": {"pipeline": [{"embedding": stage("e.onnx"), "decoder": stage("d.onnx")}]}}}
    before = json.dumps(config)
    options = CompileOptions(69, 79, {"htp_performance_mode": "burst", "vtcm_mb": "8"})
    changed = with_provider(config, {"d.onnx": options})["model"]["decoder"]["pipeline"][0]
    assert changed["embedding"]["session_options"]["provider_options"] == []
    assert changed["decoder"]["session_options"]["provider_options"] == [
        {"QNN": {"backend_type": "htp", "htp_performance_mode": "burst"}}
    ]
    assert json.dumps(config) == before


def test_a_package_for_the_cpu_runs_on_the_cpu(tiny_float32: Path) -> None:
    assert runs_on(Manifest.load(tiny_float32)) == "onnxruntime CPU"


def test_a_package_is_compiled_wherever_it_is_named_from(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's process has a working directory of its own."""
    seen: list[Path] = []

    def refuse(model: Path, *_: object) -> None:
        seen.append(model)
        raise TargetError("compile.stub", "nothing is compiled here", "none")

    monkeypatch.setattr("hvlc.workflows.build.compiling.compile_graph", refuse)
    package = tmp_path / "package"
    shutil.copytree(source, package)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetError, match="nothing is compiled"):
        compile_in_place(Path("package"), CompileOptions.of(load_target(TARGET)), CompileRequest(check=False))
    assert seen[0].is_absolute()
