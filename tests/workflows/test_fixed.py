"""Packages of fixed shapes: the tokens of the package of dynamic shapes, and graphs that an NPU's rules take."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from hvlc.errors import HvlcError, TargetError, UserError
from hvlc.export import export_bundle
from hvlc.graphs.facts import Kind
from hvlc.graphs.placement import Phase, Placement
from hvlc.lint.engine import lint_graph
from hvlc.manifest.manifest import Manifest
from hvlc.runtime.generation import LanguageModel, open_model
from hvlc.runtime.settings import VisionSettings
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.limits import check_written
from hvlc.workflows.build.lowering import static_context
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import BuildRequest, open_request
from tests.export.tiny_families import save_text, save_vision
from tests.helpers.fixed_shapes import CHUNK, Pair, build_pair, npu_target, write_recipe, write_target
from tests.helpers.tiny import CONTEXT, picture
from tests.helpers.tiny_vision_language import save_grid
from tests.helpers.tolerances import GRAPH_FLOAT32, STATIC_ACTIVATIONS
from tests.qnn.graphs import HAZARDS

#: Every product of integers. Blocks, because rows have negative scales on the CPU alone, so levels would differ.
STATIC: dict[str, Any] = {
    "activations": "static",
    "static": {"range": "minmax"},
    "calibration": {"samples": 4, "tokens": 24},
    "rules": [
        {"role": "decoder", "quantize": {"bits": 4, "block_size": 16, "scale_type": "float16"}},
        {"role": "vision_encoder", "optional": True, "quantize": {"bits": 8, "block_size": 16}},
    ],
}
#: The same with a decoder whose blocks have whole numbers for scales.
LPBQ: dict[str, Any] = {
    **STATIC,
    "rules": [
        {"role": "decoder", "quantize": {"bits": 4, "block_size": 16, "scale_type": "lpbq"}},
        *STATIC["rules"][1:],
    ],
}
#: MatMulNBits in blocks that divide every row, as Qualcomm's compiler asks.
BLOCKS: dict[str, Any] = {
    "rules": [
        {"role": "decoder", "quantize": {"bits": 4, "block_size": 16}},
        {"role": "vision_encoder", "quantize": {"bits": 8, "block_size": 16}},
    ]
}
TEMPLATE = 3  # tokens of the tiny tokenizer's chat template
#: A prompt of less than a chunk, of more than one and no whole number of them.
PROMPTS = ("Hi", "What is the total of this receipt, and when was it paid? " * 2)


@pytest.fixture(scope="module", params=["float32", "blocks", "static", "static lpbq"])
def seeing(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp(request.param)
    content = {"static": STATIC, "static lpbq": LPBQ, "blocks": BLOCKS}.get(request.param)
    recipe = write_recipe(root / f"{request.param}.yaml", **content) if content else request.param
    return build_pair(tiny_checkpoint, root, recipe)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Packages of a text decoder, that of fixed shapes in two transformer parts."""
    root = tmp_path_factory.mktemp("speaking")
    return build_pair(save_text(root / "checkpoint", "qwen2"), root, "float32", part_bytes=150_000)


def logits(model: LanguageModel, prompt: str, images: Sequence[Image.Image], encoder: str, answer: Any) -> np.ndarray:
    return model.logits(prompt, images, answer, encoder=encoder, vrc=True)


@pytest.mark.parametrize(("images", "encoder"), [(0, "base"), (1, "large"), (2, "base")])
def test_the_tokens_are_those_of_the_dynamic_package(seeing: Pair, images: int, encoder: str) -> None:
    dynamic, fixed = (open_model(path, vision=VisionSettings(2)) for path in (seeing.dynamic, seeing.fixed))
    shown, answers = [picture(70, 150, seed=1), picture(40, 90, seed=2)][:images], set[int]()
    for prompt in PROMPTS:
        expected, found = (
            m.answer(prompt, shown, encoder=encoder, vrc=True, max_new_tokens=12) for m in (dynamic, fixed)
        )
        assert found.tokens == expected.tokens
        assert (found.prompt_tokens, found.visual_tokens) == (expected.prompt_tokens, expected.visual_tokens)
        said, again = (logits(m, prompt, shown, encoder, expected.tokens) for m in (dynamic, fixed))
        rounding = 4 * STATIC_ACTIVATIONS if seeing.fixed.parent.name.startswith("static") else GRAPH_FLOAT32
        assert np.abs(again - said).max() <= rounding * max(1, np.abs(said).max())
        answers.update(expected.tokens)
    assert len(answers) > 1


