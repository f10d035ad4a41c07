"""The order of passes: one list a phase.

Enter a new pass here at its turn, with the condition on which it runs. Its class names the traits that it requires and
promises; a list in a wrong order raises an error when it is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hvlc.graphs.bundle import Role
from hvlc.graphs.facts import Facts, ImageFacts, ImageRule
from hvlc.graphs.plan import CacheType, Plan
from hvlc.imaging.fixed_grids import fixed_grids
from hvlc.passes.base import Pass
from hvlc.passes.fuse.fuse_flash_attention import FuseFlashAttention
from hvlc.passes.fuse.fuse_skip_norm import FuseSkipNorm
from hvlc.passes.fuse.pack_projections import PackProjections
from hvlc.passes.legalize.add_zero_points import AddZeroPoints
from hvlc.passes.legalize.decompose_attention import DecomposeAttention
from hvlc.passes.legalize.decompose_causal_convolution import DecomposeCausalConvolution
from hvlc.passes.legalize.decompose_group_query_attention import DecomposeGroupQueryAttention
from hvlc.passes.legalize.decompose_skip_norm import DecomposeSkipNorm
from hvlc.passes.legalize.flatten_norms import FlattenNorms
from hvlc.passes.legalize.gemm_to_matmul_add import GemmToMatMulAdd
from hvlc.passes.legalize.infer_shapes import InferShapes
from hvlc.passes.legalize.make_scales_positive import MakeScalesPositive
from hvlc.passes.legalize.materialize_reshape_shapes import MaterializeReshapeShapes
from hvlc.passes.legalize.narrow_integers import NarrowIntegers
from hvlc.passes.legalize.raise_opset import RaiseOpset
from hvlc.passes.legalize.replace_contrib_rotary import ReplaceContribRotary
from hvlc.passes.order import PassList
from hvlc.passes.prepare.rotate_heads import RotateHeads
from hvlc.passes.prepare.rotate_residual import RotateResidual
from hvlc.passes.prepare.scale_channels import Factors, ScaleChannels
from hvlc.passes.quantize.integer_attention import IntegerAttention
from hvlc.passes.quantize.keep_stored_embedding_type import KeepStoredEmbeddingType
from hvlc.passes.quantize.multiply_integers import MultiplyIntegers
from hvlc.passes.quantize.quantize_activations import QuantizeActivations
from hvlc.passes.quantize.quantize_kv_cache import QuantizeKVCache
from hvlc.passes.quantize.quantize_weights import QuantizeWeights
from hvlc.passes.quantize.quantize_weights_qdq import QuantizeWeightsQDQ
from hvlc.passes.static.drop_windows import DropWindows
from hvlc.passes.static.fix_shapes import FixShapes, Piece
from hvlc.passes.static.fold_constants import FoldConstants
from hvlc.passes.static.fold_shapes import FoldShapes
from hvlc.passes.static.gather_last_token import GatherLastToken
from hvlc.passes.static.keep_all_logits import KeepAllLogits
from hvlc.passes.static.look_up_positions import LookUpPositions
from hvlc.passes.static.replace_mask_with_lengths import ReplaceMaskWithLengths
from hvlc.passes.static.split_decoder import SplitDecoder
from hvlc.passes.static.split_embedding import SplitEmbedding
from hvlc.passes.static.trim_rotary_tables import TrimRotaryTables
from hvlc.passes.traits import EXPORTED, Trait
from hvlc.passes.vision.add_front import AddFront
from hvlc.passes.vision.compress_resolution import CompressResolution
from hvlc.passes.vision.drop_unread_pixels import DropUnreadPixels
from hvlc.passes.vision.fix_grids import FixGrids
from hvlc.passes.vision.merge_pieces import MergePieces
from hvlc.passes.vision.select_encoder import SelectEncoder
from hvlc.recipes.schema import Preparation
from hvlc.targets import Target, target_for
from hvlc.weights.lazy import Expression
from hvlc.weights.quantized import SolvedWeight, Solver

#: Heights and widths in pixels.
Grids = Sequence[tuple[int, int]]


def structural_passes(facts: Facts, target: Target, grids: Grids = ()) -> PassList:
    """The passes that no recipe asks for.

    Args:
        facts: of the bundle that was just exported.
        target: what the graphs are for.
        grids: to one of which images are resized; none: they keep their shape, or the rule's.

    Raises:
        UserError: the model's images cannot be resized to these grids.
    """
    image = replace(facts.sees, rule=fixed_grids(facts.sees.rule, grids)) if grids else facts.image
    encoders, decoder = (target_for(role, target).takes_op for role in (Role.VISION_ENCODER, Role.DECODER))
    convolves = facts.text is not None and facts.text.convolution is not None
    return PassList(
        "structure",
        EXPORTED if image else EXPORTED | {Trait.WIRED_TOKENS},
        (
            *([FixGrids(image.rule)] if image and grids else []),
            *(_vision_passes(image, facts.embedding_width) if image else ()),
            FuseSkipNorm(lambda role: target_for(role, target).takes_op),
            FuseFlashAttention(encoders) if encoders("Attention") else DecomposeAttention(encoders),
            *([DecomposeCausalConvolution(decoder)] if convolves else []),
        ),
    )


def _vision_passes(image: ImageFacts, width: int) -> tuple[Pass, ...]:
    """Passes that make visual tokens of images, for a model that sees and speaks."""
    front = AddFront(image.rule), CompressResolution(image.compressor), DropUnreadPixels()
    return *front, MergePieces(image.rule, width)


def float_passes(facts: Facts, target: Target, prepare: Preparation, grids: Grids = ()) -> PassList:
    """The passes before the plan: the structural ones, then the rotation that a recipe asks for.

    Args:
        facts: of the bundle that was just exported.
        target: what the graphs are for.
        prepare: what the recipe does to the float model.
        grids: as `structural_passes` takes them.

    Raises:
        UserError: as `structural_passes`.
    """
    structure, rotate = structural_passes(facts, target, grids), prepare.rotate
    return PassList(
        "float",
        structure.given,
        (
            *structure,
            *([RotateResidual(rotate.seed, rotate.untie)] if rotate else []),
            *([RotateHeads(rotate.seed)] if rotate and rotate.heads else []),
        ),
    )


def walked_passes(before: PassList, factors: Mapping[tuple[str, str], Factors]) -> PassList:
    """The passes of a float model that a calibration walks through.

    Args:
        before: what ran until the plan was made.
        factors: of channels, by component and value; lazy.
    """
    return before.then("walk", *([ScaleChannels(factors)] if factors else []), KeepAllLogits())


@dataclass(frozen=True)
class Quantities:
    """The numbers that a plan is performed with, all of them lazy.

    Attributes:
        solvers: that need no data, by name.
        solved: levels that another than those gives, by component and node.
        ranges: float32 `[2]` of activations, by component and value.
        magnitudes: float32 `[kv_heads, head_size]` of present keys and values, by name.
        factors: of channels, by component and value.
    """

    solvers: Mapping[str, Solver] = field(default_factory=dict)
    solved: Mapping[tuple[str, str], SolvedWeight] = field(default_factory=dict)
    ranges: Mapping[str, Mapping[str, Expression]] = field(default_factory=dict)
    magnitudes: Mapping[str, Expression] = field(default_factory=dict)
    factors: Mapping[tuple[str, str], Factors] = field(default_factory=dict)


def quantizing_passes(before: PassList, facts: Facts, target: Target, plan: Plan, numbers: Quantities) -> PassList:
    """The passes that perform a plan, and those that join or copy what is final then.

    Args:
        before: what ran until the plan was made.
        facts: of the bundle.
        target: what the graphs are for.
        plan: every weight's fate.
        numbers: what it is performed with.
    """
    static = frozenset(role for role in QuantizeWeights.roles if plan.is_static(role))
    given = plan, numbers.solvers, numbers.solved
    direct = any(target.fixes(role) for role in static)
    takes_apart = target.fixes(Role.DECODER)  # compilers of NPUs take products apart as they like
    chosen = None if target.fixes(Role.VISION_ENCODER) else facts.image
    return before.then(
        "quantize",
        *([ScaleChannels(numbers.factors)] if numbers.factors else []),
        *([QuantizeWeights(*given, QuantizeWeights.roles - static)] if QuantizeWeights.roles - static else []),
        *([QuantizeWeightsQDQ(*given, static, direct=direct)] if static else []),
        *([MultiplyIntegers(*given)] if any(a.format and a.format.integer_product for a in plan.assignments) else []),
        *([QuantizeActivations(plan, numbers.ranges)] if plan.activations is not None else []),
        *([QuantizeKVCache(numbers.magnitudes)] if plan.kv_cache is CacheType.INT8 else []),
        *([] if takes_apart else [PackProjections()]),
        KeepStoredEmbeddingType(lambda role, dtype: target_for(role, target).takes_lookup(dtype)),
        *([SelectEncoder(chosen.rule, facts.embedding_width)] if chosen else []),
    )


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder of static shapes.

    Attributes:
        context: positions of its KV cache; whole chunks.
        padding: token id that fills the last chunk of a prompt.
    """

    context: int
    padding: int


