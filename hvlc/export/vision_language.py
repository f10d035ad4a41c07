"""Vision-language models: a checkpoint becomes vision encoders with connectors, an embedding and a decoder.

A family is a record; the export over it is one. What differs between families are names of parameters, the rule by
which images become pieces and tokens, the tower, the connector, and which decoders speak.
"""

from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
from transformers import PreTrainedConfig

from hvlc.errors import Collector, UserError, nearest
from hvlc.export.compressor import joined_compressor, joined_settings
from hvlc.export.decoder.embedding import embedding
from hvlc.export.decoder.graph import decoder
from hvlc.export.decoder.shape import DecoderShape
from hvlc.export.language import (
    Family,
    decoder_shape,
    head_parameter,
    rotary_tables,
    text_facts,
    with_graph_names,
    with_table,
)
from hvlc.export.settings import read_config
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role, Wire
from hvlc.graphs.facts import CompressorFacts, Facts, ImageFacts, ImageRule
from hvlc.models.modules import Modules
from hvlc.models.numbers import Numbers
from hvlc.weights.checkpoint import Checkpoint

_CHANNELS = 3
_ANY_SIDES = ("piece_height", "piece_width")

#: Key of config.json, and beginning of parameters, of encoders that were added (`hvlc.export.added_encoders`).
ADDED = "vision_encoders"


@dataclass(frozen=True)
class Names:
    """Names of a checkpoint's parameters; some families have been saved in several ways.

    Attributes:
        tower: what the names of the vision tower's parameters begin with, the dot included.
        connector: the same of the connector.
        text: dotted name of the text model.
        head: parameter of the language-model head.
    """

    tower: str
    connector: str
    text: str
    head: str = "lm_head.weight"

    @property
    def table(self) -> str:
        """Parameter of the embedding table."""
        return f"{self.text}.embed_tokens.weight"


@dataclass(frozen=True)
class Encoder:
    """A vision encoder of a checkpoint.

    Attributes:
        name: as requests name it.
        config: transformers' configuration of its tower.
        tower: what the names of its tower's parameters begin with, the dot included.
        connector: the same of its connector.
        is_untrained: whether its connector has the weights that it was made with.
    """

    name: str
    config: Any
    tower: str
    connector: str
    is_untrained: bool = False


@dataclass(frozen=True)
class Rule:
    """Rule by which a checkpoint's images become pieces and tokens.

    Attributes:
        rule: the image rule.
        image_token_id: placeholder of one visual token.
        placeholder_id: token that the chat template writes for a whole image.
        start_token_id: token that stands right before an image's own, or the first of those.
        special_ids: all tokens that an image may bring, and those around it.
        max_visual_tokens: default bound for one image.
        placeholder: text that the chat template writes for an image, where that is not a token. None: it is
            `placeholder_id`.
        before: text that joins the text before an image, and is encoded with it.
        after: the same of the text after an image.
    """

    rule: ImageRule
    image_token_id: int
    placeholder_id: int
    start_token_id: int
    special_ids: frozenset[int]
    max_visual_tokens: int
    placeholder: str | None = None
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Compressor:
    """The resolution compressor of a family that has one.

    Attributes:
        build: builds its graph for a configuration.
        facts: what the front graph must know of it.
        parameters: what the names of its parameters begin with; they are left out where another one has joined.
    """

    build: Callable[[GraphBuilder, Any], ir.Model]
    facts: Callable[[Checkpoint, Any], CompressorFacts]
    parameters: str = ""


def one_encoder(config: Any, names: Names) -> tuple[Encoder, ...]:
    """The encoders of a family that has one, and those that were added to a checkpoint of it."""
    main = Encoder("main", config.vision_config, names.tower, names.connector)
    kind = type(config.vision_config)
    added = {
        name: kind.from_dict(deepcopy(settings)) for name, settings in (getattr(config, ADDED, None) or {}).items()
    }
    return main, *(Encoder(n, c, f"{ADDED}.{n}.tower.", f"{ADDED}.{n}.connector.", True) for n, c in added.items())


def refuse_nothing(config: Any, found: Collector) -> None:
    """Refuse nothing: the check of a family whose configuration cannot contradict itself."""


