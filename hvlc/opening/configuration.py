"""genai_config.json as this version writes it, and nothing else.

onnxruntime-genai does what that file says: it loads libraries of custom operators, writes profiles, starts providers.
So the file is read into a record that knows every key of `hvlc.package.genai` and `hvlc.package.staged`, the record is
held against the manifest, and the runtime is given the record (`hvlc.opening.engine`), never the file.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hvlc.errors import UserError
from hvlc.files.reading import shown
from hvlc.graphs.facts import Kind
from hvlc.graphs.placement import Phase
from hvlc.inputs.documents import read_json
from hvlc.inputs.records import StrictModel
from hvlc.manifest.manifest import (
    FLOAT_PRODUCTS,
    HOST_FEATURES,
    ComponentEntry,
    Finite,
    GraphName,
    Length,
    Manifest,
    Size,
    TokenId,
)
from hvlc.opening.options import COMPILED_NAME

CONFIGURATION = "genai_config.json"
_CODE = "package.configuration"
_FIX = "do not trust this package, or build it again"
#: Types of onnxruntime-genai: of a model that sees and of text alone, each in one graph and in stages.
_SEES, _SEES_GRIDS, _READS_IN_STAGES = "gemma3", "qwen2_5_vl", "decoder-pipeline"
#: A model that sees, in one graph with states of convolutions.
_SEES_WITH_STATES = "lfm2_vl"
#: Type of a text decoder in one graph, by its family in the checkpoint. onnxruntime-genai knows no Ministral, and
#: computes the whole sequence of a "phi3" again at its 4,097th token, for a long rope that is not exported.
TEXT_TYPES = {
    "ernie4_5": "ernie4_5",
    "gemma3_text": "gemma3_text",
    "granite": "granite",
    "lfm2": "lfm2",
    "llama": "llama",
    "ministral": "mistral",
    "ministral3": "mistral",
    "mistral": "mistral",
    "phi3": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
}

#: Some checkpoints say -1 where they have no such token.
_Id = Annotated[int, Field(ge=-1, lt=2**31)]
_LayerKind = Literal["conv", "full_attention"]
_Name = Annotated[str, Field(min_length=1, max_length=200)]


class SessionOptions(StrictModel):
    """Options of one session."""

    log_id: Literal["onnxruntime-genai"] | None = None
    prepacking: Literal["1"] | None = Field(None, alias="session.disable_prepacking")
    float_products: Literal["1"] | None = Field(None, alias=FLOAT_PRODUCTS[0])
    provider_options: tuple[dict[str, dict[str, str]], ...]


class _DecoderInputs(StrictModel):
    input_ids: Literal["input_ids"] | None = None
    inputs_embeds: Literal["inputs_embeds"] | None = None
    attention_mask: Literal["attention_mask"] | None = None
    position_ids: Literal["position_ids"] | None = None
    past_sequence_length: Literal["past_seq_len"] | None = None
    total_sequence_length: Literal["total_seq_len"] | None = None
    past_key_names: Literal["past_key_values.%d.key"]
    past_value_names: Literal["past_key_values.%d.value"]
    past_conv_names: Literal["past_key_values.%d.conv"] | None = None


class _DecoderOutputs(StrictModel):
    logits: Literal["logits"]
    present_key_names: Literal["present.%d.key"]
    present_value_names: Literal["present.%d.value"]
    present_conv_names: Literal["present.%d.conv"] | None = None


class _SlidingWindow(StrictModel):
    window_size: Size
    pad_value: Annotated[int, Field(ge=0, le=0)]
    alignment: Literal["left"]
    slide_key_value_cache: Literal[False]


class Stage(StrictModel):
    """One graph of a decoder in stages."""

    filename: GraphName
    inputs: tuple[_Name, ...]
    outputs: tuple[_Name, ...]
    run_on_prompt: bool
    run_on_token_gen: bool
    is_lm_head: bool
    session_options: SessionOptions


class _Decoder(StrictModel):
    filename: GraphName | None = None
    head_size: Size
    hidden_size: Size
    num_attention_heads: Size
    num_hidden_layers: Annotated[int, Field(ge=1, le=4096)]
    num_key_value_heads: Size
    layer_types: Annotated[tuple[_LayerKind, ...], Field(min_length=2, max_length=4096)] | None = None
    conv_cache_size: Size | None = None
    session_options: SessionOptions
    inputs: _DecoderInputs
    outputs: _DecoderOutputs
    sliding_window: _SlidingWindow | None = None
    pipeline: Annotated[tuple[dict[str, Stage], ...], Field(min_length=1, max_length=1)] | None = None

    @model_validator(mode="after")
    def _knows_its_states(self) -> Self:
        """onnxruntime-genai makes a state for each layer, of the kind and size that it is told here."""
        names = self.inputs.past_conv_names, self.outputs.present_conv_names
        given = [value is not None for value in (self.layer_types, self.conv_cache_size, *names)]
        if any(given) and not all(given):
            raise ValueError("layer_types, conv_cache_size and the names of convolutions' states belong together")
        kinds = self.layer_types or ()
        if kinds and (len(kinds) != self.num_hidden_layers or len(set(kinds)) == 1):
            raise ValueError("layer_types names each layer, some with a convolution and some with attention")
        return self


class _VisionInputs(StrictModel):
    pixel_values: Literal["pixel_values", "host_image_features"]


class _VisionOutputs(StrictModel):
    image_features: Literal["image_features"]


class _Vision(StrictModel):
    filename: GraphName
    inputs: _VisionInputs
    outputs: _VisionOutputs
    spatial_merge_size: Annotated[int, Field(ge=1, le=1)] | None = None
    session_options: SessionOptions


class _EmbeddingInputs(StrictModel):
    input_ids: Literal["input_ids"]
    image_features: Literal["image_features"]


class _EmbeddingOutputs(StrictModel):
    inputs_embeds: Literal["inputs_embeds"]


class _Embedding(StrictModel):
    filename: GraphName
    inputs: _EmbeddingInputs
    outputs: _EmbeddingOutputs
    session_options: SessionOptions


class _Model(StrictModel):
    type: Literal[
        "gemma3",
        "lfm2",
        "lfm2_vl",
        "qwen2_5_vl",
        "decoder-pipeline",
        "ernie4_5",
        "gemma3_text",
        "granite",
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "smollm3",
    ]
    bos_token_id: _Id
    eos_token_id: _Id | Annotated[tuple[_Id, ...], Field(min_length=1, max_length=1000)]
    pad_token_id: _Id
    vocab_size: Size
    context_length: Length
    decoder: _Decoder
    image_token_id: TokenId | None = None
    vision_start_token_id: TokenId | None = None
    vision: _Vision | None = None
    embedding: _Embedding | None = None


class _Search(StrictModel):
    max_length: Length
    do_sample: Literal[False]
    num_beams: Annotated[int, Field(ge=1, le=1)]
    past_present_share_buffer: Literal[True]
    top_k: Annotated[int, Field(ge=50, le=50)]
    top_p: Annotated[Finite, Field(ge=1, le=1)]
    temperature: Annotated[Finite, Field(ge=1, le=1)]


class Configuration(StrictModel):
    """Everything that onnxruntime-genai is told of a package.

    Attributes:
        model: type, tokens, graphs.
        search: greedy, over the whole context.
        vlm_manifest: name of the manifest, for hosts.
    """

    model: _Model
    search: _Search
    vlm_manifest: Literal["hvlc.json"]

    @model_validator(mode="after")
    def _is_one_form(self) -> Self:
        decoder = self.model.decoder
        if (decoder.filename is None) is (decoder.pipeline is None):
            raise ValueError("a decoder is one graph or a pipeline")
        if (decoder.pipeline is None) is not (decoder.sliding_window is None):
            raise ValueError("a pipeline has a sliding window, and one graph has none")
        if self.search.max_length > self.model.context_length:
            raise ValueError("max_length is beyond the context")
        return self

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end an answer."""
        eos = self.model.eos_token_id
        return frozenset([eos] if isinstance(eos, int) else eos)

    @property
    def stages(self) -> Mapping[str, Stage]:
        """Graphs of a decoder in stages by their component; none of another decoder."""
        return self.model.decoder.pipeline[0] if self.model.decoder.pipeline else {}

    def text(self) -> str:
        """JSON of the configuration, as the runtime reads it."""
        return json.dumps(self.model_dump(mode="json", by_alias=True, exclude_unset=True), indent=1)


