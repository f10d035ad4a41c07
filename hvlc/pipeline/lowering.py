"""Which passes make a package's graphs, and in what order."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hvlc.bundle import Bundle
from hvlc.manifest import Kind
from hvlc.pipeline.prepare import rotations
from hvlc.plan import Action, CacheType, Plan
from hvlc.quantized import Solved
from hvlc.recipes.schema import Preparation
from hvlc.target import Target

if TYPE_CHECKING:
    from hvlc.pipeline.calibrate import Observed


def float_passes(facts: Mapping[str, Any], target: Target, prepare: Preparation) -> list[Any]:
    """The passes before the plan, in order."""
    return [*structural_passes(facts, target), *rotations(prepare)]


def structural_passes(facts: Mapping[str, Any], target: Target) -> list[Any]:
    """Those that no recipe asks for, in order: what makes tokens of images is for models that see and speak."""
    from hvlc.passes.compress_resolution import CompressResolution
    from hvlc.passes.fuse_skip_norm import FuseSkipNorm
    from hvlc.passes.stitch_tiles import StitchTiles
    from hvlc.passes.tile_images import TileImages

    if facts["kind"] != Kind.VISION_LANGUAGE:
        return [FuseSkipNorm(target)]
    mean, std = tuple(facts["image_mean"]), tuple(facts["image_std"])
    return [
        TileImages(facts["tile_size"], facts["cell_size"], mean, std),
        CompressResolution(facts["proxy_size"], facts["min_scale"], facts["scale_step"], mean, std),
        StitchTiles(facts["tile_size"] // facts["cell_size"], facts["hidden_size"]),
        FuseSkipNorm(target),
    ]


def quantize(
    bundle: Bundle, plan: Plan, target: Target, solved: Mapping[tuple[str, str], Solved], observed: "Observed"
) -> int:
    """Perform the plan, then join what is equal by then; returns the number of quantized places."""
    from hvlc.calibration.registry import SOLVERS
    from hvlc.passes.narrow_tables import NarrowTables
    from hvlc.passes.pack_projections import PackProjections
    from hvlc.passes.quantize_activations import QuantizeActivations
    from hvlc.passes.quantize_kv_cache import QuantizeKVCache
    from hvlc.passes.quantize_weights import QuantizeWeights
    from hvlc.passes.quantize_weights_qdq import QuantizeWeightsQDQ
    from hvlc.passes.select_encoder import SelectEncoder
    from hvlc.prequantized.taking import stored_levels

    quantize_weights = QuantizeWeights if plan.activations is None else QuantizeWeightsQDQ
    quantize_weights(plan, SOLVERS, {**stored_levels(plan, bundle), **solved}).run(bundle)
    if plan.activations is not None:
        QuantizeActivations(plan, observed.ranges).run(bundle)
    if plan.kv_cache is CacheType.INT8:
        QuantizeKVCache(observed.magnitudes).run(bundle)
    PackProjections().run(bundle)
    NarrowTables(target).run(bundle)
    facts: dict[str, Any] = bundle.facts
    if facts["kind"] == Kind.VISION_LANGUAGE:
        SelectEncoder(facts["tile_size"] // facts["cell_size"], facts["hidden_size"]).run(bundle)
    return sum(a.action is not Action.KEEP for a in plan.assignments)