def test_every_chunk_of_a_prompt_and_every_image_is_seen(seeing: Pair) -> None:
    model = open_model(seeing.fixed)
    long = PROMPTS[1]
    answers = [
        model.logits(prompt, [picture(60, 90, seed)], [5], encoder="base", vrc=True)
        for prompt, seed in ((long, 1), ("w" + long[1:], 1), (long, 2))
    ]
    for other in answers[1:]:
        assert np.abs(other - answers[0]).max() > 1e-3


@pytest.mark.parametrize("length", [TEMPLATE + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_text_of_every_length_is_answered_alike(speaking: Pair, length: int) -> None:
    dynamic, fixed = (open_model(path) for path in (speaking.dynamic, speaking.fixed))
    prompt = ("abcdefgh" * 8)[: length - TEMPLATE]
    assert len(fixed.prompt_ids(prompt)) == length
    expected, found = (m.answer(prompt, [], encoder="", vrc=False, max_new_tokens=10) for m in (dynamic, fixed))
    assert found.tokens == expected.tokens
    said, again = (logits(m, prompt, [], "", expected.tokens) for m in (dynamic, fixed))
    assert np.abs(again - said).max() <= GRAPH_FLOAT32


def test_the_whole_context_can_be_used_and_no_more(speaking: Pair) -> None:
    dynamic, fixed = (open_model(path) for path in (speaking.dynamic, speaking.fixed))
    context = fixed.manifest.context_length or 0
    prompt = "a" * (context - 2 * CHUNK - TEMPLATE)
    asked: dict[str, Any] = {"encoder": "", "vrc": False, "max_new_tokens": 2 * CHUNK}
    assert fixed.answer(prompt, [], **asked).tokens == dynamic.answer(prompt, [], **asked).tokens
    with pytest.raises(UserError, match=r"request\.too_long"):
        fixed.answer(prompt + "a", [], **asked)  # padded by a chunk


def test_a_prompt_that_holds_the_padding_is_refused(seeing: Pair) -> None:
    model = open_model(seeing.fixed)
    config = json.loads((seeing.fixed / "genai_config.json").read_text())
    padding = config["model"]["pad_token_id"]
    texts = {t["id"]: t["content"] for t in json.loads((seeing.fixed / "tokenizer.json").read_text())["added_tokens"]}
    with pytest.raises(UserError, match=r"request\.padding"):
        model.answer(f"before{texts[padding]}after", [], encoder="base", vrc=True, max_new_tokens=2)


# What is written.


def test_components_stages_and_placements_agree(seeing: Pair) -> None:
    manifest = Manifest.load(seeing.fixed)
    manifest.verify(seeing.fixed)
    assert manifest.is_staged
    on_npu = {name: entry for name, entry in manifest.components.items() if entry.placement is Placement.NPU}
    assert {n for n in on_npu if on_npu[n].phase is Phase.ALWAYS} == {"vision_base", "vision_large"}
    for phase in (Phase.PROMPT, Phase.TOKEN):
        names = [name for name, entry in on_npu.items() if entry.phase is phase]
        assert names == [f"decoder_1_{phase}", f"head_{phase}"]
    on_cpu = {name: entry.reason for name, entry in manifest.components.items() if name not in on_npu}
    assert set(on_cpu) == {"front", "stitch", "embedding", "vision"}
    assert all(on_cpu.values())
    config = json.loads((seeing.fixed / "genai_config.json").read_text())["model"]
    (stages,) = config["decoder"]["pipeline"]
    order = [name for name, entry in manifest.components.items() if name == "embedding" or "decoder" in entry.role]
    assert list(stages) == order
    assert config["decoder"]["sliding_window"]["window_size"] == CHUNK
    assert config["context_length"] == manifest.context_length == CONTEXT


def test_every_graph_for_the_npu_is_static_and_taken(seeing: Pair) -> None:
    manifest, target = Manifest.load(seeing.fixed), load_target(str(seeing.fixed.parent / "npu.toml"))
    for name, entry in manifest.components.items():
        if entry.placement is not Placement.NPU:
            continue
        report = lint_graph(seeing.fixed / entry.file, target, name=name, role=entry.role)
        assert (report.refused, report.hazards, report.partitions, report.unknown_shapes) == (0, 0, 1, 0)
        graph = onnx.load(seeing.fixed / entry.file, load_external_data=False).graph
        for value in (*graph.input, *graph.output, *graph.value_info):
            dims = value.type.tensor_type.shape.dim
            assert all(dim.HasField("dim_value") for dim in dims), (name, value.name)
        shaped = {value.name for value in (*graph.output, *graph.value_info)}
        assert {o for node in graph.node for o in node.output if o} <= shaped
        assert "attention_mask" not in entry.inputs


def test_prompt_and_token_graphs_share_the_bytes_of_their_weights(seeing: Pair) -> None:
    def places(name: str) -> set[tuple[str, ...]]:
        tensors = onnx.load(seeing.fixed / f"{name}.onnx", load_external_data=False).graph.initializer
        large = [t for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL]
        return {tuple(entry.value for entry in tensor.external_data) for tensor in large}

    for part in ("decoder_1", "head"):
        assert places(f"{part}_prompt") == places(f"{part}_token")
        assert places(f"{part}_token")
    data = {path: (path / "model.onnx.data").stat().st_size for path in (seeing.dynamic, seeing.fixed)}
    assert data[seeing.fixed] < 1.3 * data[seeing.dynamic]


def test_parts_are_as_large_as_they_may_be(speaking: Pair) -> None:
    manifest = Manifest.load(speaking.fixed)
    names = [name for name, entry in manifest.components.items() if entry.phase is Phase.PROMPT]
    assert names == ["decoder_1_prompt", "decoder_2_prompt", "head_prompt"]
    caches = {name: manifest.components[name].outputs for name in names}
    assert caches == {
        "decoder_1_prompt": ("hidden_states.1",),
        "decoder_2_prompt": ("hidden_states",),
        "head_prompt": ("logits",),
    }


def test_a_static_decoder_reads_and_writes_integers_at_its_cuts(tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "checkpoint", "llama")
    recipe = write_recipe(tmp_path / "static.yaml", **STATIC)
    target = write_target(tmp_path / "npu.toml", part_bytes=40_000)
    package = build(open_request(checkpoint, target, recipe, tmp_path / "package", threads=1)).output
    first, second = (onnx.load(package / f"decoder_{i}_prompt.onnx", load_external_data=False).graph for i in (1, 2))
    (wire,) = {v.name for v in first.output} & {v.name for v in second.input}
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*first.output, *second.input)}
    assert kinds[wire] == onnx.TensorProto.UINT16
    assert {n.op_type for n in second.node if wire in n.input} == {"DequantizeLinear"}
    plain = build(open_request(checkpoint, "cpu", recipe, tmp_path / "plain", threads=1)).output
    answers = [
        open_model(path).answer("abcdefgh" * 3, [], encoder="", vrc=False, max_new_tokens=8)
        for path in (package, plain)
    ]
    assert answers[0].tokens == answers[1].tokens