@dataclass(frozen=True)
class VisionLanguageFamily:
    """Facts that the vision-language models of one model_type have in common.

    Attributes:
        config: transformers' class of the whole configuration.
        numbers: bounds of its numbers.
        modules: where transformers' model keeps what traces look at.
        names: where parameters are, by the ways in which the family has been saved; the first that fits is taken.
        rule: how images become pieces and tokens, by checkpoint and configuration.
        tower: builds features float32 `[pieces, patches, width]` of pixels.
        connector: builds visual tokens float32 `[pieces, tokens, hidden + side channels]` of features.
        decoders: families of the text decoders that speak, by model_type of `text_config`.
        check: adds what the configuration contradicts to a collector.
        encoders: vision encoders of a configuration.
        default_encoder: name of the one that answers when a caller names none, by configuration.
        compressor: None: the family has none.
        taps: how many first layers of the decoder add features of the image (DeepStack), by configuration.
        image_blocks: whether the visual tokens of an image see each other, those that follow too; the connector gives
            each a 1 in one more channel.
        tower_size: width and number of layers of a tower, by its configuration.
    """

    config: type[PreTrainedConfig]
    numbers: type[Numbers]
    modules: Modules
    names: tuple[Names, ...]
    rule: Callable[[Checkpoint, Any], Rule]
    tower: Callable[[GraphBuilder, ir.Value, Encoder], ir.Value]
    connector: Callable[[GraphBuilder, ir.Value, Encoder, Any], ir.Value]
    decoders: Mapping[str, Family]
    check: Callable[[Any, Collector], None] = refuse_nothing
    encoders: Callable[[Any, Names], tuple[Encoder, ...]] = one_encoder
    default_encoder: Callable[[Any], str] = field(default=lambda config: "main")
    compressor: Compressor | None = None
    taps: Callable[[Any], int] = field(default=lambda config: 0)
    image_blocks: bool = False
    tower_size: Callable[[Any], tuple[int, int]] = field(
        default=lambda tower: (tower.hidden_size, tower.num_hidden_layers)
    )


def vision_language_bundle(checkpoint: Checkpoint, family: VisionLanguageFamily) -> Bundle:
    """The bundle of a vision-language model; weights stay in the checkpoint until they are written.

    Raises:
        UserError: the configuration is not valid or asks for what is not exported, or weights are missing.
    """
    config: Any = read_config(family.config, checkpoint, family.numbers)
    names = names_of(checkpoint, family)
    checkpoint = with_table(checkpoint, config, names.table, names.head)
    text = _text_family(config, family)
    found = Collector()
    family.check(config, found)
    _check_encoders(config, family, names, found)
    rule = None
    with found:
        rule = family.rule(checkpoint, config)
        _check_tokens(rule, config)
    rule = found.require(rule)
    found.raise_all()
    checkpoint = with_graph_names(checkpoint, text, names.text)
    stored = checkpoint.config.get("text_config") or {}
    shape = decoder_shape(config.text_config, text, stored, checkpoint.problems)
    shape = replace(shape, taps=family.taps(config), image_blocks=family.image_blocks)
    bundle = Bundle(checkpoint.model_type)
    for encoder in family.encoders(config, names):
        bundle.add(_encoder(checkpoint, family, encoder, rule.rule, shape.hidden + shape.side_channels, config))
    compressor = _compressor(checkpoint, family, config, bundle)
    b = GraphBuilder("embedding", checkpoint)
    model = embedding(b, names.table, shape, rule.image_token_id)
    bundle.add(Component("embedding", Role.EMBEDDING, model, "model"))
    bundle.add(_decoder(checkpoint, config, text, shape, names))
    bundle.wires.append(Wire("embedding.inputs_embeds", "model.inputs_embeds"))
    bundle.facts = _facts(checkpoint, family, config, names, shape, rule, compressor)
    return bundle


def _compressor(
    checkpoint: Checkpoint, family: VisionLanguageFamily, config: Any, bundle: Bundle
) -> CompressorFacts | None:
    """Add the resolution compressor that joined a checkpoint, or the family's own; None where there is neither.

    Raises:
        UserError: the one that joined does not fit.
    """
    settings = joined_settings(checkpoint)
    if settings is not None:
        component, facts = joined_compressor(checkpoint, settings, config.text_config.vocab_size)
        bundle.add(component)
        return facts
    if family.compressor is None:
        return None
    model = family.compressor.build(GraphBuilder("resolution", checkpoint), config)
    bundle.add(Component("resolution", Role.FRONT, model, "front"))
    return family.compressor.facts(checkpoint, config)


def names_of(checkpoint: Checkpoint, family: VisionLanguageFamily) -> Names:
    """The names by which a checkpoint keeps its parameters.

    Raises:
        UserError: it has none of the family's forms.
    """
    for names in family.names:
        if any(name.startswith(names.tower) for name in checkpoint.tensors):
            return names
    expected = " or ".join(f"{names.tower}*" for names in family.names)
    cause = f"{checkpoint.directory} holds no parameters {expected}"
    raise UserError("checkpoint.names", cause, "save the whole model with save_pretrained, towers included")


