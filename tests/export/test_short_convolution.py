"""Short convolutions compute what a slow textbook version and transformers compute, however a sequence is cut."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from hvlc.errors import TargetError, UserError
from hvlc.export.decoder.shape import DecoderShape
from hvlc.export.decoder.short_convolution import short_convolution
from hvlc.export.families.lfm2 import FAMILY
from hvlc.export.language import decoder_shape, with_graph_names
from hvlc.export.settings import read_config
from hvlc.graphs.builder import GraphBuilder
from hvlc.manifest.manifest import MANIFEST
from hvlc.models.numbers import LanguageNumbers
from hvlc.opening.configuration import CONFIGURATION
from hvlc.opening.package import open_package
from hvlc.runtime.generation import LanguageModel
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.request import open_request
from tests.export.test_families import Decoder, exported, generator
from tests.export.tiny_families import save_text
from tests.helpers.packages import changed_graph, changed_json, renewed
from tests.helpers.sessions import session
from tests.helpers.tolerances import GRAPH_FLOAT32

PATH = "model.layers.0.conv"
VARIANTS: dict[str, dict[str, Any]] = {
    "three positions": {},
    "biases": {"conv_bias": True},
    "two positions": {"conv_L_cache": 2},
    "many positions": {"conv_L_cache": 9},
}
LAYERS: dict[str, list[str]] = {
    "attention last": ["conv", "conv", "full_attention"],
    "convolution last": ["conv", "full_attention", "conv", "conv"],
    "attention first": ["full_attention", "conv", "full_attention"],
}


def one_layer(directory: Path) -> tuple[ort.InferenceSession, DecoderShape]:
    """The convolution of the first layer alone: `x` and `past` to `y` and `present`."""
    checkpoint = with_graph_names(Checkpoint.open(directory), FAMILY, "model")
    config = read_config(FAMILY.config, checkpoint, LanguageNumbers)
    shape = decoder_shape(config, FAMILY, checkpoint.config, checkpoint.problems)
    b, assumed = GraphBuilder("convolution", checkpoint), shape.convolution
    assert assumed is not None
    x = b.input("x", ir.DataType.FLOAT, ["batch", "sequence", shape.hidden])
    past = b.input("past", ir.DataType.FLOAT, ["batch", shape.hidden, assumed.length - 1])
    y, present = short_convolution(b, x, PATH, shape, 0, past)
    b.output(y, "y", ir.DataType.FLOAT, ["batch", "sequence", shape.hidden])
    b.output(present, "present", ir.DataType.FLOAT, ["batch", shape.hidden, assumed.length - 1])
    assert not checkpoint.problems
    return session(b.model()), shape


def textbook(x: np.ndarray, past: np.ndarray, weights: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One position after another, one channel after another, in doubles."""
    kernel, hidden = weights["conv.weight"][:, 0].astype(float), x.shape[-1]
    seen = [past[:, at].astype(float) for at in range(past.shape[1])]
    rows = []
    for position in x.astype(float):
        projected = weights["in_proj.weight"].astype(float) @ position + weights.get("in_proj.bias", 0)
        first, second, values = projected[:hidden], projected[hidden : 2 * hidden], projected[2 * hidden :]
        seen.append(np.array([first[channel] * values[channel] for channel in range(hidden)]))
        mixed = np.zeros(hidden)
        for channel in range(hidden):
            for back in range(kernel.shape[1]):
                mixed[channel] += kernel[channel, -1 - back] * seen[-1 - back][channel]
        mixed += weights.get("conv.bias", 0)
        rows.append(weights["out_proj.weight"].astype(float) @ (second * mixed) + weights.get("out_proj.bias", 0))
    return np.array(rows), np.array(seen[len(seen) - past.shape[1] :]).T


