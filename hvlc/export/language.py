"""Text decoders: a checkpoint of one of the Llama-shaped families becomes one graph from tokens to logits.

A family says what its configuration means; everything else is shared. What a graph cannot express, or what the
configuration says and nobody here reads, is refused: a decoder that is almost right is worse than none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from hvlc.errors import HvlcError, UserError
from hvlc.export.activations import activation_name
from hvlc.export.decoder.graph import decoder
from hvlc.export.decoder.rotary import RotaryTables
from hvlc.export.decoder.shape import (
    DecoderShape,
    FusedRows,
    GridPositions,
    LayerNorms,
    Multipliers,
    ShortConvolution,
)
from hvlc.export.settings import end_tokens, read_config, require_positive
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.facts import ConvolutionFacts, Facts, TextFacts
from hvlc.graphs.layers import LayerName
from hvlc.models.loading import CONFIG_ERRORS
from hvlc.models.numbers import LanguageNumbers
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.prequantized.reading import is_stored

PREFIX = "model"
_TABLE = f"{PREFIX}.embed_tokens.weight"
_HEAD = "lm_head.weight"

#: Longest context that is exported: the rotary tables of more positions are larger than the layers of a small model.
CONTEXT_LIMIT = 32768

#: Frequencies that tables can hold: they do not change with the length of the sequence, those of longrope up to the
#: length that the model was first trained on, those of dynamic up to max_position_embeddings.
_STATIC_ROPE = ("default", "linear", "llama3", "yarn", "longrope", "dynamic")

_DIMENSIONS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)

_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
#: Every projection of a layer.
PROJECTIONS = (*_ATTENTION, *_MLP)

_FULL, _SLIDING, _CONVOLUTION = "full_attention", "sliding_attention", "conv"
_ROTARY_MULTIPLE = 16  # "rotary_dim must be a multiple of 16", onnxruntime 1.31's GroupQueryAttention

#: Settings that change what a decoder computes, and the values with which they do not. Some belong to other
#: families: transformers would ignore them here, and the checkpoint would not be what it says.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "pretraining_tp": (None, 0, 1),
    "rope_interleaved": (None, False),
    "use_mrope": (None, False),
    "alibi": (None, False),
    "is_causal": (None, True),
    "use_bidirectional_attention": (None, False),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1),
    "scale_emb": (None, 1),
    "scale_depth": (None,),
    "clip_qkv": (None,),
    "qk_norm": (None, False),
    "use_qk_norm": (None, False),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
}

#: The same for settings that some of the families read: refused where the family's class does not have them.
_NEUTRAL_ELSEWHERE: dict[str, tuple[Any, ...]] = {
    "use_sliding_window": (None, False),
    "sliding_window": (None,),
    "no_rope_layers": (None,),
    "use_bias": (None, False),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "attention_multiplier": (None,),
    "logits_scaling": (None, 1),
}


@dataclass(frozen=True)
class Family:
    """Facts that the decoders of one model_type have in common.

    Attributes:
        config: transformers' configuration class.
        rotary: transformers' rotary embedding, for the inverse frequencies and the scaling of its values.
        biases: names of the projections that have a bias, by configuration.
        head_norms: whether queries and keys are normalized per head.
        rotates: for each layer, whether it rotates queries and keys; every layer does when None.
        fused: for each projection that is stored in a fused one, where; None: none is.
        neighbours: whether neighbouring channels of a stored head rotate together, not those of its halves.
        partial: whether `partial_rotary_factor` is read: the first channels of a head rotate.
        multipliers: constant factors, by configuration; None: there are none.
        norms: of a layer, by their names.
        offset_gains: whether the gain of every norm is stored as its offset from 1.
        activation_key: key of the configuration that names the MLP's activation.
        activations: which of them are exported, by their usual names; a class without the key has the first.
        rotary_kinds: whether each kind of layers has rotary settings of its own.
        grid_positions: the axis that each angle turns by, by configuration; None: positions are those of the sequence.
        convolution: layers with a short convolution, by configuration; None: there are none.
        intermediate: width of the MLP, by configuration; None: `intermediate_size`.
        epsilon: name of the setting that the norms add to the variance.
        names: what parts of a layer, and the norm after the last one, are called in checkpoints where that is not what
            the graph calls them, each as the beginning of a dotted name inside the decoder's layer or the decoder.
        neutral: settings that nobody reads, and the values with which they change nothing.
    """

    config: type[PreTrainedConfig]
    rotary: type[torch.nn.Module]
    biases: Callable[[Any], frozenset[str]]
    head_norms: bool = False
    rotates: Callable[[Any], tuple[bool, ...]] | None = None
    fused: Callable[[Any], Mapping[str, FusedRows]] | None = None
    neighbours: bool = False
    partial: bool = False
    multipliers: Callable[[Any], Multipliers] | None = None
    norms: LayerNorms = field(default_factory=LayerNorms)
    offset_gains: bool = False
    activation_key: str = "hidden_act"
    activations: tuple[str, ...] = ("silu",)
    rotary_kinds: bool = False
    grid_positions: Callable[[Any], GridPositions] | None = None
    convolution: Callable[[Any], ShortConvolution | None] | None = None
    intermediate: Callable[[Any], int] | None = None
    epsilon: str = "rms_norm_eps"
    names: Mapping[str, str] = field(default_factory=dict)
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def no_biases(config: Any) -> frozenset[str]:
    """No projection has a bias, whatever the configuration says."""
    return frozenset()


def configured_biases(config: Any) -> frozenset[str]:
    """Biases as `attention_bias` and `mlp_bias` switch them; a family without one of them never has it."""
    attention = _ATTENTION if config.attention_bias else ()
    mlp = _MLP if getattr(config, "mlp_bias", False) else ()
    return frozenset((*attention, *mlp))


def language_bundle(checkpoint: Checkpoint, family: Family) -> Bundle:
    """The bundle of a text decoder: one component "model"; weights stay in the checkpoint until they are written.

    Raises:
        UserError: the configuration is not valid or asks for what is not exported.
    """
    config = read_config(family.config, checkpoint, LanguageNumbers)
    shape = decoder_shape(config, family, checkpoint.config, checkpoint.problems)
    checkpoint = with_table(with_graph_names(_with_prefix(checkpoint), family, PREFIX), config, _TABLE)
    b = GraphBuilder("decoder", checkpoint)
    head = head_parameter(b, config, _TABLE)
    model = decoder(b, PREFIX, head, shape, rotary_tables(config, family, shape, checkpoint.problems), _TABLE)
    bundle = Bundle(checkpoint.model_type)
    bundle.add(Component("model", Role.DECODER, model, "model"))
    bundle.facts = Facts(text=text_facts(checkpoint.directory, config, shape))
    return bundle


def head_parameter(b: GraphBuilder, config: Any, table: str, head: str = _HEAD) -> str:
    """Name of the parameter that the language-model head reads.

    A stored head wins over `tie_word_embeddings`, as in transformers: it ties only what is equal or absent.
    """
    return table if config.tie_word_embeddings and not b.has(head) else head


def _with_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the names of a text model, where it was saved as the model inside (Qwen3-Embedding).

    transformers' text models take both: `base_model_prefix` is added to names that lack it.
    """
    tensors = checkpoint.tensors
    inside, plain = f"{PREFIX}.", _TABLE.removeprefix(f"{PREFIX}.")
    if plain not in tensors or any(name.startswith(inside) for name in tensors):
        return checkpoint
    named = {name if name == _HEAD else f"{inside}{name}": tensor for name, tensor in tensors.items()}
    return replace(checkpoint, tensors=named)


