"""A plan says what happens to every weight, or all that is wrong at once."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import TargetError, UserError
from hvlc.export import export_bundle
from hvlc.graphs.bundle import Bundle, Role
from hvlc.graphs.plan import Action, ActivationFormat, CacheType, Plan
from hvlc.recipes.loading import load_recipe, shipped_recipes
from hvlc.recipes.resolve import resolve
from hvlc.recipes.schema import Recipe
from hvlc.solvers import SOLVERS
from hvlc.solvers.registry import CALIBRATED
from hvlc.targets import Target, load_target, shipped_targets
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.formats import ScaleType, Stream, weight_format
from tests.helpers.solvers import FLOAT_SCALES
from tests.helpers.tiny import save_tiny

OPTIONS = {name: solver.options for name, solver in CALIBRATED.items()}
CPU = load_target("cpu")
EMBEDDING = "model.language_model.embed_tokens.weight"
Resolve = Callable[..., Plan]


@pytest.fixture(scope="module")
def tied(tiny_checkpoint: Path) -> Bundle:
    return export_bundle(Checkpoint.open(tiny_checkpoint))


@pytest.fixture(scope="module")
def untied(untied_checkpoint: Path) -> Bundle:
    return export_bundle(Checkpoint.open(untied_checkpoint))


def recipe(*rules: dict[str, Any]) -> Recipe:
    return Recipe.parse({"schema_version": 1, "name": "mine", "description": "", "rules": rules}, "mine.yaml")


def decoder(**quantize: Any) -> dict[str, Any]:
    return {"role": "decoder", "quantize": {"bits": 4, "block_size": 32, **quantize}}


def without(target: Target, **changes: Any) -> Target:
    return Target.parse(target.model_dump(mode="json") | changes, "mine.toml")


def weights_of(bundle: Bundle) -> int:
    roles = (Role.DECODER, Role.VISION_ENCODER, Role.EMBEDDING)
    return sum(
        node.op_type in ("MatMul", "Gather") and any(v and v.const_value and len(v.shape) == 2 for v in node.inputs)
        for component in bundle.components.values()
        if component.role in roles
        for node in component.graph
    )


@pytest.mark.parametrize("target", [n for n in shipped_targets() if load_target(n).execution_provider == "cpu"])
@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_decides_every_weight(tied: Bundle, name: str, target: str) -> None:
    plan = resolve(load_recipe(name), tied, load_target(target), {*SOLVERS, *CALIBRATED}, OPTIONS)
    assert len(plan.assignments) == weights_of(tied) > 30
    for assignment in plan.assignments:
        assert (assignment.action is Action.QUANTIZE) or assignment.reason
        assert (assignment.format is None) is (assignment.action is Action.KEEP)
        assert assignment.out_features * assignment.in_features == assignment.elements


def test_w4a16_leaves_no_decoder_matrix_in_float(tied: Bundle) -> None:
    plan = resolve(load_recipe("w4a16-rtn"), tied, CPU, SOLVERS)
    decoder_actions = {a.action for a in plan.assignments if a.role is Role.DECODER}
    assert decoder_actions == {Action.QUANTIZE}
    assert plan.bits_per_weight(Role.DECODER) == pytest.approx(4.5)
    assert plan.bits_per_weight(Role.EMBEDDING) is None


def table(plan: Plan):
    return next(a for a in plan.assignments if a.role is Role.EMBEDDING)


def test_a_tied_table_shares_the_heads_bytes(tied: Bundle) -> None:
    found = table(resolve(recipe(decoder()), tied, CPU, SOLVERS))
    assert (found.action, found.stored_bytes, found.weight) == (Action.TIE, 0, EMBEDDING)
    assert found.reason == "shares the bytes of lm_head"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gather_bits": []}, "looks up no bits only, not 4"),
        ({"contrib_ops": ["MatMulNBits"], "gather_bits": []}, "does not take com.microsoft.GatherBlockQuantized"),
    ],
)
def test_a_target_without_look_up_keeps_the_table_with_the_reason(tied: Bundle, change: dict, reason: str) -> None:
    found = table(resolve(recipe(decoder()), tied, without(CPU, **change), SOLVERS))
    assert found.action is Action.KEEP
    assert reason in found.reason


def test_a_table_of_rows_that_do_not_fill_their_blocks_is_kept(tied: Bundle) -> None:
    found = table(resolve(recipe(decoder(block_size=128)), tied, CPU, SOLVERS))
    assert (found.action, found.reason) == (Action.KEEP, "rows of 64 are not a whole number of blocks of 128")


def test_an_untied_table_follows_its_own_rule(untied: Bundle) -> None:
    assert table(resolve(recipe(decoder()), untied, CPU, SOLVERS)).reason == "no rule asks for it"
    own = {"role": "embedding", "quantize": {"bits": 4, "block_size": 16}}
    assert table(resolve(recipe(decoder(), own), untied, CPU, SOLVERS)).action is Action.QUANTIZE


def test_the_first_rule_that_matches_decides(tied: Bundle) -> None:
    kept = {"role": "decoder", "weights": "*.down_proj.*", "reason": "sensitive"}
    plan = resolve(recipe(kept, decoder()), tied, CPU, SOLVERS)
    down = [a for a in plan.assignments if ".down_proj." in a.weight]
    assert {(a.action, a.reason) for a in down} == {(Action.KEEP, "sensitive")}
    assert sum(a.action is Action.QUANTIZE for a in plan.assignments) == 6 * 2 + 1


def test_all_that_the_target_refuses_is_named(tied: Bundle) -> None:
    with pytest.raises(TargetError) as error:
        resolve(recipe(decoder(block_size=24)), tied, CPU, SOLVERS)
    assert (error.value.code, error.value.exit_code) == ("plan.target", 3)
    assert "cpu takes blocks of 16, 32, 64, 128, 256, not 24" in error.value.cause
    assert f"and {7 * 2 + 1 - 1} more weights" in error.value.cause


def test_zero_points_need_a_target_that_takes_them(tied: Bundle) -> None:
    formats = [f.model_dump(mode="json") | {"zero_points": False} for f in CPU.block_formats]
    with pytest.raises(TargetError, match="takes no zero points at 4 bits"):
        resolve(recipe(decoder(symmetric=False)), tied, without(CPU, block_formats=formats), SOLVERS)


def test_a_target_without_negative_scales_gets_none(tied: Bundle) -> None:
    formats = [f.model_dump(mode="json") | {"negative_scales": False} for f in CPU.block_formats]
    plan = resolve(recipe(decoder()), tied, without(CPU, block_formats=formats), SOLVERS)
    assert {a.format.negative_scales for a in plan.assignments if a.format} == {False}


@pytest.mark.parametrize(
    ("grain", "negative"), [({"block_size": 32}, True), ({"per_channel": True, "block_size": None}, False)]
)
def test_negative_scales_depend_on_the_form_of_the_product(tied: Bundle, grain: dict[str, Any], negative: bool) -> None:
    """Qualcomm's compiler takes them in blocks, and not where a channel has one scale."""
    product = {
        "operators": ["MatMul"],
        "activations": ["uint16"],
        "weights": ["int4"],
        "evidence": "run",
        "source": "x",
    }
    products = {
        "channels": product | {"grains": ["channel"]},
        "blocks": product | {"grains": ["block"], "negative_scales": True},
    }
    plan = resolve(static(decoder(**grain)), tied, without(CPU, products=products), SOLVERS)
    formats = [a.format for a in plan.for_component("model").values() if a.format]
    assert {format.negative_scales for format in formats} == {negative}


