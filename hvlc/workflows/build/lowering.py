"""Which passes make a package's graphs, and in what order."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvlc.errors import UserError
from hvlc.graphs.bundle import Bundle, Role
from hvlc.graphs.placement import Placement
from hvlc.graphs.plan import Action, CacheType, Plan
from hvlc.manifest.manifest import Kind
from hvlc.package.staged import padding_token
from hvlc.recipes.schema import Preparation
from hvlc.targets import Target, target_for
from hvlc.weights.quantized import Solved
from hvlc.workflows.build.limits import check_fixed
from hvlc.workflows.build.prepare import rotations

if TYPE_CHECKING:
    from hvlc.workflows.calibrate.calibrate import Observed


def float_passes(facts: Mapping[str, Any], target: Target, prepare: Preparation) -> list[Any]:
    """The passes before the plan, in order."""
    return [*structural_passes(facts, target), *rotations(prepare)]


def structural_passes(facts: Mapping[str, Any], target: Target) -> list[Any]:
    """Those that no recipe asks for, in order: what makes tokens of images is for models that see and speak."""
    from hvlc.passes.fuse.fuse_skip_norm import FuseSkipNorm
    from hvlc.passes.legalize.decompose_attention import DecomposeAttention
    from hvlc.passes.vision.compress_resolution import CompressResolution
    from hvlc.passes.vision.stitch_tiles import StitchTiles
    from hvlc.passes.vision.tile_images import TileImages

    by_target: list[Any] = [FuseSkipNorm(target)]
    if not target_for(Role.VISION_ENCODER, target).takes_op("Attention"):
        by_target.append(DecomposeAttention(target))
    if facts["kind"] != Kind.VISION_LANGUAGE:
        return by_target
    mean, std = tuple(facts["image_mean"]), tuple(facts["image_std"])
    return [
        TileImages(facts["tile_size"], facts["cell_size"], mean, std),
        CompressResolution(facts["proxy_size"], facts["min_scale"], facts["scale_step"], mean, std),
        StitchTiles(facts["tile_size"] // facts["cell_size"], facts["hidden_size"]),
        *by_target,
    ]


def quantize(
    bundle: Bundle, plan: Plan, target: Target, solved: Mapping[tuple[str, str], Solved], observed: "Observed"
) -> int:
    """Perform the plan, then join what is equal by then; returns the number of quantized places."""
    from hvlc.graphs.stored_levels import stored_levels
    from hvlc.passes.fuse.pack_projections import PackProjections
    from hvlc.passes.quantize.narrow_tables import NarrowTables
    from hvlc.passes.quantize.quantize_activations import QuantizeActivations
    from hvlc.passes.quantize.quantize_kv_cache import QuantizeKVCache
    from hvlc.passes.quantize.quantize_weights import QuantizeWeights
    from hvlc.passes.quantize.quantize_weights_qdq import QuantizeWeightsQDQ
    from hvlc.passes.vision.select_encoder import SelectEncoder
    from hvlc.solvers.registry import SOLVERS

    levels = {**stored_levels(plan, bundle), **solved}
    static = frozenset(role for role in QuantizeWeights.roles if plan.is_static(role))
    if QuantizeWeights.roles - static:
        QuantizeWeights(plan, SOLVERS, levels, QuantizeWeights.roles - static).run(bundle)
    if static:
        direct = any(target.fixes(role) for role in static)
        QuantizeWeightsQDQ(plan, SOLVERS, levels, static, direct=direct).run(bundle)
    if plan.activations is not None:
        QuantizeActivations(plan, observed.ranges).run(bundle)
    if plan.kv_cache is CacheType.INT8:
        QuantizeKVCache(observed.magnitudes).run(bundle)
    if not target.fixes(Role.DECODER):  # compilers of NPUs take products apart as they like
        PackProjections().run(bundle)
    NarrowTables(target).run(bundle)
    facts: dict[str, Any] = bundle.facts
    if facts["kind"] == Kind.VISION_LANGUAGE and not target.fixes(Role.VISION_ENCODER):
        SelectEncoder(facts["tile_size"] // facts["cell_size"], facts["hidden_size"]).run(bundle)
    return sum(a.action is not Action.KEEP for a in plan.assignments)


def fix_for(bundle: Bundle, target: Target, context: int | None, tokenizer: Path) -> None:
    """Place every component; where the target wants fixed shapes, fix every dimension, and cut the decoder into stages.

    Args:
        bundle: with quantized weights; no pass changes it after.
        target: asked what it wants.
        context: tokens that the KV cache has room for; None is what target and checkpoint allow.
        tokenizer: directory of its files.

    Raises:
        UserError: the context holds no chunk of the prompt or is longer than the checkpoint's, or it was asked for and
            nothing is fixed, or the tokenizer cannot be read.
        TargetError: a layer alone is too large for a part, or a graph does not hold to the target's limits.
    """
    if context is not None and bundle.facts["kind"] == Kind.VISION:
        raise UserError("build.context", "a vision tower has no KV cache", "leave --context out")
    if context is not None and not target.fixes(Role.DECODER):
        cause = f"the KV cache of {target.name} grows with the sequence"
        raise UserError("build.context", cause, "leave --context out, or choose a target of fixed shapes")
    if target.fixed_shapes:
        _fix_shapes(bundle, target, context, tokenizer)
    _place(bundle, target)
    if target.fixed_shapes:
        check_fixed(bundle, target)


def _place(bundle: Bundle, target: Target) -> None:
    """Say of every component where it runs and why, and what its session is told."""
    for component in bundle.components.values():
        if target.leaves_to_cpu(component.role):
            component.placement, component.reason = Placement.CPU, target.why_cpu(component.role)
        else:
            component.placement, component.provider = target.placement, target.provider


def _fix_shapes(bundle: Bundle, target: Target, context: int | None, tokenizer: Path) -> None:
    """Fix the dimensions of what the target takes, and cut the decoder if that is among it."""
    from hvlc.passes.legalize.decompose_group_attention import DecomposeGroupAttention
    from hvlc.passes.legalize.flatten_norms import FlattenNorms
    from hvlc.passes.legalize.spell_reshapes import SpellReshapes
    from hvlc.passes.quantize.integer_attention import IntegerAttention
    from hvlc.passes.static.drop_windows import DropWindows
    from hvlc.passes.static.fix_shapes import FixShapes
    from hvlc.passes.static.fold_shapes import FoldShapes
    from hvlc.passes.static.keep_positions import KeepPositions
    from hvlc.passes.static.look_up_tokens import LookUpTokens
    from hvlc.passes.static.pick_last_token import PickLastToken
    from hvlc.passes.static.split_decoder import SplitDecoder
    from hvlc.passes.static.take_lengths import TakeLengths
    from hvlc.passes.static.trim_rotary import TrimRotary

    facts, steps, room = bundle.facts, list[Any](), target.prompt_chunk
    after: list[Any] = [FoldShapes(), SpellReshapes(), FlattenNorms()]
    if facts["kind"] != Kind.VISION and target.fixes(Role.DECODER):
        facts["context_length"] = room = static_context(int(str(facts["context_length"])), target, context)
        steps += [TakeLengths(), KeepPositions(), TrimRotary(room), DropWindows(room)]
        steps += [SplitDecoder(target.part_bytes), LookUpTokens()]
        after.insert(0, PickLastToken(padding_token(tokenizer, facts)))
    roles = frozenset(role for role in (Role.DECODER, Role.VISION_ENCODER) if target.fixes(role))
    steps += [FixShapes(target.prompt_chunk, room, roles), DecomposeGroupAttention(target), IntegerAttention()]
    for step in (*steps, *after):
        step.run(bundle)


def static_context(longest: int, target: Target, asked: int | None) -> int:
    """Tokens that a KV cache of fixed shapes has room for: whole chunks, because the last one is padded.

    Args:
        longest: context of the checkpoint.
        target: has a chunk, and a default.
        asked: by the user, if at all.

    Raises:
        UserError: that is longer than the checkpoint's, or shorter than a chunk.
    """
    chunk = target.prompt_chunk
    wanted = min(longest, target.context or longest) if asked is None else asked
    if wanted > longest:
        cause = f"a context of {wanted} tokens is longer than the checkpoint's {longest}"
        raise UserError("build.context", cause, f"ask for {longest} at most")
    if wanted < chunk:
        cause = f"a context of {wanted} tokens holds no chunk of {chunk} tokens of the prompt"
        raise UserError("build.context", cause, f"ask for {chunk} or more, or choose a target with shorter chunks")
    return wanted // chunk * chunk