def with_graph_names(checkpoint: Checkpoint, family: Family, prefix: str) -> Checkpoint:
    """The checkpoint with the names that graphs have for the parts of a decoder, where its family has others.

    Args:
        checkpoint: as it was saved.
        family: of the decoder.
        prefix: dotted name of the decoder.
    """
    if not family.names:
        return checkpoint
    named = {graph_name(name, prefix, family.names): tensor for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=named)


def graph_name(name: str, prefix: str, names: Mapping[str, str]) -> str:
    """The name that a parameter has in graphs.

    Args:
        name: as it is stored.
        prefix: dotted name of the decoder.
        names: of parts, as in `Family.names`.
    """
    rest = name.removeprefix(f"{prefix}.")
    layer = LayerName.of(rest)
    inside = layer.within if layer is not None and not layer.before else rest
    for stored, graph in names.items():
        if rest != name and inside.startswith(f"{stored}."):
            return name.removesuffix(inside) + graph + inside.removeprefix(stored)
    return name


def with_table(checkpoint: Checkpoint, config: Any, table: str, head: str = _HEAD) -> Checkpoint:
    """The checkpoint with its head as the table where both are tied and only the head is stored, as in transformers."""
    if not config.tie_word_embeddings or head not in checkpoint.tensors or is_stored(checkpoint, table):
        return checkpoint
    return replace(checkpoint, tensors={**checkpoint.tensors, table: checkpoint.tensors[head]})


