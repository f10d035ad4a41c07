"""An int8 cache computes what numpy computes from rounded keys and values, in onnxruntime and in its generator."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from hvlc.calibration.ranges import CacheObserver
from hvlc.errors import HvlcError, UserError
from hvlc.export import export_bundle
from hvlc.graphs.builder import MICROSOFT, GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.passes.fuse.pack_projections import PackProjections
from hvlc.passes.quantize.quantize_kv_cache import QuantizeKVCache, rotated_keys
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.lazy import Constant
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import CONTEXT, save_text
from tests.helpers.sessions import OPTIMIZATIONS, session
from tests.helpers.tolerances import QUANTIZED_CACHE, QUANTIZED_PRODUCT

HEADS, KV_HEADS, THETA = 4, 2, 10_000.0
SIZES = {"query": HEADS, "key": KV_HEADS, "value": KV_HEADS}


def attention(size: int, window: int | None = None, *, rotates: bool = True) -> Bundle:
    """One grouped-query attention over a cache, positions rotated."""
    b = GraphBuilder("model")
    inputs = [b.input(n, ir.DataType.FLOAT, ["batch", "sequence", h * size]) for n, h in SIZES.items()]
    cache = ["batch", KV_HEADS, "past", size]
    past = [b.input(f"past.{n}", ir.DataType.FLOAT, cache) for n in ("key", "value")]
    lengths = [b.input("lengths", ir.DataType.INT32, ["batch"]), b.input("total", ir.DataType.INT32, [])]
    angles = np.outer(np.arange(512), THETA ** (-np.arange(size // 2) / (size // 2)))
    tables = [b.constant(f(angles).astype(np.float32), f.__name__) for f in (np.cos, np.sin)] if rotates else []
    settings = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": int(rotates), "scale": size**-0.5}
    limited = {} if window is None else {"local_window_size": window}
    reads = [*inputs, *past, *lengths, *tables]
    made = b.ops("GroupQueryAttention", reads, 3, domain=MICROSOFT, name="attn", **settings, **limited)
    b.output(made[0], "y", ir.DataType.FLOAT, ["batch", "sequence", HEADS * size])
    for value, name in zip(made[1:], ("key", "value"), strict=True):
        b.output(value, f"present.{name}", ir.DataType.FLOAT, ["batch", KV_HEADS, "all", size])
    bundle = Bundle("test")
    bundle.add(Component("model", Role.DECODER, b.model(), "model"))
    return bundle


def magnitudes(size: int, largest: float = 3.0) -> dict[str, np.ndarray]:
    """Of every channel another one, small enough that some values are cut."""
    random = np.random.default_rng(size)
    return {f"present.{n}": random.uniform(1, largest, (KV_HEADS, size)).astype(np.float32) for n in ("key", "value")}


def expressions(known: dict[str, np.ndarray]) -> dict[str, Constant]:
    """Magnitudes as the pass takes them."""
    return {name: Constant(values) for name, values in known.items()}


def rotate(values: np.ndarray, first: int) -> np.ndarray:
    """float64 `[heads, positions, size]` rotated by its positions, halves paired."""
    turned = np.empty_like(values)
    half = values.shape[-1] // 2
    for position in range(values.shape[1]):
        for i in range(half):
            angle = (first + position) * THETA ** (-i / half)
            a, b = values[:, position, i], values[:, position, half + i]
            turned[:, position, i] = a * np.cos(angle) - b * np.sin(angle)
            turned[:, position, half + i] = b * np.cos(angle) + a * np.sin(angle)
    return turned


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, past: int, window: int | None) -> np.ndarray:
    """float64 `[positions, heads * size]` from the definition of causal attention."""
    heads, positions, size = query.shape
    y = np.zeros((positions, heads, size))
    for head in range(heads):
        for i in range(positions):
            last = past + i + 1
            first = 0 if window is None else max(0, last - window)
            keys, values = (x[head * KV_HEADS // heads, first:last] for x in (key, value))
            scores = keys @ query[head, i] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            y[i, head] = weights / weights.sum() @ values
    return y.reshape(positions, -1)


def split(values: np.ndarray, heads: int) -> np.ndarray:
    """float `[1, positions, heads * size]` to float64 `[heads, positions, size]`."""
    return values[0].astype(np.float64).reshape(values.shape[1], heads, -1).transpose(1, 0, 2)


@pytest.mark.parametrize("optimization", OPTIMIZATIONS)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("size", "lengths"), [(16, (5, 1)), (64, (33, 7)), (16, (1, 1))], ids=str)
@pytest.mark.usefixtures("checked")
def test_prompt_and_step_attend_to_the_stored_levels(
    size: int, lengths: tuple[int, int], window: int | None, optimization: str
) -> None:
    bundle = attention(size, window)
    known = magnitudes(size)
    QuantizeKVCache(expressions(known)).run(bundle)
    run = session(bundle.components["model"].model, optimization)
    random = np.random.default_rng(sum(lengths))
    cache = {n: np.zeros((1, KV_HEADS, 0, size), np.int8) for n in ("past.key", "past.value")}
    seen: dict[str, list[np.ndarray]] = {"key": [], "value": []}
    past = 0
    for length in lengths:
        feeds = {n: random.normal(size=(1, length, h * size)).astype(np.float32) for n, h in SIZES.items()}
        total = past + length
        counts = {"lengths": np.array([total - 1], np.int32), "total": np.array(total, np.int32)}
        y, *present = run.run(None, feeds | cache | counts)
        for (name, parts), stored in zip(seen.items(), present, strict=True):
            exact = split(feeds[name], KV_HEADS)
            parts.append(rotate(exact, past) if name == "key" else exact)
            scale = known[f"present.{name}"][:, None] / 127
            levels = np.clip(np.round(np.concatenate(parts, 1) / scale), -128, 127)
            assert np.abs(stored[0] - levels).max() <= 1  # a tie, rounded in float32
            assert (stored[0] != levels).mean() < 1e-3
            feeds[f"rounded {name}"] = stored[0] * scale
        query = rotate(split(feeds["query"], HEADS), past)
        expected = attend(query, feeds["rounded key"], feeds["rounded value"], past, window)
        assert np.abs(y[0] - expected).max() <= QUANTIZED_PRODUCT * np.abs(expected).max()
        in_float = attend(query, *(np.concatenate(seen[n], 1) for n in ("key", "value")), past, window)
        assert np.abs(y[0] - in_float).max() > 1e-3  # the comparison above sees the rounding
        cache = {"past.key": present[0], "past.value": present[1]}
        past = total


def test_the_graph_says_int8_and_keeps_its_nodes() -> None:
    bundle = attention(16)
    graph = bundle.components["model"].graph
    known = magnitudes(16)
    known["present.value"][1, 3] = 0  # a channel that was never seen
    QuantizeKVCache(expressions(known)).run(bundle)
    (node,) = graph
    assert [str(v.dtype) for v in [*graph.inputs[3:5], *graph.outputs[1:]]] == ["INT8"] * 4
    assert {n: node.attributes[n].value for n in ("k_quant_type", "v_quant_type", "kv_cache_bit_width")} == {
        "k_quant_type": "PER_CHANNEL",
        "v_quant_type": "PER_CHANNEL",
        "kv_cache_bit_width": 8,
    }
    assert [v.name if v else None for v in node.inputs[9:]] == [None, None, None, "attn.k_scale", "attn.v_scale"]
    key, value = (graph.initializers[f"attn.{kind}_scale"].const_value.numpy() for kind in "kv")
    np.testing.assert_array_equal(key, known["present.key"].reshape(-1) / np.float32(127))
    assert value[16 + 3] == value.max() == known["present.value"].max() / np.float32(127)
    assert (bundle.journal[-1].changed, bundle.journal[-1].skipped) == (1, ())


def test_a_cache_of_zeros_has_scales() -> None:
    bundle = attention(16)
    QuantizeKVCache(expressions({name: np.zeros((KV_HEADS, 16)) for name in magnitudes(16)})).run(bundle)
    scales = bundle.components["model"].graph.initializers["attn.k_scale"].const_value
    assert (scales.numpy() > 0).all()


def test_an_attention_without_cache_stays_and_another_role_too() -> None:
    bundle = attention(16)
    component = bundle.components["model"]
    node = component.graph[0]
    for position in (3, 4):
        node.replace_input_with(position, None)
    QuantizeKVCache({}).run(bundle)
    assert bundle.journal[-1].skipped[0].where == "attn"
    assert "no cache" in bundle.journal[-1].skipped[0].reason
    other = attention(16)
    other.components["model"].role = Role.VISION_ENCODER
    QuantizeKVCache({}).run(other)
    assert other.journal == []
    assert "k_quant_type" not in node.attributes


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m.pop("present.key"), "present.key: no magnitudes"),
        (lambda m: m.update({"present.key": np.ones((2, 8))}), "are [2, 8], the cache has 2 heads of 16"),
    ],
)
def test_wrong_magnitudes_are_refused_before_anything_changes(change, complaint: str) -> None:
    bundle, known = attention(16), magnitudes(16)
    change(known)
    with pytest.raises(UserError, match=r"calibration\.cache") as error:
        QuantizeKVCache(expressions(known)).run(bundle)
    assert complaint in error.value.cause
    assert list(bundle.components["model"].graph.initializers) == ["cos", "sin"]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1])
def test_magnitudes_that_are_none_are_refused_when_they_are_written(wrong: float) -> None:
    bundle, known = attention(16), magnitudes(16)
    known["present.value"][0, 0] = wrong
    QuantizeKVCache(expressions(known)).run(bundle)
    scales = bundle.components["model"].graph.initializers["attn.v_scale"].const_value
    with pytest.raises(UserError, match=r"present\.value: its magnitudes hold NaN, infinity or a number below 0"):
        scales.numpy()


def test_every_wrong_magnitude_is_named_at_once() -> None:
    with pytest.raises(HvlcError) as error:
        QuantizeKVCache({}).run(attention(16))
    assert len(error.value.problems) == 2


@pytest.mark.parametrize(("rotates", "expected"), [(True, {"present.key"}), (False, set())])
def test_the_keys_that_are_rotated_are_known(rotates: bool, expected: set[str]) -> None:
    assert rotated_keys(attention(16, rotates=rotates).components["model"]) == expected


@pytest.mark.parametrize("optimization", OPTIMIZATIONS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_joined_projections_fill_the_same_cache(tmp_path: Path, family: str, optimization: str) -> None:
    checkpoint = save_text(tmp_path / "checkpoint", family)
    ids = np.random.default_rng(3).integers(0, 256, 30)
    feeds = {name: x.astype(np.int8) if "past" in name else x for name, x in prompt(ids).items()}
    outputs = []
    for packs in (False, True):
        bundle = export_bundle(Checkpoint.open(checkpoint))
        (component,) = bundle.components.values()
        presents = [value for value in component.graph.outputs if value.name != "logits"]
        if packs:
            PackProjections().run(bundle)
            assert bundle.journal[-1].changed == 2
        QuantizeKVCache(expressions({str(v.name): np.full((KV_HEADS, 16), 3.0) for v in presents})).run(bundle)
        outputs.append(session(component.model, optimization).run(None, feeds))
    (apart, *levels), (joined, *others) = outputs
    assert np.abs(apart - joined).max() <= QUANTIZED_CACHE / 10 * np.abs(apart).max()  # a level may fall the other way
    for one, other in zip(levels, others, strict=True):
        assert (one != other).mean() < 1e-3


@pytest.fixture(scope="module", params=["llama", "qwen3", "smollm3"])
def packages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same decoder with a float and with an int8 cache; read only."""
    root = tmp_path_factory.mktemp(request.param)
    checkpoint = save_text(root / "checkpoint", request.param)
    plain = build(open_request(checkpoint, "cpu", "float32", root / "float")).output
    model = ir.load(plain / "model.onnx")
    bundle = Bundle(request.param)
    bundle.add(Component("model", Role.DECODER, model, "model"))
    observer = CacheObserver(rotated_keys(bundle.components["model"]))
    run, random = session_of(plain), np.random.default_rng(0)
    names = [output.name for output in run.get_outputs()]
    for _ in range(8):
        for name, values in zip(names, run.run(None, prompt(random.integers(0, 256, 40))), strict=True):
            if name.startswith("present"):
                observer.observe(name, values)
    QuantizeKVCache(expressions(observer.magnitudes())).run(bundle)
    quantized = shutil.copytree(plain, root / "int8")
    onnx.save_model(ir.to_proto(model), quantized / "model.onnx")
    return {"float": plain, "int8": quantized}


