"""Traces of checkpoints (`hvlc.results.trace_points`): what transformers' modules compute, recorded in float32."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from hvlc.chat.reference import CheckpointTemplate
from hvlc.errors import UserError
from hvlc.models.loaded import LoadedModel, followed
from hvlc.models.loading import check_config, loading
from hvlc.models.modules import Modules
from hvlc.models.numbers import LanguageNumbers, Numbers
from hvlc.results import trace_points
from hvlc.results.trace_points import Layout, Question, Values
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.hub import name_of
from hvlc.weights.prequantized.settings import read_quantization

_TAP = "taps."  # and its number: what one of several modules makes


class LanguageTracer:
    """Tracer of a text decoder.

    Args:
        directory: a checkpoint in floats.
        numbers: bounds of its configuration's numbers.

    Attributes:
        name: the directory's.
        runs_on: what computes.

    Raises:
        UserError: it is damaged, quantized, or a GGUF file, or a number of its configuration is outside its bounds.
    """

    runs_on = "torch CPU"

    def __init__(self, directory: Path, numbers: type[Numbers] = LanguageNumbers) -> None:
        checkpoint = Checkpoint.open(directory)
        if checkpoint.gguf is not None or read_quantization(checkpoint) is not None:
            cause = f"{directory} is quantized, and transformers' float modules are the reference"
            raise UserError("bisect.reference", cause, "name the checkpoint that it was made from, or a package of it")
        check_config(checkpoint.config, numbers)
        logging.disable_progress_bar()  # the caller has its own
        self.directory, self.name = directory, name_of(directory)
        self.model_type = checkpoint.model_type

    @cached_property
    def layout(self) -> Layout:
        """Widths and numbers of layers, as configured."""
        with loading(self.directory):
            config = AutoConfig.from_pretrained(self.directory)
        return Layout({}, config.num_hidden_layers, config.hidden_size, config.vocab_size)

    @cached_property
    def model(self) -> Any:
        """The model, loaded when it is first needed."""
        with loading(self.directory):
            return AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float32).eval()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        with loading(self.directory):
            return AutoTokenizer.from_pretrained(self.directory)

    @cached_property
    def _template(self) -> CheckpointTemplate:
        return CheckpointTemplate(self.directory)

    @torch.no_grad()
    def trace(self, question: Question) -> Values:
        """The values of all stages, in the order in which they run.

        Raises:
            UserError: the question has an image.
        """
        if question.images:
            raise UserError("request.image", f"{self.directory} takes no images", "ask without")
        ids = torch.tensor([self._prompt_ids(question.prompt)])
        answer = self._answer(ids, {}, question)
        found = {trace_points.TOKENIZATION: _array(ids[0]), trace_points.SAMPLING: answer, trace_points.ANSWER: answer}
        modules = {trace_points.EMBEDDING: self.model.get_input_embeddings()}
        return trace_points.in_order(self._run(found, modules, self.model.get_decoder(), {}))

    def _prompt_ids(self, prompt: str) -> list[int]:
        """Through the chat template, or as plain text to go on with if there is none."""
        text = self._template.rendered([{"role": "user", "content": prompt}])
        bare = text is None
        ids: list[int] = self.tokenizer(prompt if text is None else text, add_special_tokens=bare)["input_ids"]
        return ids

    def _answer(self, ids: torch.Tensor, inputs: Mapping[str, Any], question: Question) -> np.ndarray:
        """int64 `[tokens]`: the greedy answer; none where none is asked for."""
        if not question.max_new_tokens:
            return np.zeros(0, np.int64)
        mask = torch.ones_like(ids)
        asked = {"max_new_tokens": question.max_new_tokens, "do_sample": False}
        return _array(self.model.generate(input_ids=ids, attention_mask=mask, **asked, **inputs)[0, ids.shape[1] :])

    def _layers(self, decoder: Any) -> Sequence[Any]:
        """Modules that make the values of a decoder's layers."""
        layers: Sequence[Any] = decoder.layers
        return layers

    def _run(
        self, found: Values, modules: Mapping[str, Any], decoder: Any, inputs: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """One pass over prompt and answer.

        Args:
            found: prompt and answer.
            modules: that make the values of the stages before the decoder.
            decoder: the module that has the layers.
            inputs: besides the tokens.

        Returns:
            All values.
        """
        ids = torch.from_numpy(trace_points.read_ids(found))[None]
        prompt, kept = len(found[trace_points.TOKENIZATION]), torch.arange(trace_points.head_start(found), ids.shape[1])
        asked = followed({**inputs, "input_ids": ids[:, :prompt]}, ids[:, prompt:])
        named = dict(modules) | {trace_points.decoder_layer(i): m for i, m in enumerate(self._layers(decoder))}
        with _listening(named, decoder) as heard:
            output = self.model(**asked, logits_to_keep=kept, use_cache=False)
        values = {name: _unbatched(name, value) for name, value in heard.items()}
        return {**found, **values, trace_points.HEAD: _array(output.logits[0])}


class VisionLanguageTracer(LanguageTracer):
    """Tracer of a vision-language model.

    Args:
        loaded: a checkpoint in floats.
        modules: where its modules are.
        towers: width and number of layers of each vision encoder's tower.

    Raises:
        UserError: it is damaged or quantized, or a number of its configuration is outside its bounds.
    """

    def __init__(self, loaded: LoadedModel, modules: Modules, towers: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(loaded.directory, loaded.numbers)
        self._loaded, self._modules, self._towers = loaded, modules, towers

    @cached_property
    def layout(self) -> Layout:
        """Widths and numbers of layers, as configured."""
        with loading(self.directory):
            text = AutoConfig.from_pretrained(self.directory).text_config
        return Layout(self._towers, text.num_hidden_layers, text.hidden_size, text.vocab_size)

    @cached_property
    def model(self) -> Any:
        """The model, loaded when it is first needed."""
        return self._loaded.model

    @torch.no_grad()
    def trace(self, question: Question) -> Values:
        """The values of all stages, in the order in which they run.

        Raises:
            UserError: the checkpoint has no such encoder, or no chat template.
        """
        encoder = self._loaded.encoder(question.encoder) if question.images else ""
        images = [Image.fromarray(image) for image in question.images]
        scales = self._loaded.scales(images, vrc=question.vrc)
        inputs = self._loaded.inputs(question.prompt, images, scales)
        ids, _ = inputs.pop("input_ids"), inputs.pop("attention_mask")
        inputs |= self._loaded.chosen(encoder) if images else {}
        answer, placeholder = self._answer(ids, inputs, question), self.model.config.image_token_id
        found = {
            trace_points.TOKENIZATION: _array(ids[0]),
            trace_points.SAMPLING: trace_points.before_placeholder(answer, placeholder),
            trace_points.ANSWER: answer,
        }
        modules = {trace_points.EMBEDDING: self.model.get_input_embeddings()}
        if images:
            found[trace_points.RESOLUTION] = np.array(self._loaded.used(images, scales), np.float32)
            found[trace_points.PREPROCESSING] = trace_points.joined_pixels(self._loaded.pieces(inputs))
            modules |= self._vision_modules(encoder)
        values = self._run(found, modules, self._module(self._modules.decoder), inputs)
        if images:  # as the decoder reads them, whatever form a model gives them before
            seen = trace_points.read_ids(found) == placeholder
            values |= _marked(values, seen) if self._modules.marks else {}
            values[trace_points.STITCHING] = values[trace_points.MERGE][seen]
            values = self._laid(values, inputs)
        for name in (trace_points.EMBEDDING, trace_points.MERGE):
            if name in values:
                values[name] = _widened(values[name], self._width)
        return trace_points.in_order(values)

    @property
    def _width(self) -> int:
        """Channels of an embedding as packages have them."""
        return self.layout.hidden * (1 + len(self._taps)) + self._modules.marks

    @property
    def _taps(self) -> Sequence[Any]:
        """Modules that make features for first layers of the decoder."""
        found: Sequence[Any] = self._module(self._modules.taps) if self._modules.taps else ()
        return found

    def _layers(self, decoder: Any) -> Sequence[Any]:
        """A model with taps adds them between its layers: a layer's value is what enters the next, or the norm."""
        if not self._taps:
            return super()._layers(decoder)
        return [Entering(module) for module in (*decoder.layers[1:], decoder.norm)]

    def _laid(self, values: dict[str, np.ndarray], inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """The values of the vision half as traces have them, those of all taps as one."""
        found = {
            name: self._loaded.laid(name, value, inputs) if _is_vision(name) else value
            for name, value in values.items()
        }
        taps = [found.pop(name) for name in list(found) if name.startswith(_TAP)]
        return found | ({trace_points.TAPS: np.concatenate(taps, -1)} if taps else {})

    def _module(self, name: str, encoder: str = "") -> Any:
        return self.model.get_submodule(name.replace("{encoder}", encoder))

    def _vision_modules(self, encoder: str) -> dict[str, Any]:
        names = self._modules
        layers = self._module(f"{names.tower}.{names.layers}", encoder)
        norm = self._module(f"{names.tower}.{names.norm}", encoder)
        return {
            trace_points.VISION_EMBEDDINGS: self._module(f"{names.tower}.{names.embeddings}", encoder)
            if names.embeddings
            else Entering(layers[0]),
            **{f"{_TAP}{index}": tap for index, tap in enumerate(self._taps)},
            **{trace_points.vision_layer(index): layer for index, layer in enumerate(layers)},
            **({} if isinstance(norm, torch.nn.Identity) else {trace_points.POST_NORM: norm}),
            trace_points.PROJECTOR: self._module(names.connector, encoder),
        }


def _behind(before: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Values of a module that is called for each piece alone, rows `[n, width]` one call behind the other."""
    return np.concatenate([values.reshape(-1, found.shape[-1]) for values in (before, found)])


def _is_vision(name: str) -> bool:
    """Whether a value is of the vision half's modules."""
    return name.startswith(("vision.", _TAP)) or name == trace_points.PROJECTOR


def _unbatched(name: str, values: np.ndarray) -> np.ndarray:
    """Values of positions have a batch of one; tiles are the batch."""
    return values if _is_vision(name) else values[0]


def _marked(values: Mapping[str, np.ndarray], seen: np.ndarray) -> dict[str, np.ndarray]:
    """Visual tokens with a 1, and what enters the decoder with what is 1 for those, in one more channel."""
    tokens, merged = values[trace_points.PROJECTOR], values[trace_points.MERGE]
    return {
        trace_points.PROJECTOR: np.concatenate([tokens, np.ones_like(tokens[..., :1])], -1),
        trace_points.MERGE: np.concatenate([merged, seen[:, None].astype(np.float32)], -1),
    }


def _widened(rows: np.ndarray, width: int) -> np.ndarray:
    """Rows with zeros in the channels that they lack."""
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))


@dataclass(frozen=True)
class Entering:
    """Stands for what enters a module, in place of what it returns.

    Attributes:
        module: that the value enters.
    """

    module: Any


@contextmanager
def _listening(modules: Mapping[str, Any], decoder: Any) -> Iterator[dict[str, np.ndarray]]:
    """Record the outputs of modules while the block runs, and the embeddings that enter a decoder."""
    heard: dict[str, np.ndarray] = {}

    def listen(name: str, module: Any) -> Any:
        if isinstance(module, Entering):
            return module.module.register_forward_pre_hook(partial(hear_entry, name), with_kwargs=True)

        def hear(_: Any, __: Any, output: Any) -> None:
            found = _array(output[0] if isinstance(output, tuple) else output)
            heard[name] = _behind(heard[name], found) if name in heard else found

        return module.register_forward_hook(hear)

    def hear_entry(name: str, _: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        heard[name] = _array(given[0] if given else named["hidden_states"])

    def hear_input(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        if inputs.get("inputs_embeds") is not None:
            heard[trace_points.MERGE] = _with_taps(inputs)

    handles = [listen(name, module) for name, module in modules.items()]
    handles.append(decoder.register_forward_pre_hook(hear_input, with_kwargs=True))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _with_taps(inputs: Mapping[str, Any]) -> np.ndarray:
    """float32 `[1, positions, width]`: embeddings, and behind them what first layers add, 0 where there is no image."""
    embeddings = _array(inputs["inputs_embeds"])
    taps = inputs.get("deepstack_visual_embeds") or []
    if not taps:
        return embeddings
    places = _array(inputs["visual_pos_masks"])
    beside = np.zeros((*embeddings.shape[:2], sum(tap.shape[-1] for tap in taps)), np.float32)
    beside[places] = np.concatenate([_array(tap) for tap in taps], -1)
    return np.concatenate([embeddings, beside], -1)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """A copy as numpy has it."""
    return tensor.detach().numpy().copy()