def decoder_shape(config: Any, family: Family, stored: Mapping[str, Any], problems: list[HvlcError]) -> DecoderShape:
    """Dimensions and parts of a decoder.

    Args:
        config: transformers' configuration.
        family: what it means.
        stored: the same as config.json has it, with what transformers' class does not know.
        problems: gets everything that is refused.

    Raises:
        UserError: a dimension is not a whole number above 0.
    """
    require_positive(config, *_DIMENSIONS)
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    head_size = head_width(config)
    if head_size < 1 or not (getattr(config, "head_dim", None) or config.hidden_size % heads == 0):
        raise _refusal("checkpoint.config", f"{heads} heads do not share a width of {config.hidden_size}")
    shape = DecoderShape(
        layers=layers,
        hidden=config.hidden_size,
        intermediate=family.intermediate(config) if family.intermediate else config.intermediate_size,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head_size=head_size,
        vocabulary=config.vocab_size,
        epsilon=getattr(config, family.epsilon),
        context=_context(config, family, problems),
        rotary=_rotations(config, family, layers, problems),
        windows=_windows(config, family, layers, problems),
        biases=family.biases(config),
        head_norms=family.head_norms,
        fused=family.fused(config) if family.fused else {},
        neighbours=family.neighbours,
        multipliers=family.multipliers(config) if family.multipliers else Multipliers(),
        norms=family.norms,
        offset_gains=family.offset_gains,
        activation=_activation(config, family, problems),
        rotary_kinds=_rotary_kinds(config, family),
        grid_positions=family.grid_positions(config) if family.grid_positions else None,
        convolution=family.convolution(config) if family.convolution else None,
    )
    _refuse_unread(config, family, stored, problems)
    _refuse_dimensions(shape, problems)
    return shape


def head_width(config: Any) -> int:
    """Channels of one head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _activation(config: Any, family: Family, problems: list[HvlcError]) -> str:
    """The usual name of the MLP's activation."""
    named = getattr(config, family.activation_key, family.activations[0])
    try:
        return activation_name(named, family.activations, family.activation_key)
    except UserError as error:
        problems.append(error)
        return family.activations[0]


def _rotary_kinds(config: Any, family: Family) -> tuple[str, ...]:
    """For each layer, the kind whose rotary settings it has; (): all have the same."""
    if not family.rotary_kinds:
        return ()
    kinds, layers = tuple(config.layer_types or ()), config.num_hidden_layers
    return (*kinds, *(_FULL,) * (layers - len(kinds)))[:layers]  # that some are missing is a problem of the windows


def _rotary_settings(config: Any, family: Family) -> dict[str, dict[str, Any]]:
    """transformers' rotary settings by the kind of layers that they are of; "": of all."""
    settings = config.rope_parameters or {}
    kinds = sorted(set(_rotary_kinds(config, family)))
    return {kind: settings.get(kind) or {} for kind in kinds} if kinds else {"": settings}


def _context(config: Any, family: Family, problems: list[HvlcError]) -> int:
    """Number of exported positions: all, up to `CONTEXT_LIMIT` and to where a sequence would be computed otherwise.

    A longer sequence has other frequencies from its first position on (longrope), or other queries (Ministral 3).
    """
    longest = min(config.max_position_embeddings, CONTEXT_LIMIT)
    for settings in _rotary_settings(config, family).values():
        if settings.get("rope_type") != "longrope" and not settings.get("llama_4_scaling_beta"):
            continue
        first = settings.get("original_max_position_embeddings")
        if type(first) is not int or first < 1:
            problems.append(_refusal("checkpoint.config", f"original_max_position_embeddings is {first!r:.80}"))
        else:
            longest = min(longest, first)
    return int(longest)


