"""Every family that is exported, with what real checkpoints vary, in fixed shapes for a Snapdragon.

The fast tests run the graphs on the CPU; the slow ones compile them, and run them in emulation.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from hvlc.errors import TargetError, UserError
from hvlc.graphs.plan import Action, Plan
from hvlc.qnn.compiler import CompileOptions
from hvlc.results.compilation import Compilation
from hvlc.runtime.generation import open_model
from hvlc.targets import load_target
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.compiling import CompileRequest, compile_package
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import save_text, save_vision
from tests.helpers.fixed_shapes import write_target
from tests.helpers.tiny import save_tiny
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.qnn.conftest import needs_qnn

TARGET, CHUNK, CONTEXT, POSITIONS = "qnn-sm8750", 64, 192, 256
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
#: Text decoders: family, and what differs from its tiny checkpoint.
TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "num_key_value_heads": 1, "head_dim": 80}),
    "yarn": ("llama", {"rope_parameters": YARN, "head_dim": 64, "vocab_size": 641}),
    "smollm": ("llama", {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "windows": ("qwen2", {"use_sliding_window": True, "sliding_window": CONTEXT, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "smollm3": ("smollm3", {"head_dim": 128}),
    "mistral": ("mistral", {"sliding_window": CONTEXT}),
    "ernie4_5": ("ernie4_5", {"use_bias": True}),
    "short windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    "gemma3_text": ("gemma3_text", {"num_hidden_layers": 7, "layer_types": None, "sliding_window": 24}),
    "granite": ("granite", {"residual_multiplier": 0.22, "tie_word_embeddings": True}),
    "phi3": ("phi3", {"hidden_size": 128, "partial_rotary_factor": 0.5}),
}
VISION = ("siglip", "siglip2", "siglip_vision_model", "siglip2_vision_model")
#: Decoders whose compiled graphs the check of a build refuses today, and what it finds.
REFUSED = {
    "phi3": "heads that rotate in part: 87 % noise in the graph of a token",
    "ernie4_5": "0.54 % noise in the graph of a token, 0.53 % is tolerated",
}
FAMILIES = (*sorted({family for family, _ in TEXT.values()} - REFUSED.keys()), *VISION, "hypervl")
COMPILED = [name for name in (*TEXT, *VISION, "hypervl") if name not in REFUSED]


def save(directory: Path, name: str) -> Path:
    if name not in TEXT:
        return save_vision(directory, name) if name in VISION else save_tiny(directory)
    family, changes = TEXT[name]
    rope = {"rope_theta": 10_000.0, "original_max_position_embeddings": 64}
    if "rope_parameters" in changes:
        changes = changes | {"rope_parameters": changes["rope_parameters"] | rope}
    return save_text(directory, family, max_position_embeddings=POSITIONS, **changes)


def fixed(checkpoint: Path, output: Path, recipe: str = "float32", target: str = TARGET) -> Path:
    context = None if checkpoint.name in VISION else CONTEXT
    return build(open_request(checkpoint, target, recipe, output, context=context, threads=1, aot=False)).output


@pytest.mark.parametrize("name", TEXT)
def test_a_decoder_says_what_the_package_of_dynamic_shapes_says(tmp_path: Path, name: str) -> None:
    checkpoint = save(tmp_path / name, name)
    build(open_request(checkpoint, "cpu", "float32", tmp_path / "cpu", threads=1))
    dynamic, static = (open_model(path) for path in (tmp_path / "cpu", fixed(checkpoint, tmp_path / "static")))
    asked: dict[str, Any] = {"encoder": "", "vrc": False}
    for prompt in ("Hi", "abcdefg " * 10):  # less than a chunk, and more
        said = dynamic.answer(prompt, [], max_new_tokens=4, **asked).tokens
        answer = [token for token in said if token != static._windows.padding]  # which would end the search
        expected, found = (model.logits(prompt, [], answer, **asked) for model in (dynamic, static))
        assert np.abs(found - expected).max() <= GRAPH_FLOAT32 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", VISION)
def test_a_tower_with_its_pooling_head_says_the_same_of_one_image(tmp_path: Path, name: str) -> None:
    checkpoint = save(tmp_path / name, name)
    build(open_request(checkpoint, "cpu", "float32", tmp_path / "cpu", threads=1))
    packages = [tmp_path / "cpu", fixed(checkpoint, tmp_path / "static")]
    pixels = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    sessions = [ort.InferenceSession(path / "vision.onnx", providers=["CPUExecutionProvider"]) for path in packages]
    pooled, again = (
        session.run(["last_hidden_state", "pooler_output"], {"pixel_values": pixels}) for session in sessions
    )
    for expected, found in zip(pooled, again, strict=True):
        np.testing.assert_allclose(found, expected, atol=GRAPH_FLOAT32)
    operators = {node.op_type for node in onnx.load(packages[1] / "vision.onnx").graph.node}
    assert not operators & {"Shape", "Expand"}


def test_the_head_of_a_prompt_computes_one_row_and_tables_end_with_the_cache(tmp_path: Path) -> None:
    package = fixed(save(tmp_path / "qwen2", "qwen2"), tmp_path / "static")
    dims = {}
    for phase in ("prompt", "token"):
        graph = onnx.load(package / f"head_{phase}.onnx", load_external_data=False).graph
        dims[phase] = [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
        part = onnx.load(package / f"decoder_1_{phase}.onnx", load_external_data=False).graph
        tables = [t.dims for t in part.initializer for n in part.node if t.name in n.input[7:9]]
        assert tables
        assert all(list(rows) == [CONTEXT, 8] for rows in tables)
    assert dims["prompt"] == dims["token"] == [1, 1, dims["token"][2]]


# What does not fit.


def planned(checkpoint: Path, recipe: str = "w4a16-rtn", target: str = TARGET, context: int | None = None) -> Plan:
    request = open_request(checkpoint, target, recipe, checkpoint / "package", context=context, aot=False)
    return plan_build(request, anywhere=True).plan


@pytest.mark.parametrize("name", ["hypervl", "llama"])
def test_rows_that_are_no_whole_number_of_blocks_get_smaller_ones(tmp_path: Path, name: str) -> None:
    sizes = {"llama": {"intermediate_size": 112}}
    checkpoint = save_text(tmp_path / name, name, **sizes[name]) if name in sizes else save(tmp_path / name, name)
    finer = [a for a in planned(checkpoint).assignments if a.action is Action.QUANTIZE and a.in_features % 32]
    assert finer
    for assignment in finer:
        assert assignment.format is not None
        assert assignment.format.block_size == 16
        obstacle = f"blocks of 16: {assignment.in_features} input features are not a multiple of 32"
        assert assignment.reason.split("; ")[-1] == obstacle
    assert not any(a.format and a.format.block_size == 16 for a in planned(checkpoint, target="cpu").assignments)


def test_rows_that_no_block_divides_are_refused_with_the_recipes_that_fit(tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "llama", "llama", intermediate_size=104)
    with pytest.raises(TargetError, match=r"104 input features in blocks of 32: .* recipe that fits.*float32") as error:
        planned(checkpoint)
    assert error.value.code == "plan.target"


def test_a_window_shorter_than_the_cache_is_refused_where_it_cannot_be_written_out(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "windows", "windows")
    group = {"taken": False, "names": ["And"], "reason": "tried", "evidence": "run", "source": "a test"}
    target = write_target(tmp_path / "npu.toml", operators={"none": group})
    with pytest.raises(TargetError, match=r"a local window is not taken \(2 nodes; .*--context") as error:
        planned(checkpoint, target=target, context=CONTEXT + CHUNK)
    assert error.value.code == "target.refused"
    assert planned(checkpoint, context=CONTEXT).assignments
    assert planned(checkpoint, context=CONTEXT + CHUNK).assignments


def test_a_tower_has_no_context(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"build\.context.*no KV cache"):
        planned(save(tmp_path / "siglip", "siglip"), context=CONTEXT)


# Through Qualcomm's compiler, and in emulation. Each compiles wholly, or compilation says which node does not.


def compiled(checkpoint: Path, root: Path, recipe: str, target: str = TARGET, **request: Any) -> Compilation:
    static = fixed(checkpoint, root / "static", recipe, target)
    made = compile_package(static, root / "compiled", CompileOptions.of(load_target(target)), CompileRequest(**request))
    placed = {name for name, entry in made.manifest.components.items() if entry.compiled}
    assert {graph.component for graph in made.compilation.graphs} == placed
    return made.compilation


@pytest.mark.slow
@needs_qnn
@pytest.mark.parametrize("recipe", ["float32", "w4a16-rtn"])
@pytest.mark.parametrize("name", COMPILED)
def test_a_family_compiles_and_computes_the_same(tmp_path: Path, name: str, recipe: str) -> None:
    found = compiled(save(tmp_path / name, name), tmp_path, recipe)
    assert {check.component for check in found.checks} == {graph.component for graph in found.graphs}
    assert all(check.holds for check in found.checks)


@pytest.mark.slow
@needs_qnn
@pytest.mark.parametrize("name", REFUSED)
def test_a_decoder_that_computes_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TargetError, match=r"check\.noise"):
        compiled(save(tmp_path / name, name), tmp_path, "w4a16-rtn")


@pytest.mark.slow
@needs_qnn
def test_a_decoder_in_small_parts_compiles_and_answers_in_emulation(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "qwen2", "qwen2")
    file = tmp_path / "small.toml"
    header = f'schema_version = 1\nextends = "{TARGET}"\nname = "small"\ndescription = "a layer a part"\n'
    file.write_text(f"{header}part_bytes = 200_000\n", "utf-8")
    found = compiled(checkpoint, tmp_path, "float32", str(file), share_weights=True)
    parts = {"decoder_1", "decoder_2", "head"}
    assert {graph.component for graph in found.graphs} == {
        f"{p}_{phase}" for p in parts for phase in ("prompt", "token")
    }
    assert all(len(graph.shared_with) == 1 for graph in found.graphs)
    assert {check.component for check in found.checks} == {graph.component for graph in found.graphs}
    single = compile_package(
        tmp_path / "static", tmp_path / "single", CompileOptions.of(load_target(str(file))), CompileRequest(check=False)
    )
    asked: dict[str, Any] = {"encoder": "", "vrc": False, "max_new_tokens": 4}
    expected, answer = (open_model(p).answer("Hi", [], **asked) for p in (tmp_path / "static", single.directory))
    assert answer.tokens == expected.tokens
