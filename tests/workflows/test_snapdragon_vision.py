"""Public vision-language families with fixed tiles on a Snapdragon, as far as emulation can show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvlc.evaluation.distributions import kl_divergence
from hvlc.graphs.placement import Placement
from hvlc.manifest.manifest import Manifest
from hvlc.results.compilation import read_compilation
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.helpers.tiny import picture
from tests.helpers.tiny_vision_language import save_grid, save_overview, save_ratio
from tests.qnn.conftest import needs_qnn

TARGET, CONTEXT = "qnn-sm8750", 640

#: Tiles of 36 visual tokens: a norm over exactly 16 rows is refused there.
TILES: dict[str, Any] = {"tile": 48, "patch": 4}
#: Grids of as many rows; the second cuts the windows of Qwen2.5-VL off.
GRIDS = ((48, 48), (40, 72))
BLOCKS: dict[str, Any] = {"num_heads": 4, "intermediate_size": 64, "hidden_size": 64}
TINY: dict[str, Callable[[Path], Path]] = {
    "smolvlm": lambda path: save_overview(path, longest=96, **TILES),
    "internvl": lambda path: save_ratio(path, pictures={"max_patches": 3}, **TILES),
    "qwen2_vl": lambda path: save_grid(path, "qwen2_vl", vision={"num_heads": 4, "embed_dim": 64}),
    "qwen2_5_vl": lambda path: save_grid(path, "qwen2_5_vl", vision=BLOCKS),
    "qwen3_vl": lambda path: save_grid(path, "qwen3_vl", vision=BLOCKS),
}
#: Further options of their builds.
ASKED: dict[str, dict[str, Any]] = {family: {"grids": GRIDS} for family in TINY if family.startswith("qwen")}
FAMILIES = tuple(TINY)

#: Nats between distributions of a package in emulation and on the CPU: float16 in decoders.
EMULATED_KL = 1e-3
NEAR_TIE = 0.05

#: The towers and decoders of released models, two layers of each.
LAYERS = 2
WIDE: dict[str, Callable[[Path], Path]] = {
    "smolvlm2-2.2b": lambda path: save_overview(
        path,
        tile=384,
        patch=14,
        shuffle=3,
        longest=768,
        dtype="bfloat16",
        vision={"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": LAYERS},
        text={
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": LAYERS,
        },
    ),
    "internvl3.5-2b": lambda path: save_ratio(
        path,
        tile=448,
        patch=14,
        decoder="qwen3",
        tied=True,
        dtype="bfloat16",
        pictures={"max_patches": 2},
        vision={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": LAYERS,
            "attention_bias": True,
        },
        text={
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_hidden_layers": LAYERS,
        },
    ),
    "qwen3-vl-2b": lambda path: save_grid(
        path,
        patch=16,
        tied=True,
        dtype="bfloat16",
        vision={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "depth": LAYERS,
            "out_hidden_size": 2048,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0, 1],
        },
        text={
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_hidden_layers": LAYERS,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        },
    ),
}
#: Grids of their builds, where images have sizes of their own.
WIDE_GRIDS: dict[str, dict[str, Any]] = {"qwen3-vl-2b": {"grids": ((256, 256), (256, 512))}}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_rules_place_on_the_npu_is_all_but_the_host_s(tmp_path: Path, family: str) -> None:
    asked = {"context": CONTEXT, "aot": False} | ASKED.get(family, {})
    request = open_request(TINY[family](tmp_path / "c"), TARGET, "w4a16-rtn", tmp_path / "p", **asked)
    manifest = build(request).manifest
    host = {"front", "stitch", "embedding", "vision"}
    placed = {name for name, entry in manifest.components.items() if entry.placement is Placement.NPU}
    assert placed == set(manifest.components) - host


@pytest.mark.slow
@needs_qnn
@pytest.mark.parametrize("family", FAMILIES)
def test_emulated_package_answers_as_its_cpu_form(tmp_path: Path, family: str) -> None:
    checkpoint = TINY[family](tmp_path / "checkpoint")
    packages = {}
    for name, aot in (("cpu", False), ("npu", True)):
        how = {"context": CONTEXT, "aot": aot, "samples": 8} | ASKED.get(family, {})
        build(open_request(checkpoint, TARGET, "npu-w4a16", tmp_path / name, **how))
        packages[name] = VisionLanguageModel(tmp_path / name, threads=1)
    assert check_compiled(tmp_path / "npu") == compiled_parts(tmp_path / "npu")
    cpu, npu = packages["cpu"], packages["npu"]
    for images in ([], [picture(40, 60)], [picture(96, 50)]):
        asked: dict[str, Any] = {"encoder": "auto", "vrc": True}
        answer = cpu.answer("What is it?", images, max_new_tokens=6, **asked).tokens
        expected, found = (p.logits("What is it?", images, answer, **asked) for p in (cpu, npu))
        assert kl_divergence(expected, found).max() < EMULATED_KL
        for row, other in zip(expected, found, strict=True):  # random weights: the best two may be a near tie
            assert row.max() - row[other.argmax()] < NEAR_TIE * row.std()


@pytest.mark.slow
@needs_qnn
@pytest.mark.parametrize("name", WIDE)
def test_two_layers_of_released_widths_compile(tmp_path: Path, name: str) -> None:
    checkpoint = WIDE[name](tmp_path / "checkpoint")
    asked = {"context": 512} | WIDE_GRIDS.get(name, {})
    build(open_request(checkpoint, TARGET, "w4a16-rtn", tmp_path / "npu", **asked))
    assert check_compiled(tmp_path / "npu")  # in the minutes of a check not every graph of this size is run


def compiled_parts(package: Path) -> set[str]:
    """Components that are made for the NPU."""
    entries = Manifest.load(package).components.items()
    return {name for name, entry in entries if entry.placement is Placement.NPU}


def check_compiled(package: Path) -> set[str]:
    """Every node of encoder, decoder and head is on the NPU; returns the graphs that were run, which hold."""
    found = read_compilation(package)
    assert found is not None
    assert compiled_parts(package) == {graph.component for graph in found.graphs}
    assert all(check.holds for check in found.checks)
    return {check.component for check in found.checks}
