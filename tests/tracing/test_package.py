"""A package stage by stage is the package: the same values as its graphs give as a whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from hvlc.errors import UserError
from hvlc.results import trace_points
from hvlc.results.trace_points import Question
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.vision import Vision
from hvlc.tracing.package import PackageTracer
from hvlc.tracing.parts import Graph, Precision
from hvlc.weights.rotation import Rotation
from tests.helpers.tiny import picture

IMAGE = np.asarray(picture(40, 70))
ANSWERED = (trace_points.SAMPLING, trace_points.ANSWER)


def question(tracer: PackageTracer, **changes: object) -> Question:
    return tracer.resolved(Question(**{"prompt": "What is it?", "images": (IMAGE,), "max_new_tokens": 4} | changes))  # type: ignore[arg-type]


def whole(package: Path, file: str, feeds: dict[str, np.ndarray], output: str) -> np.ndarray:
    """An output of a graph that was not cut."""
    session = ort.InferenceSession(package / file, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([output], feeds)[0]
    return found


@pytest.mark.parametrize("recipe", ["tiny_float32", "tiny_w4a16"])
@pytest.mark.parametrize("encoder", ["base", "large"])
def test_the_stages_of_a_package_add_up_to_its_graphs(
    request: pytest.FixtureRequest, recipe: str, encoder: str
) -> None:
    package: Path = request.getfixturevalue(recipe)
    tracer = PackageTracer(package)
    values = tracer.trace(question(tracer, encoder=encoder))
    assert list(values) == list(trace_points.in_order(values))
    vision = Vision(package, tracer.manifest)
    seen = vision.see(IMAGE, compress=True)
    np.testing.assert_array_equal(values[trace_points.PREPROCESSING], seen.pieces)
    features = vision.encode([seen], encoder).features[0]
    np.testing.assert_allclose(values[trace_points.STITCHING], features, atol=1e-5)
    ids = trace_points.read_ids(values)[None]
    embeds = whole(package, "embedding.onnx", {"input_ids": ids, "image_features": features}, "inputs_embeds")
    np.testing.assert_allclose(values[trace_points.MERGE], embeds[0], atol=1e-5)
    layers = tracer.layout.decoder
    past = {
        f"past_key_values.{layer}.{side}": np.zeros((1, 2, 0, 16), np.float32)
        for layer in range(layers)
        for side in ("key", "value")
    }
    feeds = {"inputs_embeds": embeds, "attention_mask": np.ones_like(ids), **past}
    logits = whole(package, "model.onnx", feeds, "logits")
    np.testing.assert_allclose(values[trace_points.HEAD][-1], logits[0, -1], atol=1e-4)


def test_the_answer_is_the_engines(tiny_float32: Path) -> None:
    tracer = PackageTracer(tiny_float32)
    asked = question(tracer)
    answered = VisionLanguageModel(tiny_float32).answer(
        asked.prompt, [picture(40, 70)], encoder=asked.encoder, vrc=True, max_new_tokens=4
    )
    tokens = np.array(answered.tokens)
    values = tracer.trace(asked)
    assert values[trace_points.ANSWER].tolist() == tokens.tolist()
    kept = trace_points.before_placeholder(tokens, tracer.manifest.images.token)  # type: ignore[union-attr]
    assert values[trace_points.SAMPLING].tolist() == kept.tolist()


def test_a_layer_gives_the_same_one_token_after_another(tiny_float32: Path) -> None:
    tracer = PackageTracer(tiny_float32)
    asked = question(tracer)
    values = {**tracer.trace(asked), trace_points.SAMPLING: np.array([5, 6, 7])}
    with next(s for s in tracer.stages(asked) if s.name == trace_points.EMBEDDING).opened() as run:
        values |= run(values)
    with next(s for s in tracer.stages(asked) if s.name == trace_points.MERGE).opened() as run:
        values |= run(values)
    layer = next(s for s in tracer.stages(asked) if s.name == trace_points.decoder_layer(0))
    with layer.opened() as run:
        at_once, stepwise = (run(values, stepwise=one)[layer.name] for one in (False, True))
    assert len(at_once) == len(values[trace_points.TOKENIZATION]) + 2
    np.testing.assert_allclose(stepwise, at_once, atol=1e-5)


def test_text_alone_passes_no_vision(tiny_float32: Path) -> None:
    tracer = PackageTracer(tiny_float32)
    asked = question(tracer, images=())
    names = list(tracer.trace(asked))
    assert names == [
        "tokenization",
        "embedding",
        *(f"decoder.layers.{i}" for i in range(2)),
        "decoder.head",
        *ANSWERED,
    ]
    assert asked.encoder == ""


def test_several_images_keep_their_places(tiny_float32: Path) -> None:
    tracer = PackageTracer(tiny_float32)
    images = (IMAGE, np.asarray(picture(33, 20, seed=1)))
    values = tracer.trace(question(tracer, images=images, encoder="base", max_new_tokens=0))
    vision = Vision(tiny_float32, tracer.manifest)
    seen = [vision.see(image, compress=True) for image in images]
    features = vision.encode(seen, "base").features
    np.testing.assert_allclose(values[trace_points.STITCHING], np.concatenate(features), atol=1e-5)
    assert len(values[trace_points.SAMPLING]) == 0


def test_precision_is_what_a_part_computes_with(tiny_w4a16: Path) -> None:
    tracer = PackageTracer(tiny_w4a16)
    found = {stage.name: stage.precision for stage in tracer.stages(question(tracer))}
    assert found[trace_points.decoder_layer(0)] == Precision(weights=4)
    assert found[trace_points.vision_layer(0)] == Precision(weights=8, activations=8)
    assert found[trace_points.EMBEDDING].weights == 4
    assert found[trace_points.MERGE] == found[trace_points.POST_NORM] == Precision()


def test_a_rotation_that_the_graph_does_not_show_is_not_undone(tiny_float32: Path) -> None:
    assert not PackageTracer(tiny_float32, Rotation(64)).rotated


def damaged(package: Path, copy: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    shutil.copytree(package, copy)
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    change(model)
    onnx.save(model, copy / "model.onnx")
    return copy


def _rename(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.name.endswith("layers.0.input_layernorm"):
            node.name = "norm_of_the_first_layer"


def _bypass(model: onnx.ModelProto) -> None:
    """The second layer reads what entered the first one, too."""
    node = next(n for n in model.graph.node if n.name.endswith("layers.1.mlp.down_proj"))
    added = helper.make_node("Add", [node.output[0], "inputs_embeds"], ["bypassed"], name="bypass")
    for other in model.graph.node:
        other.input[:] = ["bypassed" if name == node.output[0] else name for name in other.input]
    model.graph.node.insert(list(model.graph.node).index(node) + 1, added)


def _escape(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
    next(entry for entry in tensor.external_data if entry.key == "location").value = "../elsewhere.data"


@pytest.mark.parametrize(
    ("change", "code"),
    [(_rename, "bisect.boundaries"), (_bypass, "bisect.boundaries"), (_escape, "package.escape")],
)
def test_a_graph_that_cannot_be_cut_says_so(
    tiny_float32: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], code: str
) -> None:
    copy = damaged(tiny_float32, tmp_path / "package", change)
    with pytest.raises(UserError) as error:
        _stages(copy)
    assert error.value.code == code


def _stages(package: Path) -> None:
    tracer = PackageTracer(package)
    tracer.stages(question(tracer))


def test_a_file_that_is_no_graph_says_so(tiny_float32: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_float32, tmp_path / "package"))
    (copy / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError) as error:
        Graph(copy, "model.onnx")
    assert error.value.code == "package.graph"


def test_a_vision_package_answers_nothing(tiny_float32: Path, tmp_path: Path) -> None:
    manifest = json.loads((tiny_float32 / "hvlc.json").read_text("utf-8"))
    for name in ("encoders", "policy", "images", "variants", "context_length", "trained_context_length"):
        manifest.pop(name)
    settings = {"image_size": 32, "patch_size": 8, "mean": None, "std": None, "rescale_factor": None, "resample": None}
    manifest |= {"kind": "vision", "preprocessing": settings}
    (tmp_path / "hvlc.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(UserError) as error:
        PackageTracer(tmp_path)
    assert error.value.code == "package.kind"