def test_a_package_of_fixed_shapes_is_rebuilt_to_the_byte(speaking: Pair) -> None:
    made = rebuild(speaking.fixed, speaking.fixed.parent / "checkpoint", threads=1)
    assert made.files > 5


# What is refused, and when.


def request(checkpoint: Path, target: str, output: Path, **options: Any) -> BuildRequest:
    return open_request(checkpoint, target, options.pop("recipe", "float32"), output, threads=1, **options)


def refusal(asked: BuildRequest) -> HvlcError:
    with pytest.raises((UserError, TargetError)) as error:
        plan_build(asked)
    return error.value


@pytest.mark.parametrize(
    ("changes", "options", "code", "said"),
    [
        ({}, {"context": 10 * CONTEXT}, "build.context", f"longer than the checkpoint's {CONTEXT}"),
        ({}, {"context": CHUNK - 1}, "build.context", f"no chunk of {CHUNK}"),
        ({"part_bytes": 1000}, {}, "target.part_size", "layer 0 has"),
        ({"max_rank": 4}, {}, "target.refused", "has 5 dimensions, 4 are taken"),
        ({"cpu_roles": []}, {}, "target.refused", "front: image has dimensions height, width"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_before_the_work(
    tiny_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], code: str, said: str
) -> None:
    error = refusal(request(tiny_checkpoint, write_target(tmp_path / "npu.toml", **changes), tmp_path / "o", **options))
    assert error.code == code
    assert said in error.cause
    assert not (tmp_path / "o").exists()


def test_a_context_is_for_fixed_shapes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert refusal(request(tiny_checkpoint, "cpu", tmp_path / "o", context=64)).code == "build.context"


def test_refused_operators_are_named_with_their_number(tiny_checkpoint: Path, tmp_path: Path) -> None:
    group = {"taken": False, "names": ["Gelu"], "reason": "tried", "evidence": "run", "source": "a test"}
    target = write_target(tmp_path / "npu.toml", operators={"none": group})
    error = refusal(request(tiny_checkpoint, target, tmp_path / "o"))
    assert "does not take Gelu: tried (7 nodes)" in error.cause


def test_rows_that_no_block_divides_are_refused(tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "checkpoint", "llama", intermediate_size=104)
    error = refusal(request(checkpoint, write_target(tmp_path / "npu.toml"), tmp_path / "o", recipe="w4a16-rtn"))
    assert error.code == "plan.target"
    assert "104 input features in blocks of 32: the input features must be a multiple of the block" in error.cause
    assert not (tmp_path / "o").exists()


def test_windowed_attention_is_refused_by_the_rules_of_the_target(tmp_path: Path) -> None:
    checkpoint = save_text(
        tmp_path / "checkpoint", "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0
    )
    group = {"taken": False, "names": ["And"], "reason": "tried", "evidence": "run", "source": "a test"}
    target = write_target(tmp_path / "npu.toml", operators={"none": group})  # which can write out no window either
    with pytest.raises(TargetError) as error:
        build(request(checkpoint, target, tmp_path / "o"))
    assert "a local window is not taken" in error.value.cause
    assert not (tmp_path / "o").exists()


def test_without_the_compiler_a_build_stops_before_its_work_and_says_the_way_out(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime_qnn" else real(name))
    error = refusal(request(tiny_checkpoint, "qnn-sm8750", tmp_path / "o"))
    assert error.code == "install.qnn"
    assert "--no-aot" in error.fix
    assert "hvlc[qnn]" in error.fix
    planned = plan_build(request(tiny_checkpoint, "qnn-sm8750", tmp_path / "o", aot=False))
    assert "decoder_1_prompt" in planned.bundle.components


@pytest.mark.parametrize(
    ("longest", "default", "asked", "context"),
    [(2048, None, None, 2048), (2048, 512, None, 512), (2048, 512, 1024, 1024), (100, 0, None, 96), (100, 500, 33, 32)],
)
def test_a_context_is_whole_chunks(
    tmp_path: Path, longest: int, default: int | None, asked: int | None, context: int
) -> None:
    target = npu_target(tmp_path, **({"context": default} if default else {}))
    assert static_context(longest, target, asked) == context


def test_a_vision_tower_sees_one_image(tmp_path: Path) -> None:
    checkpoint = save_vision(tmp_path / "checkpoint", "siglip_vision_model", vision_use_head=False)
    target = write_target(tmp_path / "npu.toml")
    package = build(request(checkpoint, target, tmp_path / "o")).output
    manifest = Manifest.load(package)
    assert manifest.kind is Kind.VISION
    assert manifest.components["vision"].placement is Placement.NPU
    graph = onnx.load(package / "vision.onnx", load_external_data=False).graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 32, 32]


def test_written_graphs_that_would_err_are_refused(seeing: Pair) -> None:
    """The check of a written package sees what no pass does: here a query norm over heads in two dimensions."""
    manifest, target = Manifest.load(seeing.fixed), load_target(str(seeing.fixed.parent / "npu.toml"))
    check_written(seeing.fixed, manifest, target)
    stricter = target.model_copy(update={"max_rank": 2})
    with pytest.raises(TargetError) as error:
        check_written(seeing.fixed, manifest, stricter)
    assert "at most 2 dimensions" in error.value.cause
    assert len(error.value.problems) > 10
    check_written(seeing.dynamic, Manifest.load(seeing.dynamic), load_target("cpu"))


@pytest.mark.parametrize("hazard", ["N8", "N9"])
def test_written_weights_that_would_err_are_refused(seeing: Pair, tmp_path: Path, hazard: str) -> None:
    manifest = Manifest.load(seeing.fixed)
    entry = next(entry for entry in manifest.components.values() if entry.placement is Placement.NPU)
    written = manifest.model_copy(update={"components": {"graph": entry.model_copy(update={"file": "graph.onnx"})}})
    HAZARDS[hazard](tmp_path / "graph.onnx", wrong=False)
    check_written(tmp_path, written, load_target("qnn-sm8750"))
    HAZARDS[hazard](tmp_path / "graph.onnx", wrong=True)
    with pytest.raises(TargetError, match=r"graph: product \(MatMul\): .*errors as large as the values"):
        check_written(tmp_path, written, load_target("qnn-sm8750"))


def test_the_exported_bundle_is_not_asked_for(tiny_checkpoint: Path) -> None:
    """Fixing comes last: what calibration walks through keeps its dynamic shapes."""
    bundle = export_bundle(Checkpoint.open(tiny_checkpoint))
    dims = bundle.components["model"].graph.inputs[0].shape
    assert dims is not None
    assert not isinstance(dims[1], int)


NATIVE = ["front", "vision_router", "vision_merger", "embedding", "vision_encoder"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("parts", [1, 2])
def test_positions_in_grids_and_taps_reach_fixed_shapes(tmp_path: Path, family: str, parts: int) -> None:
    """Images begin in the first chunk and end in a later one; with two parts, the second adds a tap, too."""
    checkpoint = save_grid(tmp_path / "checkpoint", family)
    recipe = write_recipe(tmp_path / "blocks.yaml", **BLOCKS)
    limits = {"cpu_roles": NATIVE, "context": 512} | ({"part_bytes": 60_000} if parts > 1 else {})
    pair = build_pair(checkpoint, tmp_path, recipe, **limits)
    found = {name for name in Manifest.load(pair.fixed).components if name.startswith("decoder_")}
    assert len(found) == 2 * parts
    dynamic, fixed = (open_model(package) for package in (pair.dynamic, pair.fixed))
    for prompt, images in (("What?", []), ("What? " * 6, [(70, 40)]), ("Which?", [(40, 90), (90, 60)])):
        pictures = [picture(*size) for size in images]
        asked = {"encoder": "auto", "vrc": True, "max_new_tokens": 8}
        wanted, answered = (model.answer(prompt, pictures, **asked) for model in (dynamic, fixed))
        assert answered.prompt_tokens > CHUNK
        assert answered.tokens == wanted.tokens


def test_without_the_table_of_positions_the_answer_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path / "blocks.yaml", **BLOCKS)
    pair = build_pair(save_grid(tmp_path / "checkpoint"), tmp_path, recipe, cpu_roles=NATIVE, context=512)
    asked = {"encoder": "auto", "vrc": True, "max_new_tokens": 8}
    pictures = [picture(40 + 10 * i, 90 - 10 * i) for i in range(4)]
    model = open_model(pair.fixed)
    right = [model.answer("What?", [p], **asked).tokens for p in pictures]
    in_order = np.broadcast_to(np.arange(512, dtype=np.int32), (3, 512))
    monkeypatch.setattr("hvlc.runtime.generation.position_table", lambda positions, context: in_order.copy())
    assert right != [model.answer("What?", [p], **asked).tokens for p in pictures]
