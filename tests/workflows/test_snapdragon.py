"""The shipped checkpoint, and one of the paper's widths, on all four Snapdragons, as far as emulation can show."""

from pathlib import Path

import pytest
import torch

from hvlc.evaluation.documents import DocumentsTask
from hvlc.graphs.placement import Placement
from hvlc.manifest.manifest import Manifest
from hvlc.models.hypervl import HyperVLForConditionalGeneration, HyperVLImageProcessor, HyperVLProcessor
from hvlc.models.hypervl.configuration import paper_config
from hvlc.qnn.compiler import CompileOptions, compile_graph
from hvlc.results.compilation import read_compilation
from hvlc.targets import load_target
from hvlc.training.tokenizer import build_nano_tokenizer, special_token_id
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from hvlc.workflows.evaluate.evaluate import Setting, evaluate_directory
from hvlc.zoo import nano_checkpoint
from tests.qnn.conftest import CHIPS, needs_qnn

pytestmark = [pytest.mark.slow, needs_qnn]

LAYERS, VOCABULARY = 2, 32_000
DOCUMENTS = 16
MINUTES = 3
RECIPES = ("npu-w4a16", "npu-w4a16-kv8", "npu-w4a16-static", "npu-w4a16-encoders")


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the paper's widths, with few layers and rows."""
    config = paper_config()
    for part in (config.base_vision_config, config.large_vision_config, config.text_config):
        part.num_hidden_layers = LAYERS
    config.text_config.layer_types = ["full_attention"] * LAYERS
    config.text_config.vocab_size = VOCABULARY
    config.text_config.eos_token_id = special_token_id("<|im_end|>")
    config.text_config.pad_token_id = config.text_config.bos_token_id = special_token_id("<|endoftext|>")
    config.image_token_id, config.row_token_id = special_token_id("<|image_pad|>"), special_token_id("<|vision_pad|>")
    config.vision_start_token_id = special_token_id("<|vision_start|>")
    config.vision_end_token_id = special_token_id("<|vision_end|>")
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("wide") / "checkpoint"
    HyperVLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(directory)
    side, patch = config.base_vision_config.image_size, config.base_vision_config.patch_size
    images = HyperVLImageProcessor(side, 2 * patch, config.resolution_config.proxy_size, max_visual_tokens=200)
    HyperVLProcessor(images, build_nano_tokenizer()).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def static(wide_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages whose graphs are left to their runtime, of both checkpoints; two with a KV cache of 8 bits."""
    found = {}
    recipes = {"nano": "w4a16-rtn", "wide": "w4a16-rtn", "cached": "npu-w4a16-kv8", "integer": "w4a16-static"}
    recipes["lpbq"] = "npu-w4a16-static"
    for name, recipe in recipes.items():
        found[name] = tmp_path_factory.mktemp("static") / name
        checkpoint = wide_checkpoint if name == "wide" else nano_checkpoint()
        samples = 4 if name == "lpbq" else None
        build(open_request(checkpoint, "qnn-sm8750", recipe, found[name], context=1024, aot=False, samples=samples))
    return found


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ["nano", "wide", "cached", "integer", "lpbq"])
def test_every_npu_component_compiles_for_every_chip(
    static: dict[str, Path], tmp_path: Path, name: str, chip: str
) -> None:
    manifest = Manifest.load(static[name])
    options = CompileOptions.of(load_target(f"qnn-{chip.lower()}"))
    placed = [entry for entry in manifest.components.values() if entry.placement is Placement.NPU]
    assert len(placed) == 6  # two encoders; decoder and head for prompt and token
    for entry in placed:
        record = compile_graph(static[name] / entry.file, options, tmp_path).record  # no node may be elsewhere
        assert (record.chip, record.soc_model, record.htp_arch) == (chip, *CHIPS[chip])


@pytest.fixture(scope="module", params=RECIPES)
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The shipped checkpoint compiled and checked, and the seconds that this took."""
    output = tmp_path_factory.mktemp("emulated") / "package"
    made = build(open_request(nano_checkpoint(), "qnn-sm8750", request.param, output))
    return output, made.seconds["compile"]


def test_the_check_is_whole_and_takes_minutes(emulated: tuple[Path, float]) -> None:
    package, seconds = emulated
    found = read_compilation(package)
    assert found is not None
    assert {check.component for check in found.checks} == {graph.component for graph in found.graphs}
    assert seconds < 60 * MINUTES


def test_emulated_answers_are_those_of_the_cpu(emulated: tuple[Path, float], tmp_path: Path) -> None:
    build(open_request(nano_checkpoint(), "cpu", "w4a16", tmp_path / "cpu"))
    task, setting = DocumentsTask(DOCUMENTS), [Setting("large", True)]
    npu, cpu = (evaluate_directory(package, task, setting)[0] for package in (emulated[0], tmp_path / "cpu"))
    assert npu.runs_on.startswith("emulated NPU of SM8750")
    assert abs(npu.summary.exact_match.value - cpu.summary.exact_match.value) * DOCUMENTS <= 1