def module_weights(directory: Path) -> dict[str, np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return {name: value.numpy() for name, value in model.model.layers[0].conv.state_dict().items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_layer_is_a_textbook_convolution_with_state(tmp_path: Path, variant: str) -> None:
    directory = save_text(tmp_path / "checkpoint", "lfm2", **VARIANTS[variant])
    graph, shape = one_layer(directory)
    random, weights = np.random.default_rng(0), module_weights(directory)
    assert ("conv.bias" in weights) is (variant == "biases")
    for length in (1, 2, 7):  # shorter than the state, and longer
        x = random.normal(size=(1, length, shape.hidden)).astype(np.float32)
        past = random.normal(size=(1, *weights["conv.weight"].shape[:1], shape.convolution.length - 1))  # type: ignore[union-attr]
        past = past.astype(np.float32)
        y, present = graph.run(None, {"x": x, "past": past})
        expected, kept = textbook(x[0], past[0], weights)
        assert np.abs(y[0] - expected).max() < GRAPH_FLOAT32
        assert np.abs(present[0] - kept).max() < GRAPH_FLOAT32
        assert expected.std() > 0.1
    reversed_kernel = weights | {"conv.weight": weights["conv.weight"][..., ::-1]}
    assert np.abs(y[0] - textbook(x[0], past[0], reversed_kernel)[0]).max() > 100 * GRAPH_FLOAT32


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[ort.InferenceSession, DecoderShape]:
    return one_layer(save_text(tmp_path_factory.mktemp("layer") / "checkpoint", "lfm2", conv_L_cache=4))


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 2**16))
def test_a_sequence_may_be_cut_anywhere(
    layer: tuple[ort.InferenceSession, DecoderShape], lengths: list[int], seed: int
) -> None:
    graph, shape = layer
    x = np.random.default_rng(seed).normal(size=(2, sum(lengths), shape.hidden)).astype(np.float32)
    nothing = np.zeros((2, shape.hidden, 3), np.float32)
    whole, last = graph.run(None, {"x": x, "past": nothing})
    state, rows, start = nothing, [], 0
    for length in lengths:
        row, state = graph.run(None, {"x": x[:, start : start + length], "past": state})
        rows.append(row)
        start += length
    assert np.abs(np.concatenate(rows, 1) - whole).max() < GRAPH_FLOAT32
    assert np.abs(state - last).max() < GRAPH_FLOAT32