def test_an_unknown_solver_offers_the_nearest(tied: Bundle) -> None:
    with pytest.raises(UserError) as error:
        resolve(recipe(decoder(solver="rnt")), tied, CPU, SOLVERS)
    assert (error.value.code, error.value.fix) == ("recipe.solver", "did you mean 'rtn'?")


def test_a_rule_that_matches_nothing_is_an_error_unless_optional(tied: Bundle) -> None:
    lost = {"role": "decoder", "weights": "*.gate_projection.*", "reason": "typo"}
    with pytest.raises(UserError, match=r"match no weight: decoder '\*\.gate_projection\.\*'"):
        resolve(recipe(lost, decoder()), tied, CPU, SOLVERS)
    resolve(recipe(lost | {"optional": True}, decoder()), tied, CPU, SOLVERS)


def test_resolving_changes_nothing(tied: Bundle) -> None:
    before = {n: [node.op_type for node in c.graph] for n, c in tied.components.items()}
    resolve(load_recipe("w4a16-rtn"), tied, CPU, SOLVERS)
    assert before == {n: [node.op_type for node in c.graph] for n, c in tied.components.items()}


@pytest.mark.parametrize("scale_type", FLOAT_SCALES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dims", [(3, 32), (5, 100), (4, 200)])
def test_planned_bytes_are_those_of_the_arrays(
    dims: tuple[int, int], bits: int, symmetric: bool, scale_type: ScaleType
) -> None:
    import numpy as np

    format = weight_format(bits, 32, symmetric, scale_type)
    levels = SOLVERS["rtn"](np.arange(prod(dims), dtype=np.float32).reshape(dims), format)
    arrays = [levels.stored(Stream.LEVELS), levels.stored(Stream.SCALES)] + (
        [] if symmetric else [levels.stored(Stream.ZERO_POINTS)]
    )
    assert sum(a.nbytes for a in arrays) == format.bytes(*dims)


def test_hidden_sizes_that_do_not_fill_a_block_still_answer(tmp_path: Path) -> None:
    from hvlc.runtime.generation import VisionLanguageModel
    from hvlc.workflows.build.build import build
    from hvlc.workflows.build.request import open_request
    from tests.helpers.tiny import picture

    checkpoint = save_tiny(tmp_path / "checkpoint", hidden=48, num_attention_heads=3, num_key_value_heads=1)
    build(open_request(checkpoint, "cpu", "w4a16-rtn", tmp_path / "package"))
    package = VisionLanguageModel(tmp_path / "package")
    asked: dict[str, Any] = {"encoder": "base", "vrc": False, "max_new_tokens": 2}
    assert len(package.answer("What?", [picture(40, 40)], **asked).tokens) > 0


def static(*rules: dict[str, Any], **settings: Any) -> Recipe:
    return Recipe.model_validate(recipe(*rules).model_dump(mode="json") | {"activations": "static"} | settings)


def test_static_activations_and_an_int8_cache_are_in_the_plan(tied: Bundle) -> None:
    plan = resolve(static(decoder(block_size=16), kv_cache="int8"), tied, CPU, SOLVERS)
    assert (plan.activations, plan.kv_cache) == (ActivationFormat(), CacheType.INT8)
    assert plan.float_compute
    plain = resolve(recipe(decoder()), tied, CPU, SOLVERS)
    assert (plain.activations, plain.kv_cache) == (None, CacheType.FLOAT)


def test_a_target_refuses_activations_and_caches_that_it_does_not_take(tied: Bundle) -> None:
    bare = without(CPU, activation_dtypes=[], cache_dtypes=[])
    with pytest.raises(TargetError) as error:
        resolve(static(decoder(), kv_cache="int8"), tied, bare, SOLVERS)
    causes = [problem.cause for problem in error.value.problems]
    assert causes == ["cpu keeps no KV cache of int8", "cpu takes no static uint16 activations"]
    assert error.value.exit_code == 3


def test_a_graph_of_fixed_shapes_may_write_the_cache_itself(tied: Bundle) -> None:
    npu, cached, known = load_target("qnn-sm8750"), load_recipe("npu-w4a16-kv8"), {**SOLVERS, **CALIBRATED}
    assert not npu.takes_cache(CacheType.INT8)  # GroupQueryAttention does not store it
    assert resolve(cached, tied, npu, known, OPTIONS).kv_cache is CacheType.INT8
    for changes in ({"written_cache_dtypes": []}, {"written_cache_dtypes": ["uint4"]}):
        with pytest.raises(TargetError) as error:
            resolve(cached, tied, without(npu, **changes), known, OPTIONS)
        assert error.value.cause == "qnn-sm8750 keeps no KV cache of int8"
        assert "npu-w4a16" in error.value.fix
    growing = without(CPU, cache_dtypes=[], written_cache_dtypes=["uint8"])  # whose attention is not written out
    with pytest.raises(TargetError, match="keeps no KV cache"):
        resolve(static(decoder(block_size=16), kv_cache="int8"), tied, growing, SOLVERS)


def test_static_activations_refuse_zero_points_by_weight(tied: Bundle) -> None:
    with pytest.raises(TargetError) as error:
        resolve(static(decoder(symmetric=False)), tied, CPU, SOLVERS)
    assert len(error.value.problems) > 10
    assert "without zero points" in error.value.problems[0].cause


# LPBQ, and what falls back from it.

LPBQ = {"scale_type": "lpbq", "block_size": 16}
CHANNELS = {"bits": 8, "per_channel": True, "scale_type": "float32"}
VISION = {"role": "vision_encoder", "quantize": {"bits": 4, **LPBQ}}


def npu() -> Target:
    return load_target("qnn-sm8750")


def test_lpbq_is_planned_for_static_activations(tied: Bundle) -> None:
    for target in (npu(), CPU):
        plan = resolve(static(decoder(**LPBQ)), tied, target, SOLVERS)
        formats = {a.format for a in plan.assignments if a.role is Role.DECODER}
        assert formats == {weight_format(4, 16, True, ScaleType.LPBQ, negative_scales=False)}
        kept = table(plan)
        assert (kept.action, kept.reason) == (Action.KEEP, "GatherBlockQuantized takes no scales of the form LPBQ")
    assert plan.bits_per_weight(Role.DECODER) == pytest.approx(4.5 + 32 / 64, abs=0.2)  # a byte a block, a float a row


def test_lpbq_is_no_form_of_float_activations(tied: Bundle) -> None:
    with pytest.raises(TargetError, match="MatMulNBits has float scales alone"):
        resolve(recipe(decoder(**LPBQ)), tied, CPU, SOLVERS)


def test_a_target_that_does_not_multiply_lpbq_refuses_it(tied: Bundle) -> None:
    products = npu().model_dump(mode="json")["products"]
    del products["lpbq"]
    with pytest.raises(TargetError, match="no MatMul of uint16 activations with int4 weights per lpbq"):
        resolve(static(decoder(**LPBQ)), tied, without(npu(), products=products), SOLVERS)


def test_blocks_of_lpbq_have_the_targets_sizes(tied: Bundle) -> None:
    with pytest.raises(TargetError, match="takes blocks of 16, 32, 64, 128, not 24"):
        resolve(static(decoder(**LPBQ | {"block_size": 24})), tied, npu(), SOLVERS)


@pytest.mark.parametrize(
    ("target", "block", "why"),
    [
        ("qnn-sm8750", 16, "not int4 b16 sym lpbq: qnn-sm8750 takes no MatMul of uint16 activations"),
        ("qnn-sm8750", 32, "not int4 b32 sym lpbq: rows of 48 are not a whole number of blocks of 32"),
        ("cpu", 32, "not int4 b32 sym lpbq: rows of 48 are not a whole number of blocks of 32"),
        ("cpu", 16, ""),
    ],
)
def test_rows_that_do_not_fit_fall_back_with_the_reason(tied: Bundle, target: str, block: int, why: str) -> None:
    vision = {"role": "vision_encoder", "quantize": {"bits": 4, **LPBQ, "block_size": block, "fallback": CHANNELS}}
    plan = resolve(static(vision), tied, load_target(target), SOLVERS)
    odd = [a for a in plan.assignments if a.role is Role.VISION_ENCODER and a.in_features % 32]
    others = [a for a in plan.assignments if a.role is Role.VISION_ENCODER and a.in_features % 32 == 0]
    assert {a.in_features for a in odd} == {48}
    assert {str(a.format) for a in odd} == ({"int8 b48 sym f32"} if why else {"int4 b16 sym lpbq"})
    assert all(a.reason.startswith(why) if why else not a.reason for a in odd)
    assert {str(a.format) for a in others} == {f"int4 b{block} sym lpbq"}
    assert {a.reason for a in others} == {""}


def test_without_a_fallback_rows_that_do_not_fit_are_refused(tied: Bundle) -> None:
    with pytest.raises(TargetError, match=r"weights per lpbq and 48 inputs: it takes multiples of 32"):
        resolve(static(VISION), tied, npu(), SOLVERS)


def test_solvers_of_fallbacks_are_known_too(tied: Bundle) -> None:
    spec = {"bits": 4, **LPBQ, "fallback": CHANNELS | {"solver": "rnt"}}
    with pytest.raises(UserError, match="no solver 'rnt'"):
        resolve(static({"role": "vision_encoder", "quantize": spec}), tied, npu(), SOLVERS)


@pytest.mark.parametrize("name", ["npu-w4a16-static", "npu-w4a16-encoders"])
def test_recipes_for_npus_fit_the_snapdragons(tied: Bundle, name: str) -> None:
    plan = resolve(load_recipe(name), tied, npu(), {*SOLVERS, *CALIBRATED}, OPTIONS)
    assert {a.action for a in plan.assignments if a.role is not Role.EMBEDDING} == {Action.QUANTIZE}
    assert table(plan).action is (Action.QUANTIZE if name == "npu-w4a16-static" else Action.TIE)
    role = Role.DECODER if name == "npu-w4a16-static" else Role.VISION_ENCODER
    lpbq = [a for a in plan.assignments if a.role is role and a.format and str(a.format).endswith("lpbq")]
    assert len(lpbq) > 10
    assert plan.is_static(role)