def session_of(package: Path):
    import onnxruntime as ort

    return ort.InferenceSession(str(package / "model.onnx"), providers=["CPUExecutionProvider"])


def prompt(ids: np.ndarray) -> dict[str, np.ndarray]:
    cache = {
        f"past_key_values.{i}.{part}": np.zeros((1, 2, 0, 16), np.float32) for i in (0, 1) for part in ("key", "value")
    }
    return {"input_ids": ids[None], "attention_mask": np.ones((1, ids.size), np.int64), **cache}


def generate(package: Path, ids: np.ndarray, *, shared: bool, tokens: int = 16) -> tuple[list[int], list[Any], Any]:
    """Greedy tokens, the logits that each was chosen from, and the first layer's keys."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og

    config = og.Config(str(package))
    config.overlay(json.dumps({"search": {"past_present_share_buffer": shared}}))
    model = og.Model(config)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=CONTEXT, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(ids.astype(np.int32)[None])
    logits = []
    for _ in range(tokens):
        generator.generate_next_token()
        logits.append(np.array(generator.get_output("logits")).reshape(-1))
    return generator.get_sequence(0)[ids.size :].tolist(), logits, np.array(generator.get_output("present.0.key"))


@pytest.mark.parametrize("shared", [True, False], ids=["shared buffer", "own buffers"])
def test_generation_goes_on_with_a_cache_of_a_quarter(packages: dict[str, Path], shared: bool) -> None:
    ids = np.random.default_rng(7).integers(0, 256, 30)
    expected, exact, floats = generate(packages["float"], ids, shared=shared)
    tokens, logits, levels = generate(packages["int8"], ids, shared=shared)
    steps = min(next((i for i, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b), 15) + 1, 16)
    assert steps > 10
    for step in range(steps):
        error = np.abs(logits[step] - exact[step]).max()
        assert 0 < error <= QUANTIZED_CACHE * np.abs(exact[step]).max()
        margin = np.diff(np.sort(exact[step])[-2:])[0]
        assert tokens[step] == expected[step] or margin < 2 * error  # only at a near tie
    assert (levels.dtype, levels.shape) == (np.dtype(np.int8), floats.shape)
    assert levels.shape[2] == (CONTEXT if shared else 30 + 15)
    assert 4 * levels.nbytes == floats.nbytes