@pytest.mark.parametrize("layers", LAYERS)
@torch.no_grad()
def test_a_prompt_may_run_in_chunks(tmp_path: Path, layers: str) -> None:
    kinds = LAYERS[layers]
    directory = save_text(tmp_path / "checkpoint", "lfm2", layer_types=kinds, num_hidden_layers=len(kinds))
    decode = Decoder(session(exported(directory).components["model"].model))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.randint(0, 256, (1, 24), generator=generator())
    expected = model(input_ids=ids).logits[0].numpy()
    end = 0
    for length in (9, 1, 6, 1, 1, 6):
        found = decode(ids[:, end : end + length])
        end += length
        assert np.abs(found[0, 0] - expected[end - 1]).max() < GRAPH_FLOAT32


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a checkpoint beside it."""
    root, kinds = tmp_path_factory.mktemp("package"), LAYERS["convolution last"]
    checkpoint = save_text(root / "checkpoint", "lfm2", layer_types=kinds, num_hidden_layers=len(kinds))
    return build(open_request(checkpoint, "cpu", "float32", root / "package", threads=1)).output


@torch.no_grad()
def test_answers_are_those_of_generate(package: Path) -> None:
    model = LanguageModel(package)
    reference = AutoModelForCausalLM.from_pretrained(package.parent / "checkpoint", dtype=torch.float32).eval()
    for prompt in ("a", "The quick brown fox jumps over the lazy dog."):
        answered = model.answer(prompt, [], encoder="", vrc=False, max_new_tokens=16)
        ids = torch.from_numpy(model.prompt_ids(prompt).astype(np.int64))[None]
        expected = reference.generate(input_ids=ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
        assert answered.tokens == tuple(expected.tolist())
        assert len(set(answered.tokens)) > 8
        whole = torch.cat([ids, expected[None]], 1)
        logits = reference(input_ids=whole).logits[0, ids.shape[1] - 1 : -1].numpy()
        assert np.abs(model.logits(prompt, [], answered.tokens, encoder="", vrc=False) - logits).max() < GRAPH_FLOAT32


def test_the_package_says_that_it_cannot_rewind_and_the_runtime_refuses_to(package: Path) -> None:
    opened = LanguageModel(package)
    assert not opened.manifest.rewinds
    generation = opened.start("abc", max_new_tokens=4)
    list(generation)
    with pytest.raises(RuntimeError, match="RewindTo"):
        generation.generator.rewind_to(3)


def decoder_entry(**changes: Any) -> Any:
    return lambda c: c["model"]["decoder"].update(changes)


WRONG: dict[str, Any] = {
    "no kinds of layers": lambda c: c["model"]["decoder"].pop("layer_types"),
    "no size of the state": lambda c: c["model"]["decoder"].pop("conv_cache_size"),
    "no name of the state": lambda c: c["model"]["decoder"]["inputs"].pop("past_conv_names"),
    "another name of the state": lambda c: c["model"]["decoder"]["outputs"].update(present_conv_names="%n"),
    "kinds of fewer layers": decoder_entry(layer_types=["conv", "full_attention"]),
    "an unknown kind": decoder_entry(layer_types=["conv", "full_attention", "conv", "linear_attention"]),
    "attention alone": decoder_entry(layer_types=["full_attention"] * 4),
    "no states at all": lambda c: _without_states(c["model"]["decoder"]),
}


def _without_states(decoder: Any) -> None:
    for key in ("layer_types", "conv_cache_size"):
        decoder.pop(key)
    decoder["inputs"].pop("past_conv_names")
    decoder["outputs"].pop("present_conv_names")


@pytest.mark.parametrize("case", WRONG)
def test_other_states_in_the_configuration_are_refused(package: Path, tmp_path: Path, case: str) -> None:
    copied = copy_of(package, tmp_path)
    changed_json(copied / CONFIGURATION, WRONG[case])
    with pytest.raises(UserError) as error:
        open_package(renewed(copied))
    assert error.value.code == "package.configuration"


def test_a_manifest_that_promises_to_rewind_is_refused(package: Path, tmp_path: Path) -> None:
    copied = copy_of(package, tmp_path)
    changed_json(copied / MANIFEST, lambda manifest: manifest.pop("rewinds"))
    with pytest.raises(UserError, match="layer_types") as error:
        open_package(copied)
    assert error.value.code == "package.configuration"


def _state(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    return next(value for value in model.graph.input if value.name == "past_key_values.0.conv")


BENT: dict[str, Any] = {
    "a cache": lambda m: _state(m).type.tensor_type.shape.dim.add(dim_value=4),
    "any number of positions": lambda m: _state(m).type.tensor_type.shape.dim[2].ClearField("dim_value"),
    "any number of channels": lambda m: _state(m).type.tensor_type.shape.dim[1].ClearField("dim_value"),
}


@pytest.mark.parametrize("case", BENT)
def test_a_graph_with_another_state_is_refused(package: Path, tmp_path: Path, case: str) -> None:
    copied = copy_of(package, tmp_path)
    changed_graph(copied / "model.onnx", BENT[case])
    with pytest.raises(UserError, match="not the state of a convolution"):
        open_package(renewed(copied))


def copy_of(package: Path, directory: Path) -> Path:
    copied = directory / "package"
    copied.mkdir()
    for path in package.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    return copied


def test_a_decoder_of_fixed_shapes_is_refused_with_the_reason(tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "checkpoint", "lfm2", max_position_embeddings=256)
    with pytest.raises(TargetError, match="convolutions would hold the padding") as error:
        plan_build(open_request(checkpoint, "qnn-sm8750", "npu-w4a16", tmp_path / "package", aot=False))
    assert error.value.code == "target.refused"


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "no layer with attention": ("export.attention", {"layer_types": ["conv", "conv"]}),
    "a kind that nobody knows": ("export.attention", {"layer_types": ["conv", "linear_attention"]}),
    "kinds of fewer layers": ("checkpoint.config", {"layer_types": ["full_attention"]}),
    "a kernel of one position": ("checkpoint.config", {"conv_L_cache": 1}),
    "a kernel of another length": ("checkpoint.weights", {"conv_L_cache": 4}),
    "an MLP without gate": ("export.config", {"block_use_swiglu": False}),
    "biases that are not stored": ("checkpoint.weights", {"conv_bias": True}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exported_is_refused(tmp_path: Path, case: str) -> None:
    code, changes = REFUSED[case]
    directory = save_text(tmp_path / "checkpoint", "lfm2")
    changed_json(directory / "config.json", lambda config: config.update(changes))
    with pytest.raises(UserError) as error:
        exported(directory)
    assert code in {problem.code for problem in error.value.problems or (error.value,)}


def test_stored_biases_without_a_place_are_refused(tmp_path: Path) -> None:
    directory = save_text(tmp_path / "checkpoint", "lfm2", conv_bias=True)
    changed_json(directory / "config.json", lambda config: config.update(conv_bias=False))
    with pytest.raises(UserError, match=r"conv\.conv\.bias|in_proj\.bias") as error:
        exported(directory)
    assert error.value.code == "checkpoint.surplus"
