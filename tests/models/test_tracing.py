"""Traces of checkpoints hold what transformers itself reports."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from hvlc.errors import UserError
from hvlc.export.references import checkpoint_tracer
from hvlc.models.tracing import LanguageTracer
from hvlc.results import trace_points
from hvlc.results.trace_points import Question
from tests.export.tiny_families import TEXT, save_text
from tests.helpers.tiny import picture
from tests.helpers.tiny_vision_language import overview_processor, ratio_processor, save_overview, save_ratio
from tests.weights.prequantized.tiny_quantized import save_grouped


@pytest.mark.parametrize("family", TEXT)
@torch.no_grad()
def test_layers_of_a_decoder_are_transformers_hidden_states(family: str, tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "checkpoint", family)
    tracer = LanguageTracer(checkpoint)
    values = tracer.trace(Question("What?", max_new_tokens=4))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = torch.from_numpy(trace_points.read_ids(values))[None]
    expected = model(ids, output_hidden_states=True)
    layers = tracer.layout.decoder
    for index, state in enumerate(expected.hidden_states[1:-1]):  # the last one is after the norm
        np.testing.assert_array_equal(values[trace_points.decoder_layer(index)], state[0].numpy())
    norm = model.model.embedding_norm if family == "lfm2" else model.model.norm
    normed = norm(torch.from_numpy(values[trace_points.decoder_layer(layers - 1)]))
    np.testing.assert_allclose(normed.numpy(), expected.hidden_states[-1][0].numpy(), atol=1e-6)
    np.testing.assert_allclose(values[trace_points.HEAD], expected.logits[0].numpy(), atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What?"}], add_generation_prompt=True)
    assert values[trace_points.TOKENIZATION].tolist() == list(prompt["input_ids"])
    assert len(values[trace_points.SAMPLING]) <= 4


@torch.no_grad()
def test_a_hypervl_is_heard_from_the_pixels_to_the_answer(tiny_checkpoint: Path) -> None:
    image = picture(40, 70)
    question = Question("What is it?", (np.asarray(image),), encoder="base", max_new_tokens=3)
    values = checkpoint_tracer(tiny_checkpoint).trace(question)
    assert list(values) == list(trace_points.in_order(values))
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    scales = model.predict_scale(**processor.image_processor.proxies([image])).tolist()
    np.testing.assert_allclose(values[trace_points.RESOLUTION], scales)
    inputs = processor(images=[image], text="<|image_pad|>", scales=scales)
    np.testing.assert_array_equal(values[trace_points.PREPROCESSING], inputs["pixel_values"].numpy())
    features = model.model.get_image_features(inputs["pixel_values"], inputs["image_grids"], "base")
    np.testing.assert_allclose(values[trace_points.STITCHING], features.numpy(), atol=1e-6)
    seen = trace_points.read_ids(values) == model.config.image_token_id
    np.testing.assert_array_equal(values[trace_points.MERGE][seen], values[trace_points.STITCHING])
    np.testing.assert_array_equal(values[trace_points.MERGE][~seen], values[trace_points.EMBEDDING][~seen])
    assert values[trace_points.vision_layer(1)].shape == values[trace_points.VISION_EMBEDDINGS].shape


def test_a_quantized_checkpoint_is_no_reference(tmp_path: Path) -> None:
    save_grouped(tmp_path / "checkpoint", {"quant_method": "gptq", "bits": 4, "group_size": 32})
    with pytest.raises(UserError) as error:
        LanguageTracer(tmp_path / "checkpoint")
    assert error.value.code == "bisect.reference"


def test_a_text_decoder_takes_no_image(tmp_path: Path) -> None:
    tracer = LanguageTracer(save_text(tmp_path / "checkpoint", "llama"))
    with pytest.raises(UserError) as error:
        tracer.trace(Question("What?", (np.zeros((4, 4, 3), np.uint8),)))
    assert error.value.code == "request.image"


def test_an_encoder_that_is_not_there_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError) as error:
        checkpoint_tracer(tiny_checkpoint).trace(Question("What?", (np.zeros((4, 4, 3), np.uint8),), encoder="huge"))
    assert error.value.code == "request.encoder"


@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
@torch.no_grad()
def test_a_public_model_is_traced_from_the_pixels_to_the_answer(family: str, tmp_path: Path) -> None:
    checkpoint = save_overview(tmp_path / "checkpoint", family)
    images = [picture(40, 70), picture(30, 20)]
    question = Question("What is it?", tuple(np.asarray(image) for image in images), max_new_tokens=3)
    values = checkpoint_tracer(checkpoint).trace(question)
    assert list(values) == list(trace_points.in_order(values))
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    pixels = overview_processor(checkpoint)(images=images, text="<image><image>", return_tensors="pt")["pixel_values"]
    np.testing.assert_array_equal(values[trace_points.PREPROCESSING], pixels[0].numpy())
    features = model.model.get_image_features(pixels)
    normed = features.last_hidden_state.numpy()
    np.testing.assert_array_equal(values[trace_points.POST_NORM], normed)
    np.testing.assert_array_equal(values[trace_points.STITCHING], torch.cat(features.pooler_output).numpy())
    projected = values[trace_points.PROJECTOR]
    np.testing.assert_array_equal(projected.reshape(-1, projected.shape[-1]), values[trace_points.STITCHING])
    np.testing.assert_array_equal(values[trace_points.RESOLUTION], [1, 1])
    ids = torch.from_numpy(trace_points.read_ids(values))[None]
    logits = model(input_ids=ids, pixel_values=pixels).logits[0, trace_points.head_start(values) :]
    np.testing.assert_allclose(values[trace_points.HEAD], logits.numpy(), atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"vision": {"use_mean_pooling": False}}, {"family": "qianfan_ocr"}])
@torch.no_grad()
def test_a_tower_with_a_class_token_is_traced_with_it(settings: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = save_ratio(tmp_path / "checkpoint", **settings)
    images = [picture(40, 70), picture(30, 20)]
    question = Question("What is it?", tuple(np.asarray(image) for image in images), max_new_tokens=3)
    values = checkpoint_tracer(checkpoint).trace(question)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    placeholder = "<image>" if settings.get("family") else "<IMG_CONTEXT>"
    pixels = ratio_processor(checkpoint)(images=images, text=placeholder * 2, return_tensors="pt")["pixel_values"]
    np.testing.assert_array_equal(values[trace_points.PREPROCESSING], pixels.numpy())
    tower = model.model.vision_tower(pixels).last_hidden_state.numpy()
    has_norm = settings.get("vision") is not None
    assert (trace_points.POST_NORM in values) == has_norm
    last = trace_points.POST_NORM if has_norm else trace_points.vision_layer(2)
    np.testing.assert_array_equal(values[last], tower)
    projected = values[trace_points.PROJECTOR]
    np.testing.assert_array_equal(projected.reshape(-1, projected.shape[-1]), values[trace_points.STITCHING])
