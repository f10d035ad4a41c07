"""Fixed shapes with a cache of 8 bits, or without GroupQueryAttention: the answers of the dynamic package."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from hvlc.errors import TargetError
from hvlc.graphs.builder import LAST_INDEX
from hvlc.graphs.placement import Phase
from hvlc.lint.engine import lint_graph
from hvlc.manifest.manifest import Manifest
from hvlc.qnn.checking import Sample
from hvlc.runtime.generation import open_model
from hvlc.targets import load_target
from hvlc.tracing.parts import Part
from hvlc.workflows.build.build import plan_build
from hvlc.workflows.build.emulation import Amount, component_samples
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import save_text
from tests.helpers.fixed_shapes import CHUNK, Pair, build_pair, write_recipe, write_target
from tests.helpers.tiny import picture
from tests.helpers.tolerances import GRAPH_FLOAT32, QUANTIZED_CACHE

_BLOCKS = {"bits": 4, "block_size": 16}
CACHED: dict[str, Any] = {
    "kv_cache": "int8",
    "calibration": {"samples": 4, "tokens": 24},
    "rules": [
        {"role": "decoder", "quantize": _BLOCKS},
        {"role": "vision_encoder", "optional": True, "quantize": {**_BLOCKS, "bits": 8}},
    ],
}
STATIC: dict[str, Any] = {"activations": "static", "static": {"range": "minmax", "roles": ["decoder"]}}
PROMPTS = ("Hi", "What is the total of this receipt, and when was it paid? ")  # of less than a chunk, and of four
TOKENS = 12
PASTS = [f"past_key_values.{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")]


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Packages of a text decoder with head norms."""
    root = tmp_path_factory.mktemp("cached")
    return build_pair(save_text(root / "checkpoint", "qwen3"), root, write_recipe(root / "r.yaml", **CACHED))


def alike(pair: Pair, images: list[Any], encoder: str, tolerance: float) -> None:
    """Tokens, and what the models say before each of them: within a share of the largest logit."""
    dynamic, fixed = (open_model(path) for path in (pair.dynamic, pair.fixed))
    asked: dict[str, Any] = {"encoder": encoder, "vrc": bool(images)}
    for prompt in PROMPTS:
        expected, found = (m.answer(prompt, images, **asked, max_new_tokens=TOKENS) for m in (dynamic, fixed))
        said, again = (m.logits(prompt, images, expected.tokens, **asked) for m in (dynamic, fixed))
        assert np.abs(again - said).max() <= tolerance * np.abs(said).max()
        assert found.tokens == expected.tokens


def test_the_answers_are_those_of_the_dynamic_package(speaking: Pair) -> None:
    alike(speaking, [], "", QUANTIZED_CACHE / 5)  # the levels are the same but for ties
    assert precision(speaking.fixed) == (8, 32)