def _text_family(config: Any, family: VisionLanguageFamily) -> Family:
    kind = config.text_config.model_type
    if kind not in family.decoders:
        cause = f"config.json: text_config is of model_type {kind!r}"
        raise UserError("export.text_model", cause, nearest(kind, sorted(family.decoders)))
    return family.decoders[kind]


def _check_encoders(config: Any, family: VisionLanguageFamily, names: Names, found: Collector) -> None:
    """Refuse towers that are not for colour images, and added ones that contradict themselves or the first."""
    encoders = family.encoders(config, names)
    for encoder in encoders:
        key = "num_channels" if hasattr(encoder.config, "num_channels") else "in_channels"
        channels = getattr(encoder.config, key)
        if channels != _CHANNELS:
            cause = f"config.json: {key} of the vision encoder {encoder.name} is {channels}, not {_CHANNELS}"
            found.problems.append(UserError("checkpoint.config", cause, "correct it"))
    for encoder in encoders[1:] if getattr(config, ADDED, None) else ():
        alone = copy(config)
        alone.vision_config = encoder.config
        family.check(alone, found)
        for key in ("image_size", "patch_size"):
            first, other = getattr(encoders[0].config, key), getattr(encoder.config, key)
            if first != other:
                cause = f"config.json: {key} of the vision encoders main and {encoder.name} are {first} and {other}"
                found.problems.append(UserError("checkpoint.config", cause, "add a tower of the same tiles"))


def _check_tokens(rule: Rule, config: Any) -> None:
    """Refuse placeholders that the embedding table has no row for.

    Raises:
        UserError: there are some.
    """
    rows = config.text_config.vocab_size
    outside = sorted(token for token in rule.special_ids if not 0 <= token < rows)
    if outside:
        cause = f"config.json: tokens of images are {', '.join(map(str, outside))}, the vocabulary has {rows} tokens"
        raise UserError("checkpoint.config", cause, "match config.json and tokenizer")


def _encoder(
    checkpoint: Checkpoint, family: VisionLanguageFamily, encoder: Encoder, rule: ImageRule, width: int, config: Any
) -> Component:
    """Tower and connector: pieces to visual tokens."""
    b = GraphBuilder(f"vision_{encoder.name}", checkpoint)
    # pieces of one shape can run together; one that has the image's shape runs alone
    pieces, sides = ("tiles", rule.piece_shape) if rule.piece_shape else (1, _ANY_SIDES)
    sides = _ANY_SIDES if rule.has_overview else sides  # one piece has others
    pixels = b.input("pixel_values", ir.DataType.FLOAT, [pieces, _CHANNELS, *sides])
    features = family.tower(b, pixels, encoder)
    tokens = family.connector(b, features, encoder, config)
    cells = "tokens" if rule.has_overview else rule.tokens_per_piece or "tokens"
    if encoder.is_untrained:
        b.note(
            f"the connector of vision encoder {encoder.name} is untrained: train it before its answers mean anything"
        )
    b.output(tokens, "tile_features", ir.DataType.FLOAT, [pieces, cells, width])
    return Component(f"vision_{encoder.name}", Role.VISION_ENCODER, b.model(), "vision")


def _decoder(checkpoint: Checkpoint, config: Any, family: Family, shape: DecoderShape, names: Names) -> Component:
    b = GraphBuilder("decoder", checkpoint)
    head = head_parameter(b, config, names.table, names.head)
    tables = rotary_tables(config.text_config, family, shape, checkpoint.problems)
    return Component("model", Role.DECODER, decoder(b, names.text, head, shape, tables), "model")


def _facts(
    checkpoint: Checkpoint,
    family: VisionLanguageFamily,
    config: Any,
    names: Names,
    shape: DecoderShape,
    rule: Rule,
    compressor: CompressorFacts | None,
) -> Facts:
    """Facts that passes, package and runtime need besides the graphs."""
    image = ImageFacts(
        rule=rule.rule,
        image_token_id=rule.image_token_id,
        placeholder_id=rule.placeholder_id,
        start_token_id=rule.start_token_id,
        special_ids=rule.special_ids,
        max_visual_tokens=rule.max_visual_tokens,
        placeholder=rule.placeholder,
        before=rule.before,
        after=rule.after,
        encoders=tuple(encoder.name for encoder in family.encoders(config, names)),
        default_encoder=family.default_encoder(config),
        compressor=compressor,
        side_channels=shape.side_channels,
        grid_positions=shape.grid_positions is not None,
        image_blocks=shape.image_blocks,
    )
    return Facts(text=text_facts(checkpoint.directory, config.text_config, shape), image=image)
