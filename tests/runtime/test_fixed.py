"""Decoders of fixed shapes at every position of a text, and what does not fit them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from hvlc.errors import UserError
from hvlc.files.digests import digest_file
from hvlc.graphs.builder import LAST_ROW
from hvlc.graphs.placement import Placement
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.package.difference import difference
from hvlc.runtime import providers
from hvlc.runtime.fixed import Cache, StagedDecoder, run_windows
from hvlc.runtime.logits import TextScorer
from hvlc.runtime.providers import open_component, register_providers
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import CONTEXT, save_text
from tests.helpers.fixed_shapes import CHUNK, write_target
from tests.helpers.tolerances import GRAPH_FLOAT32


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A language package of dynamic shapes and one in two parts of fixed shapes, same weights; read only."""
    root = tmp_path_factory.mktemp("fixed")
    checkpoint = save_text(root / "checkpoint", "qwen2")
    target = write_target(root / "npu.toml", part_bytes=150_000)
    made = [
        build(open_request(checkpoint, name, "float32", root / output, threads=1)).output
        for name, output in (("cpu", "dynamic"), (target, "fixed"))
    ]
    return made[0], made[1]


IDS = np.random.default_rng(0).integers(1, 250, CONTEXT)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5, CONTEXT])
def test_logits_of_all_positions_are_those_of_the_whole_decoder(pair: tuple[Path, Path], length: int) -> None:
    expected, found = (TextScorer(package, threads=1).logits(IDS[:length]) for package in pair)
    assert found.shape == expected.shape == (length, expected.shape[1])
    np.testing.assert_allclose(found, expected, atol=GRAPH_FLOAT32)


def test_a_text_longer_than_the_cache_is_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"request\.too_long"):
        TextScorer(pair[1], threads=1).logits(np.append(IDS, 1))


def changed(package: Path, copy: Path, file: str, change: Callable[[onnx.ModelProto], None]) -> Path:
    shutil.copytree(package, copy)
    model = onnx.load(copy / file, load_external_data=False)
    change(model)
    onnx.save(model, copy / file)
    return copy


def deaf_head(model: onnx.ModelProto) -> None:
    """A head that gives the first row of a window, whichever it is asked for."""
    (pick,) = [node for node in model.graph.node if LAST_ROW in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int32), "first"))
    pick.input[list(pick.input).index(LAST_ROW)] = "first"


def test_a_head_of_one_row_is_run_for_each(pair: tuple[Path, Path], tmp_path: Path) -> None:
    manifest = Manifest.load(pair[1])
    entry = manifest.components["head_prompt"]
    expected = StagedDecoder(pair[1], manifest, 1).logits(IDS[: CHUNK + 3])
    states = np.random.default_rng(0).standard_normal((3, manifest.hidden_size), np.float32)
    prompt, token = (
        run_windows(open_component(pair[1], one, 1), states, Cache(64))
        for one in (entry, manifest.components["head_token"])
    )
    assert prompt.shape == token.shape == (3, expected.shape[1])
    np.testing.assert_allclose(prompt, token, atol=GRAPH_FLOAT32)
    deaf = changed(pair[1], tmp_path / "package", "head_prompt.onnx", deaf_head)
    wrong = run_windows(open_component(deaf, entry, 1), states, Cache(64))
    assert np.abs(wrong - token).max() > 1e-2


