"""Traces of HyperVL checkpoints (`hvlc.results.trace_points`)."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from hvlc.chat.reference import rendered
from hvlc.errors import UserError
from hvlc.models.hypervl.configuration import BRANCHES
from hvlc.models.hypervl.numbers import HyperVLNumbers
from hvlc.models.hypervl.processing import cap_scale
from hvlc.models.loading import loading
from hvlc.models.tracing import LanguageTracer
from hvlc.results import trace_points
from hvlc.results.trace_points import Layout, Question, Values


class HyperVLTracer(LanguageTracer):
    """Takes traces of a HyperVL; see `LanguageTracer`."""

    numbers = HyperVLNumbers

    @cached_property
    def layout(self) -> Layout:
        """Widths and numbers of layers, as configured."""
        with loading(self.directory):
            config = AutoConfig.from_pretrained(self.directory)
        towers = {name: config.vision_config(name) for name in BRANCHES}
        text = config.text_config
        vision = {name: (tower.hidden_size, tower.num_hidden_layers) for name, tower in towers.items()}
        return Layout(vision, text.num_hidden_layers, text.hidden_size, text.vocab_size)

    @cached_property
    def model(self) -> Any:
        """The model, loaded when it is first needed."""
        with loading(self.directory):
            return AutoModelForImageTextToText.from_pretrained(self.directory, dtype=torch.float32).eval()

    @cached_property
    def processor(self) -> Any:
        """Images and prompts."""
        with loading(self.directory):
            return AutoProcessor.from_pretrained(self.directory)

    @cached_property
    def tokenizer(self) -> Any:
        """The processor's."""
        return self.processor.tokenizer

    @torch.no_grad()
    def trace(self, question: Question) -> Values:
        """The values of all stages, in the order in which they run.

        Raises:
            UserError: the checkpoint has no such encoder.
        """
        if question.images and question.encoder not in BRANCHES:
            cause = f"the checkpoint has no encoder {question.encoder!r}"
            raise UserError("request.encoder", cause, f"use {', '.join(BRANCHES)}")
        images = [Image.fromarray(image) for image in question.images]
        scales = self._scales(images, vrc=question.vrc)
        inputs = dict(self.processor(images=images or None, text=self._text(question), scales=scales or None))
        ids = inputs.pop("input_ids")
        inputs.pop("attention_mask")
        inputs |= {"branch": question.encoder} if images else {}
        answer = self._answer(ids, inputs, question)
        found = {
            trace_points.TOKENIZATION: ids[0].numpy(),
            trace_points.SAMPLING: trace_points.before_placeholder(answer, self.model.config.image_token_id),
            trace_points.ANSWER: answer,
        }
        model = self.model.model
        modules = {trace_points.EMBEDDING: model.get_input_embeddings()}
        if images:
            found[trace_points.RESOLUTION] = self._used(images, scales)
            found[trace_points.PREPROCESSING] = inputs["pixel_values"].numpy()
            modules |= _vision_modules(model.branches[question.encoder])
        values, output = self._run(found, modules, model.language_model, inputs)
        if images:
            values[trace_points.STITCHING] = output.image_features.numpy()
        return trace_points.in_order(values)

    def _text(self, question: Question) -> str:
        content = [{"type": "image"}] * len(question.images) + [{"type": "text", "text": question.prompt}]
        message = {"role": "user", "content": content if question.images else question.prompt}
        text = rendered(self.directory, [message])
        if text is None:
            cause = f"{self.directory} has no chat template to show an image with"
            raise UserError("checkpoint.template", cause, "save the processor with its template")
        return text

    def _scales(self, images: list[Image.Image], *, vrc: bool) -> list[float]:
        if not vrc or not images:
            return [1.0] * len(images)
        scales: list[float] = self.model.predict_scale(**self.processor.image_processor.proxies(images)).tolist()
        return scales

    def _used(self, images: list[Image.Image], scales: list[float]) -> np.ndarray:
        """float32 `[images]`: the scales after the bound of visual tokens."""
        cut = self.processor.image_processor
        pairs = zip(images, scales, strict=True)
        used = [cap_scale(i.height, i.width, scale, cut.cell_size, cut.max_visual_tokens) for i, scale in pairs]
        return np.array(used, np.float32)


def _vision_modules(branch: Any) -> dict[str, Any]:
    tower = branch.tower
    return {
        trace_points.VISION_EMBEDDINGS: tower.embeddings,
        **{trace_points.vision_layer(i): layer for i, layer in enumerate(tower.encoder.layers)},
        trace_points.POST_NORM: tower.post_layernorm,
        trace_points.PROJECTOR: branch.projector,
    }