def _rotations(config: Any, family: Family, layers: int, problems: list[HvlcError]) -> tuple[bool, ...]:
    """Flag of each layer: whether it rotates queries and keys."""
    rotations = family.rotates(config) if family.rotates else (True,) * layers
    if len(rotations) < layers:
        cause = f"rotation is configured for {len(rotations)} of {layers} layers"
        problems.append(_refusal("checkpoint.config", cause))
        return (True,) * layers
    return rotations


def _windows(config: Any, family: Family, layers: int, problems: list[HvlcError]) -> tuple[int | None, ...]:
    """Number of positions that each layer's tokens see; a class that knows no kinds of layers has its window in all."""
    typed = hasattr(type(config), "layer_types")
    kinds = getattr(config, "layer_types", None) or [_FULL] * layers
    window = getattr(config, "sliding_window", None)
    known = {_FULL, _SLIDING} if typed else {_FULL}
    known |= {_CONVOLUTION} if family.convolution else set()
    unknown = sorted({str(kind) for kind in kinds} - known)
    if unknown:
        problems.append(_refusal("export.attention", f"layer_types holds {', '.join(unknown)}"))
    if len(kinds) < layers:
        problems.append(_refusal("checkpoint.config", f"layer_types names {len(kinds)} of {layers} layers"))
        kinds = [_FULL] * layers
    if not typed and window is not None and hasattr(type(config), "sliding_window"):
        kinds = [_SLIDING] * layers
    elif _SLIDING not in known & set(kinds):
        return (None,) * layers
    if not (isinstance(window, int) and window > 0):
        problems.append(_refusal("checkpoint.config", f"sliding attention with a sliding_window of {window}"))
        window = None
    return tuple(window if kind == _SLIDING else None for kind in kinds[:layers])


def _refuse_unread(config: Any, family: Family, stored: Mapping[str, Any], problems: list[HvlcError]) -> None:
    """Everything in the configuration that changes the numbers and that nobody here reads."""
    elsewhere = {k: v for k, v in _NEUTRAL_ELSEWHERE.items() if not hasattr(type(config), k)}
    for key, neutral in {**_NEUTRAL, **elsewhere, **family.neutral}.items():
        if key in stored and stored[key] not in neutral:
            expected = " or ".join(repr(value) for value in neutral)
            problems.append(_refusal("export.config", f"{key} is {stored[key]!r}, exported is {expected}"))


def _refuse_dimensions(shape: DecoderShape, problems: list[HvlcError]) -> None:
    """Refuse dimensions that onnxruntime's GroupQueryAttention does not take."""
    if shape.convolution is not None and len(shape.convolution.layers) == shape.layers:
        problems.append(_refusal("export.attention", "no layer has attention"))
    if shape.kv_heads < 1 or shape.heads % shape.kv_heads:
        cause = f"{shape.heads} query heads are not a multiple of {shape.kv_heads} key/value heads"
        problems.append(_refusal("export.heads", cause))
    # "head_size shall be a multiple of 16" with rotation, of 8 without (onnxruntime 1.31, CPU)
    multiple = 16 if any(shape.rotary) else 8
    if shape.head_size % multiple:
        cause = f"heads are {shape.head_size} wide, onnxruntime takes multiples of {multiple}"
        problems.append(_refusal("export.head_size", cause))


def _refusal(code: str, cause: str) -> UserError:
    return UserError(code, f"config.json: {cause}", "a later version may take it; choose another checkpoint")