def _narrow_cache(model: onnx.ModelProto) -> None:
    """Keys and values in uint8, as a decoder with a quantized cache has them; 128 is their 0."""
    scale = numpy_helper.from_array(np.array(0.02, np.float32), "cache.scale")
    zero = numpy_helper.from_array(np.array(128, np.uint8), "cache.zero")
    model.graph.initializer.extend([scale, zero])
    levels = ["cache.scale", "cache.zero"]
    before, after = [], []
    for value in [v for v in (*model.graph.input, *model.graph.output) if v.name.startswith(("past_key", "present."))]:
        value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
        name, inside = value.name, f"{value.name}.float"
        for node in model.graph.node:
            node.input[:] = [inside if i == name else i for i in node.input]
            node.output[:] = [inside if o == name else o for o in node.output]
        if name.startswith("past_"):
            before.append(helper.make_node("DequantizeLinear", [name, *levels], [inside]))
        else:
            after.append(helper.make_node("QuantizeLinear", [inside, *levels], [name]))
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def test_a_cache_of_integers_is_handed_on_as_it_is(pair: tuple[Path, Path], tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(pair[1], package)
    for part in ("decoder_1_prompt.onnx", "decoder_2_prompt.onnx"):
        package = changed(package, tmp_path / part, part, _narrow_cache)
    ids = IDS[: 3 * CHUNK]
    found, expected = StagedDecoder(package, Manifest.load(package), 1).logits(ids), TextScorer(pair[0]).logits(ids)
    np.testing.assert_allclose(found[:CHUNK], expected[:CHUNK], atol=GRAPH_FLOAT32)  # no past yet
    error = np.abs(found - expected).max()
    assert GRAPH_FLOAT32 < error < 0.2 * np.abs(expected).max()


def test_a_graph_takes_what_it_is_made_for(pair: tuple[Path, Path]) -> None:
    manifest = Manifest.load(pair[1])
    entry = manifest.components["head_prompt"]
    session = open_component(pair[1], entry, 1)
    with pytest.raises(ValueError, match="takes float32, not int64"):
        run_windows(session, np.zeros((3, 64), np.int64), Cache(CONTEXT))


def as_if_compiled(package: Path, copy: Path, *, content: bytes = b"binary", shared: bool = False) -> Path:
    """A copy that says that its NPU components were compiled; what stands in for binaries is none."""
    shutil.copytree(package, copy)
    manifest = json.loads((copy / MANIFEST).read_text("utf-8"))
    for name, entry in manifest["components"].items():
        if entry["placement"] == Placement.NPU:
            binary = "all_qnn.bin" if shared else f"{name}_qnn.bin"
            (copy / binary).write_bytes(content)
            manifest["files"][binary] = {"bytes": len(content), "sha256": digest_file(copy / binary)}
            entry["compiled"] = {
                "binary": binary,
                "chip": "SM8750",
                "soc_model": 69,
                "htp_arch": 79,
                "sdk": "1",
                "provider": "QNNExecutionProvider",
                "provider_options": {},
            }
    (copy / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return copy


def test_a_binary_of_several_graphs_is_not_loaded_in_emulation(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, asked = as_if_compiled(pair[1], tmp_path / "package", shared=True), list[str]()
    monkeypatch.setattr(providers, "_register", asked.append)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(UserError, match=r"package\.shared_binary"):
        StagedDecoder(package, Manifest.load(package))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    register_providers(Manifest.load(package))
    assert asked == ["QNNExecutionProvider"] * 2


def test_a_tokenizer_opens_with_the_provider_of_a_compiled_package(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, asked = as_if_compiled(pair[1], tmp_path / "package"), list[str]()
    monkeypatch.setattr(providers, "_register", asked.append)
    assert len(TextScorer(package).encode("abc")) == 3
    assert asked == ["QNNExecutionProvider"]


def test_compiled_components_are_equal_to_the_byte_or_not_readable(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, same = (as_if_compiled(pair[1], tmp_path / name) for name in ("one", "same"))
    other = as_if_compiled(pair[1], tmp_path / "other", content=b"others")
    equal = difference(one, same)
    assert equal.identical
    for first, second in ((one, other), (one, pair[1]), (pair[1], one)):
        found = difference(first, second)
        assert not found.equivalent
        likeness = {component.name: component.likeness for component in found.components}
        assert likeness["head_prompt"] == likeness["decoder_1_token"] == "compiled"
        assert likeness["embedding"] == "identical"
        (weights,) = [
            fact for c in found.components if c.name == "head_prompt" for fact in c.facts if fact.key == "weights"
        ]
        assert "compiled, not readable" in (weights.a, weights.b)
    alone = {c.name: c for c in difference(pair[0], one).components}
    assert alone["decoder_1_prompt"].likeness == "only in B"
    assert [(fact.key, fact.b) for fact in alone["decoder_1_prompt"].facts][-1] == ("weights", "compiled, not readable")