def read_configuration(directory: Path, manifest: Manifest) -> Configuration:
    """The configuration of a package with a decoder.

    Args:
        directory: the package.
        manifest: of it.

    Raises:
        UserError: there is none, it is damaged, or it says what this version does not write, or what the manifest does
            not say.
    """
    path = directory / CONFIGURATION
    if CONFIGURATION not in manifest.files:
        raise UserError("package.incomplete", f"the manifest of {shown(directory)} lists no {CONFIGURATION}", _FIX)
    content: Any = read_json(path, _CODE, unique=True)
    try:
        found = Configuration.parse(content, str(path))
    except UserError as error:
        raise UserError(_CODE, error.cause, _FIX) from error
    problems = list(_contradictions(found, manifest))
    if problems:
        raise UserError(_CODE, f"{shown(path)} is not that of its manifest: {'; '.join(problems[:8])}", _FIX)
    return found


def _contradictions(found: Configuration, manifest: Manifest) -> Iterator[str]:
    """Contradictions of the configuration to the manifest."""
    model, sees = found.model, manifest.kind is Kind.VISION_LANGUAGE
    yield from _differs("model.type", model.type, _type_of(manifest))
    yield from _differs("model.context_length", model.context_length, manifest.context_length)
    yield from _differs("model.decoder.hidden_size", model.decoder.hidden_size, manifest.embedding_width)
    images = manifest.images if sees else None
    yield from _differs("model.image_token_id", model.image_token_id, images.token if images else None)
    grids = bool(images and images.grid_positions)
    start = images.start if images and (manifest.is_staged or grids) else None
    yield from _differs("model.vision_start_token_id", model.vision_start_token_id, start)
    yield from _differs("model.vision", _file(model.vision), _of(manifest, "vision") if sees else None)
    embedded = _of(manifest, "embedding") if sees and not manifest.is_staged else None
    yield from _differs("model.embedding", _file(model.embedding), embedded)
    if model.vision:
        pixels = HOST_FEATURES if manifest.is_staged else "pixel_values"
        yield from _differs("model.vision.inputs", model.vision.inputs.pixel_values, pixels)
        merge = 1 if grids and not manifest.is_staged else None
        yield from _differs("model.vision.spatial_merge_size", model.vision.spatial_merge_size, merge)
    for part in (model.vision, model.embedding):
        if part and part.session_options.provider_options:
            yield f"{part.filename} asks for a provider"
    yield from _decoder(found, manifest)


