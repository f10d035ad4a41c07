"""The shipped checkpoint compiled for every chip, and compiled packages held against others, in emulation."""

from pathlib import Path

import pytest

from hvlc.evaluation.tasks import DocumentsTask
from hvlc.graphs.placement import Placement
from hvlc.manifest.manifest import Manifest
from hvlc.package.layers import COMPILED
from hvlc.qnn.compiler import CompileOptions
from hvlc.report.placement import placed_components
from hvlc.results.compilation import read_compilation
from hvlc.targets import load_target
from hvlc.workflows.bisect.bisect import Request, bisect
from hvlc.workflows.build.build import build
from hvlc.workflows.build.compiling import CompileRequest, compile_package
from hvlc.workflows.build.emulation import Amount
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import open_request
from hvlc.workflows.evaluate.compare import EvaluationRequest, compare_models, open_models
from hvlc.workflows.evaluate.evaluate import ReferenceModel, Setting, evaluate_directory
from hvlc.workflows.evaluate.perplexity import evaluate_texts
from hvlc.zoo import documents, nano_checkpoint
from tests.export.tiny_families import save_text
from tests.helpers.faults import planted
from tests.qnn.conftest import CHIPS, needs_qnn

pytestmark = [pytest.mark.slow, needs_qnn]

LEAST = CompileRequest(amount=Amount(tiles=1, windows=1, tokens=1), check_seconds=600)
RECIPE, CONTEXT = "w4a16-rtn", 256
SETTING = Setting("base", True)


def static_for(chip: str, output: Path) -> Path:
    return build(
        open_request(nano_checkpoint(), f"qnn-{chip.lower()}", RECIPE, output, context=CONTEXT, aot=False)
    ).output


def compiled_for(chip: str, static: Path, output: Path, request: CompileRequest = LEAST) -> Path:
    return compile_package(static, output, CompileOptions.of(load_target(f"qnn-{chip.lower()}")), request).directory


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(open_request(nano_checkpoint(), "cpu", RECIPE, tmp_path_factory.mktemp("cpu") / "package")).output


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return static_for("SM8750", tmp_path_factory.mktemp("static") / "package")


@pytest.fixture(scope="module")
def compiled(static: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled_for("SM8750", static, tmp_path_factory.mktemp("compiled") / "package")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.png"
    document, _ = next(documents.examples("heldout", 1, 0))
    document.image.save(path)
    return path


@pytest.mark.parametrize("chip", CHIPS)
def test_a_whole_package_answers_on_every_chip_as_the_cpu_does(chip: str, cpu: Path, tmp_path: Path) -> None:
    package = compiled_for(chip, static_for(chip, tmp_path / "static"), tmp_path / "package")
    manifest = Manifest.load(package)
    manifest.verify(package)
    on_npu = [one for one in placed_components(manifest, read_compilation(package)) if one.runs_on == Placement.NPU]
    assert len(on_npu) == 6
    assert {one.compiled_for for one in on_npu} == {f"{chip}, v{CHIPS[chip][1]}"}
    assert all((one.checked or "").startswith("emulated, ") for one in on_npu)
    task = DocumentsTask(2)
    (expected,) = evaluate_directory(cpu, task, [SETTING], max_new_tokens=8)
    (found,) = evaluate_directory(package, task, [SETTING], max_new_tokens=8, against=ReferenceModel(cpu, [expected]))
    assert found.runs_on.startswith(f"emulated NPU of {chip}")
    assert [e.prediction for e in found.examples] == [e.prediction for e in expected.examples]
    assert found.fidelity is not None
    assert 0 < found.fidelity.kl.value < 1e-5


def test_a_compiled_package_departs_nowhere_part_by_part(compiled: Path, image: Path) -> None:
    request = Request(compiled, nano_checkpoint(), "What is the total?", (image,), "base", max_new_tokens=3)
    found = bisect(request)
    assert found.departs is None, found.departing
    names = [stage.name for stage in found.stages]
    assert {"vision_base", "decoder_1_prompt", "head_prompt", "decode"} <= set(names)
    assert not [name for name in names if ".layers." in name]
    assert any("cannot be cut" in note for note in found.notes)
    part = next(stage for stage in found.stages if stage.name == "decoder_1_prompt")
    assert part.detail == "layers 0 to 3 at once: compiled for SM8750"
    assert "4-bit weights" in part.precision


def test_a_fault_that_was_compiled_is_named_by_its_part(static: Path, image: Path, tmp_path: Path) -> None:
    wrong = planted("scaled projector weight", static, tmp_path / "static")
    package = compiled_for("SM8750", wrong, tmp_path / "package", CompileRequest(check=False))
    request = Request(package, nano_checkpoint(), "What is the total?", (image,), "base", max_new_tokens=1)
    assert bisect(request).departs == "vision_base"


def test_a_comparison_answers_whether_the_package_still_answers_alike(cpu: Path, compiled: Path) -> None:
    asking = EvaluationRequest(encoders=("base",), count=1, max_new_tokens=4, traces=1)
    found = compare_models(open_models([cpu, compiled]), asking).comparison
    assert all(test.verdict == "noise" for test in found.tests)
    errors = {one.stage: one.relative_error for one in found.stages}
    assert 0 < (errors["decoder.layers.3"] or 0) < 0.02
    assert 0 < (errors["decoder.head"] or 0) < 0.02
    assert errors["decoder.layers.1"] is None  # inside the binary
    assert any(COMPILED in note for note in found.notes)
    assert {layer.layer.partition(".")[0] for layer in found.layers} == {"embedding", "front"}


def test_a_text_reads_almost_alike_on_the_emulated_npu(tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "checkpoint", "llama")
    static = build(open_request(checkpoint, "qnn-sm8750", "float32", tmp_path / "static", aot=False)).output
    package = compile_package(
        static, tmp_path / "package", CompileOptions.of(load_target("qnn-sm8750")), LEAST
    ).directory
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"word {i} and {i * i % 97}" for i in range(100)), "utf-8")
    expected, found = evaluate_texts([static, package], text, against_first=True, tokens=60, window=30)
    assert found.reading.value == pytest.approx(expected.reading.value, rel=1e-2)
    assert found.reading.value != expected.reading.value
    assert found.runs_on.startswith("emulated NPU of SM8750")
    assert found.fidelity is not None
    assert 0 < found.fidelity.kl.value < 1e-4


def test_a_compiled_package_is_rebuilt_but_for_what_the_compiler_leaves_to_chance(compiled: Path) -> None:
    made = rebuild(compiled, nano_checkpoint(), threads=1)
    assert made.checked_before
    assert set(made.left_to_chance) <= {"vision_base_qnn.bin", "vision_large_qnn.bin"}
    assert all(0 < count < 5000 for count in made.left_to_chance.values())
    assert made.files == len(Manifest.load(compiled).files) - 2 - len(
        made.left_to_chance
    )  # lock, and the check's record