def static_passes(before: PassList, target: Target, decoder: Sizes | None, rule: ImageRule | None) -> PassList:
    """The passes that fix every dimension of what a target compiles, and cut a decoder into parts.

    Args:
        before: what quantized the bundle.
        target: of static shapes.
        decoder: None: the model has none, or the target leaves it to the CPU.
        rule: by which images become pieces; None: the model sees none, or is a tower alone.
    """
    roles = frozenset(role for role in (Role.DECODER, Role.VISION_ENCODER) if target.fixes(role))
    chunk = target.prompt_chunk
    return before.then(
        "static",
        *(_parts(target, decoder) if decoder else ()),
        FixShapes(chunk, decoder.context if decoder else chunk, roles, _pieces(rule)),
        *((LookUpPositions(decoder.context), _written_out(target), IntegerAttention()) if decoder else ()),
        *([GatherLastToken(decoder.padding)] if decoder else []),
        FoldShapes(),
        FoldConstants(),
        MaterializeReshapeShapes(),
        FlattenNorms(),
    )


def _pieces(rule: ImageRule | None) -> tuple[Piece, ...]:
    """The shapes that an encoder's input has, where they are several."""
    grids = rule.grids if rule else ()
    return tuple(Piece(height, width, height * width // rule.pixels_per_token) for height, width in grids if rule)


def _written_out(target: Target) -> Pass:
    return DecomposeGroupQueryAttention(target.takes_op, target.takes_cache(CacheType.INT8), target.takes_windows())


def _parts(target: Target, decoder: Sizes) -> tuple[Pass, ...]:
    """Passes that make a decoder of parts, which get their lengths from the host."""
    return (
        ReplaceMaskWithLengths(),
        KeepAllLogits(),
        TrimRotaryTables(decoder.context),
        DropWindows(decoder.context),
        SplitDecoder(target.part_bytes),
        SplitEmbedding(),
    )


@dataclass(frozen=True)
class RefusedNodes:
    """Nodes of a model of others that a target refuses, by what can be done about them; all by name.

    Attributes:
        late: whether there are operators that are written in those of a later opset.
        products: any, of which Gemm can be written otherwise.
        wide: read int64 where the target has none.
        no_zero_points: read what is dequantized without a zero point.
        negative_scales: read what is dequantized with negative scales.
        norms: whether there are norms that are right when their rows lie along one axis.
    """

    late: bool = False
    products: frozenset[str] = frozenset()
    wide: frozenset[str] = frozenset()
    no_zero_points: frozenset[str] = frozenset()
    negative_scales: frozenset[str] = frozenset()
    norms: bool = False


_OPSET = 23  # the standard norms and rotary embedding are of it


def fixing_passes(target: Target, refused: RefusedNodes) -> PassList:
    """The passes that write operators of a model of others as a target takes them.

    Args:
        target: that refuses some as they are.
        refused: what it refuses.
    """
    plain = all(target.takes_op(op) for op in ("MatMul", "Add"))
    return PassList(
        "fix",
        frozenset() if refused.late else frozenset({Trait.LATE_OPSET}),
        (
            *([RaiseOpset(_OPSET)] if refused.late else []),
            DecomposeSkipNorm(target.takes_op),
            DecomposeCausalConvolution(target.takes_op),
            ReplaceContribRotary(target.takes_op),
            *([GemmToMatMulAdd(refused.products)] if plain else []),
            NarrowIntegers(refused.wide),
            AddZeroPoints(refused.no_zero_points),
            MakeScalesPositive(refused.negative_scales),
            *((InferShapes(), MaterializeReshapeShapes(), FlattenNorms()) if refused.norms else ()),
        ),
    )