def test_those_of_a_static_decoder_too(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", **CACHED, **STATIC)
    pair = build_pair(save_text(tmp_path / "checkpoint", "llama"), tmp_path, recipe)
    alike(pair, [], "", QUANTIZED_CACHE / 2)  # steps of 16 bits put some more on the next level
    graph = onnx.load(pair.fixed / "decoder_1_token.onnx", load_external_data=False).graph
    nodes = {node.name: node for node in graph.node}
    for layer in (0, 1):
        for product in ("scores", "attended"):
            assert f"model.layers.{layer}.self_attn.{product}.quantize" in nodes
    assert precision(pair.fixed) == (8, 16)
    hold_to_rules(pair)


def precision(package: Path) -> tuple[int, int]:
    """Bits of the cache and of activations."""
    model = ir.from_proto(onnx.load(package / "decoder_1_token.onnx", load_external_data=False))
    found = Part("decoder_1_token.onnx", model, package, 1).precision
    return found.cache, found.activations


def test_answers_about_images_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pair = build_pair(tiny_checkpoint, tmp_path, write_recipe(tmp_path / "r.yaml", **CACHED))
    alike(pair, [picture(70, 150, seed=1)], "base", QUANTIZED_CACHE / 5)


def test_a_target_without_the_operator_gets_it_written_out_in_float(tmp_path: Path) -> None:
    groups = {"compiled-microsoft": {"names": ["MatMulNBits"], "domain": "com.microsoft"}}
    known = {"evidence": "run", "source": "a test"}
    groups = {name: {**group, **known} for name, group in groups.items()}
    pair = build_pair(save_text(tmp_path / "checkpoint", "llama"), tmp_path, "float32", operators=groups)
    graph = onnx.load(pair.fixed / "decoder_1_token.onnx", load_external_data=False).graph
    assert "GroupQueryAttention" not in {node.op_type for node in graph.node}
    assert {v.type.tensor_type.elem_type for v in graph.input if v.name in PASTS} == {onnx.TensorProto.FLOAT}
    alike(pair, [], "", GRAPH_FLOAT32)


def test_the_cache_is_of_bytes_and_the_rules_of_the_target_hold(speaking: Pair) -> None:
    hold_to_rules(speaking)
    for name, entry in Manifest.load(speaking.fixed).components.items():
        graph = onnx.load(speaking.fixed / entry.file, load_external_data=False).graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
        caches = {types[n] for n in types if n.startswith(("past_key_values.", "present."))}
        assert caches == ({onnx.TensorProto.UINT8} if name.startswith("decoder") else set())


def hold_to_rules(pair: Pair) -> None:
    """No node is refused or a hazard: no product of two activations of 16 bits, for one."""
    target = load_target(str(pair.fixed.parent / "npu.toml"))
    for name, entry in Manifest.load(pair.fixed).components.items():
        if entry.phase is not Phase.ALWAYS:
            report = lint_graph(pair.fixed / entry.file, target, name=name, role=entry.role)
            assert (report.refused, report.hazards, report.unknown_shapes) == (0, 0, 0)


def test_samples_of_the_check_hand_levels_on(speaking: Pair) -> None:
    samples = component_samples(speaking.fixed, Manifest.load(speaking.fixed), Amount(windows=1, tokens=2))

    def cached(sample: Sample) -> list[np.ndarray]:
        return [sample.feeds[name] for name in PASTS]

    (prompt,), (first, second) = samples["decoder_1_prompt"], samples["decoder_1_token"]
    assert {x.dtype for sample in (prompt, first, second) for x in cached(sample)} == {np.dtype(np.uint8)}
    assert all((x == 0).all() for x in cached(prompt))
    length = int(first.feeds[LAST_INDEX].item())  # of the prompt, whose padding the first token of an answer replaces
    assert 0 < length < CHUNK
    assert second.feeds[LAST_INDEX].item() == length + 1
    for sample, filled in ((first, length + 1), (second, length + 2)):
        assert all((x[:, :, :CHUNK] != 0).any(-1).all() and (x[:, :, CHUNK:] == 0).all() for x in cached(sample))
        assert sample.valid["present.0.key"] == (slice(None), slice(None), slice(0, filled))


def test_it_is_rebuilt_to_the_byte(speaking: Pair) -> None:
    assert rebuild(speaking.fixed, speaking.checkpoint, threads=1).files > 5


def test_a_target_that_writes_no_cache_refuses_it_before_the_work(tiny_checkpoint: Path, tmp_path: Path) -> None:
    target = write_target(tmp_path / "npu.toml", written_cache_dtypes=[])
    recipe = write_recipe(tmp_path / "r.yaml", **CACHED)
    with pytest.raises(TargetError) as error:
        plan_build(open_request(tiny_checkpoint, target, recipe, tmp_path / "o"))
    assert (error.value.code, error.value.cause) == ("plan.target", "npu keeps no KV cache of int8")
    assert "float32" in error.value.fix
    assert not (tmp_path / "o").exists()


def test_a_cache_under_a_window_too(tmp_path: Path) -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    checkpoint = save_text(tmp_path / "checkpoint", "qwen2", **window)
    pair = build_pair(checkpoint, tmp_path, write_recipe(tmp_path / "r.yaml", **CACHED))
    alike(pair, [], "", QUANTIZED_CACHE / 5)
    assert precision(pair.fixed) == (8, 32)
    hold_to_rules(pair)