def rotary_tables(config: Any, family: Family, shape: DecoderShape, problems: list[HvlcError]) -> RotaryTables:
    """Cosine and sine tables with transformers' own frequencies.

    Args:
        config: transformers' configuration.
        family: knows the rotary embedding.
        shape: of the decoder.
        problems: gets what a table cannot express; the tables are zeros then.

    Raises:
        UserError: transformers cannot read the rotary settings.
    """
    found = _rotary_settings(config, family)
    causes = [cause for settings in found.values() for cause in _rotary_obstacles(settings, family, shape)]
    if causes:
        problems += [_refusal("export.rope", cause) for cause in dict.fromkeys(causes)]
        empty = np.zeros((shape.context, shape.head_size // 2), np.float32)
        return dict.fromkeys(found, (empty, empty))
    try:
        rotary = family.rotary(config=config)
        known = {kind: _frequencies(rotary, kind) for kind in found}
    except CONFIG_ERRORS as error:
        cause = f"config.json: the rotary settings {config.rope_parameters} lack or contradict {error}"
        raise UserError("checkpoint.config", cause, "correct config.json") from error
    return {kind: _tables(*known[kind], shape.context, settings, problems) for kind, settings in found.items()}


def _frequencies(rotary: Any, kind: str) -> tuple[torch.Tensor, float]:
    """Inverse frequencies of a kind of layers, and the factor of its cosines and sines."""
    prefix = f"{kind}_" if kind else ""
    return getattr(rotary, f"{prefix}inv_freq"), getattr(rotary, f"{prefix}attention_scaling")


def _rotary_obstacles(settings: Mapping[str, Any], family: Family, shape: DecoderShape) -> list[str]:
    """Rotary settings that tables cannot express, or onnxruntime does not take."""
    kind = settings.get("rope_type")
    partial = settings.get("partial_rotary_factor") or 1
    rotated = int(shape.head_size * partial)
    causes = []
    if kind not in _STATIC_ROPE:
        causes.append(f"rope_type {kind!r} is none of {', '.join(_STATIC_ROPE)}")
    if "mrope_section" in settings and family.grid_positions is None:
        causes.append(f"mrope_section is {settings['mrope_section']}, exported are positions in one axis")
    if partial != 1 and not family.partial:
        causes.append(f"partial_rotary_factor is {partial}, exported is 1")
    elif partial != 1 and (rotated < _ROTARY_MULTIPLE or rotated % _ROTARY_MULTIPLE):
        causes.append(f"{rotated} of {shape.head_size} channels rotate, onnxruntime takes multiples of 16")
    return causes


def _tables(
    frequencies: torch.Tensor, scaling: float, context: int, settings: Mapping[str, Any], problems: list[HvlcError]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines float32 `[context, rotated / 2]`; zeros and a problem where the angles are not finite."""
    # torch's own functions: tables rounded otherwise parted greedy tokens from transformers' at near ties.
    angles = torch.outer(torch.arange(context).float(), frequencies.float())
    if not bool(angles.isfinite().all()):
        problems.append(_refusal("checkpoint.config", f"the rotary settings {settings} give no finite angles"))
        return np.zeros(angles.shape, np.float32), np.zeros(angles.shape, np.float32)
    cosines, sines = (angles.cos() * scaling).numpy(), (angles.sin() * scaling).numpy()
    if not (np.isfinite(cosines).all() and np.isfinite(sines).all()):
        problems.append(_refusal("checkpoint.config", f"the rotary settings {settings} give no finite factor"))
    return cosines, sines


def text_facts(directory: Path, config: Any, shape: DecoderShape) -> TextFacts:
    """Facts that package and runtime need about a decoder besides its graph.

    Args:
        directory: of the checkpoint.
        config: transformers' configuration of the decoder.
        shape: of the decoder.

    Raises:
        UserError: no token ends an answer.
    """
    short = shape.convolution
    return TextFacts(
        hidden_size=shape.hidden,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        vocab_size=shape.vocabulary,
        context_length=shape.context,
        trained_context_length=config.max_position_embeddings,
        eos_token_id=end_tokens(directory, config),
        bos_token_id=_inside(config.bos_token_id, shape),
        pad_token_id=_inside(config.pad_token_id, shape),
        convolution=ConvolutionFacts(short.layers, short.length - 1) if short else None,
    )


def _inside(token: Any, shape: DecoderShape) -> int | None:
    """A token's id, or None where the table has no row for it: some configurations pad with -1, which nobody embeds."""
    return token if type(token) is int and 0 <= token < shape.vocabulary else None