def _decoder(found: Configuration, manifest: Manifest) -> Iterator[str]:
    decoder = found.model.decoder
    given = {name for name in decoder.inputs.model_dump(exclude_none=True) if not name.startswith("past_")}
    given |= {"past_sequence_length"} if decoder.inputs.past_sequence_length else set()
    yield from _differs("model.decoder.layer_types", decoder.layer_types is None, manifest.rewinds)
    asked = decoder.session_options.provider_options
    if manifest.is_staged:
        lengths = {"input_ids", "inputs_embeds", "past_sequence_length", "total_sequence_length"}
        yield from _differs("model.decoder.inputs", sorted(given), sorted(lengths))
        yield from _differs("model.decoder.session_options", list(asked), [])
        yield from _stages(found, manifest)
        return
    entry = manifest.whole_decoder
    reads = "inputs_embeds" if manifest.kind is Kind.VISION_LANGUAGE else "input_ids"
    yield from _differs("model.decoder.filename", decoder.filename, entry.file)
    grids = ["position_ids"] if manifest.images and manifest.images.grid_positions else []
    yield from _differs("model.decoder.inputs", sorted(given), sorted((reads, "attention_mask", *grids)))
    if asked:
        yield from _differs("model.decoder.session_options", list(asked), _providers(entry))


def _stages(found: Configuration, manifest: Manifest) -> Iterator[str]:
    parts = {n: e for n, e in manifest.components.items() if n == "embedding" or e.phase is not Phase.ALWAYS}
    yield from _differs("the pipeline's stages", sorted(found.stages), sorted(parts))
    for name, stage in found.stages.items():
        entry = parts.get(name)
        if entry is None:
            continue
        yield from _differs(f"{name}.filename", stage.filename, entry.file)
        phases = entry.phase is not Phase.TOKEN, entry.phase is not Phase.PROMPT
        yield from _differs(f"{name} runs on", (stage.run_on_prompt, stage.run_on_token_gen), phases)
        yield from _differs(f"{name}.is_lm_head", stage.is_lm_head, "logits" in stage.outputs)
        if asked := stage.session_options.provider_options:
            yield from _differs(f"{name}.provider_options", list(asked), _providers(entry))


def _providers(entry: ComponentEntry) -> list[dict[str, dict[str, str]]]:
    """Provider options that the manifest asks for."""
    if entry.compiled:
        return [{COMPILED_NAME: entry.compiled.provider_options}]
    return [{entry.provider.name: entry.provider.options}] if entry.provider else []


def _type_of(manifest: Manifest) -> str:
    if manifest.kind is Kind.VISION_LANGUAGE:
        grids = manifest.images is not None and manifest.images.grid_positions
        if manifest.is_staged or grids:
            return _SEES_GRIDS
        return _SEES if manifest.rewinds else _SEES_WITH_STATES
    return _READS_IN_STAGES if manifest.is_staged else TEXT_TYPES.get(manifest.sources.model_type, "")


def _file(part: _Vision | _Embedding | None) -> str | None:
    return part.filename if part else None


def _of(manifest: Manifest, component: str) -> str:
    return manifest.components[component].file


def _differs(what: str, found: object, expected: object) -> Iterator[str]:
    if found != expected:
        yield f"{what} is {str(found)[:200]}, not {str(expected)[:200]}"
