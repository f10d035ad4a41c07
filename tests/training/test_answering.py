"""A packed question is computed as if it were alone."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration  # noqa: E402
from hvlc.training import answering, attention  # noqa: E402
from hvlc.training.nano import nano_config, nano_processor  # noqa: E402
from hvlc.training.reading import page  # noqa: E402
from hvlc.zoo.documents import render  # noqa: E402


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    config = nano_config()
    return HyperVLForConditionalGeneration(config).eval(), nano_processor(config)


@pytest.mark.parametrize("branch", ["large", "base"])
@torch.no_grad()
def test_packed_logits_equal_separate_ones(nano, branch):
    model, processor = nano
    documents = [render("train", index) for index in (5, 6)]
    pages = [page(d, 1.0, processor.image_processor, 8) for d in documents]
    batch = answering.pack(pages, [answering.pairs(d) for d in documents])

    model.model.branches[branch].tower.set_attn_implementation(attention.NAME)
    model.model.language_model.set_attn_implementation(attention.NAME)
    packed = answering.run(model, batch, branch, autocast=False).logits
    model.model.branches[branch].tower.set_attn_implementation("sdpa")
    model.model.language_model.set_attn_implementation("sdpa")

    alone = []
    for document in documents:
        for question, answer in answering.pairs(document):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            prompt = processor.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            inputs = processor(images=[document.image], text=prompt + answer)
            logits = model(**inputs, branch=branch).logits[0]
            alone.append(logits[-len(answer) - 1 :])
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_segments_see_the_prefix_and_themselves_only():
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    visible = answering.attention_mask(segments)[0, 0] == 0
    assert visible.tolist() == [
        [True, False, False, False, False, False],
        [True, True, False, False, False, False],
        [True, True, True, False, False, False],
        [True, True, True, True, False, False],
        [True, True, False, False, True, False],
        [True, True, False, False, False, True],
    ]


def test_targets_are_the_answer_and_the_end_of_the_turn():
    ids, targets = answering.segment("Total?", "7.50")
    assert bytes(ids[:6]).decode() == "Total?"
    assert ids[6:8] == [257, 259]
    assert targets[:7] == [answering.IGNORED] * 7
    assert targets[7:] == [*b"7.50", 257]
    assert len(ids) == len(targets)


def test_prefix_is_what_the_processor_makes(nano):
    _, processor = nano
    document = render("train", 3)
    seen = page(document, 0.7, processor.image_processor, 8)
    inputs = processor(
        images=[document.image], text="<|user|><|vision_start|><|image_pad|><|vision_end|>", scales=[0.7]
    )
    assert inputs["input_ids"][0].tolist() == answering.visual_prefix(seen.grid)
    torch.testing.assert_close(inputs["pixel_values"], seen.tiles)
