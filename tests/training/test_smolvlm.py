"""`smolvlm-nano`: its documents, its prompts, its start from `hypervl-nano`, and the stages of its recipe."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import AutoTokenizer, SmolVLMForConditionalGeneration  # noqa: E402

from hvlc.models.hypervl import HyperVLForConditionalGeneration, HyperVLProcessor  # noqa: E402
from hvlc.models.smolvlm import load_processor, save_processor  # noqa: E402
from hvlc.training import answering, attention, smolvlm_card, smolvlm_nano, smolvlm_pages, warm_start  # noqa: E402
from hvlc.training import smolvlm_tokenizer as tokens  # noqa: E402
from hvlc.training.measuring import answer_smolvlm, prompt  # noqa: E402
from hvlc.zoo import nano_checkpoint  # noqa: E402
from hvlc.zoo.documents import Question, examples, render, render_sheet  # noqa: E402

CONFIG = smolvlm_nano.nano_config()
IMAGES = smolvlm_nano.nano_image_processor()
PROCESSOR = smolvlm_nano.nano_processor(CONFIG, IMAGES)


def _model():
    torch.manual_seed(0)
    return SmolVLMForConditionalGeneration(smolvlm_nano.nano_config()).eval()


def _documents_by_grid():
    """A document for every way in which documents are cut."""
    found = {}
    for index in range(40):
        document = render("train", index)
        found.setdefault(smolvlm_pages.page(document, IMAGES, 8).grid, document)
    return found


def test_documents_are_split_in_several_ways():
    assert {(2, 2), (1, 2), (2, 1)} <= set(_documents_by_grid())


@torch.no_grad()
def test_packed_logits_equal_separate_ones():
    """Rows of a packed batch are what transformers' own forward gives to each question alone."""
    model, chat = _model(), smolvlm_nano.nano_chat(CONFIG)
    documents = list(_documents_by_grid().values())
    pages = [smolvlm_pages.page(document, IMAGES, 8) for document in documents]
    batch = answering.pack(pages, [answering.pairs(d) for d in documents], chat)
    for part in (model.model.vision_model, model.model.text_model):
        part.set_attn_implementation(attention.NAME)
    packed = smolvlm_nano.run(model, batch, autocast=False).logits
    for part in (model.model.vision_model, model.model.text_model):
        part.set_attn_implementation("sdpa")
    alone = []
    for document in documents:
        for question, answer in answering.pairs(document):
            text = prompt(PROCESSOR.tokenizer, Question(question, answer)) + answer
            inputs = PROCESSOR(images=[document.image], text=text, return_tensors="pt")
            alone.append(model(**inputs).logits[0, -len(answer) - 1 :])
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_page_targets_lie_on_ink():
    for grid, document in _documents_by_grid().items():
        seen = smolvlm_pages.page(document, IMAGES, 8)
        assert seen.targets.shape == (np.prod(grid) + 1, 64, 2)
        assert (seen.targets[-1] == answering.IGNORED).all()  # the overview
        patches = torch.nn.functional.unfold(seen.tiles[:-1], 8, stride=8).std(1)
        marked = (seen.targets[:-1] > 0).any(-1)
        assert patches[marked].mean() > 2 * patches[~marked].mean()


def test_a_part_keeps_its_pixels_and_moves_its_characters():
    sheet = render_sheet("train", 3)
    part = smolvlm_pages.random_part(sheet, random.Random(1))
    width, height = part.image.size
    assert max(width, height) <= smolvlm_pages.PARTS[1]
    assert part.glyphs
    for glyph in part.glyphs:
        assert glyph.x0 < width
        assert glyph.y0 < height
        assert min(glyph.x1, glyph.y1) > 0
    whole = smolvlm_pages.part(sheet, (0, 0, *sheet.image.size))
    assert whole.glyphs == sheet.glyphs
    assert whole.image.tobytes() == sheet.image.tobytes()
    moved = smolvlm_pages.part(sheet, (3, 5, *sheet.image.size))
    assert (moved.glyphs[-1].x0, moved.glyphs[-1].y0) == (sheet.glyphs[-1].x0 - 3, sheet.glyphs[-1].y0 - 5)


def test_tiles_are_drawn_from_the_seed():
    first, second = (next(smolvlm_pages.read_tiles("seed", IMAGES, 8, 6)) for _ in range(2))
    assert first[0].shape == (6, 3, 64, 64)
    torch.testing.assert_close(first, second)
    assert (first[1] >= 0).all()


def test_tokenizer_has_the_tokens_that_the_processor_names(tmp_path):
    tokenizer = tokens.build_smolvlm_tokenizer()
    assert len(tokenizer) == tokens.VOCABULARY_SIZE == CONFIG.text_config.vocab_size
    tokenizer.save_pretrained(tmp_path)
    for found in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert (found.image_token, found.image_token_id) == ("<image>", CONFIG.image_token_id)
        assert found.eos_token == found.end_of_utterance_token == "<end_of_utterance>"
        named = (found.fake_image_token, found.global_image_token, found.video_token)
        assert named == ("<fake_token_around_image>", "<global-img>", "<video>")
        assert found("é\n\n<row_6_col_6>").input_ids == [*"é\n\n".encode(), tokens.special_token_id("<row_6_col_6>")]


def test_chat_template():
    content = [{"type": "image"}, {"type": "text", "text": "Total?"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "7.50"},
        {"role": "user", "content": "Tax?"},
    ]
    text = PROCESSOR.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>User:<image>Total?<end_of_utterance>\nAssistant:7.50<end_of_utterance>\n"
        "User:Tax?<end_of_utterance>\nAssistant:"
    )


def test_saved_processor_gives_the_same_inputs(tmp_path):
    save_processor(PROCESSOR, tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    assert settings["processor_class"] == "SmolVLMProcessor"
    assert settings["image_processor"]["image_processor_type"] == "SmolVLMImageProcessor"
    assert settings["video_processor"]["video_processor_type"] == "SmolVLMVideoProcessor"
    document = render("train", 1)
    text = prompt(PROCESSOR.tokenizer, document.questions[0])
    ours, theirs = (
        p(images=[document.image], text=text, return_tensors="pt") for p in (PROCESSOR, load_processor(tmp_path))
    )
    torch.testing.assert_close(dict(ours), dict(theirs))


@torch.no_grad()
def test_the_start_carries_over_what_hypervl_nano_sees():
    """On tiles as large as its own, the tower is the teacher's; the connector explains most of the projector."""
    teacher = HyperVLForConditionalGeneration.from_pretrained(nano_checkpoint()).eval()
    config = smolvlm_nano.nano_config()
    config.vision_config.image_size = teacher.config.large_vision_config.image_size
    model = SmolVLMForConditionalGeneration(config).eval()
    warm_start.start_tower(model, teacher)
    tiles = torch.rand(2, 3, 128, 128) * 2 - 1
    expected = teacher.model.branches["large"].tower(tiles).last_hidden_state
    torch.testing.assert_close(model.model.vision_model(tiles).last_hidden_state, expected, atol=1e-4, rtol=1e-4)

    small = _model()
    warm_start.start_tower(small, teacher)
    fitted, _ = next(smolvlm_pages.read_tiles("fit", IMAGES, 8, 96))
    assert warm_start.fit_connector(small, teacher, fitted) < 0.2


@torch.no_grad()
def test_the_started_decoder_predicts_text_nearly_as_the_teacher(monkeypatch):
    """Bytes after bytes: folding the norms at their mean leaves most of what the decoder knows of words."""
    monkeypatch.setattr(warm_start, "DOCUMENTS", 6)
    teacher = HyperVLForConditionalGeneration.from_pretrained(nano_checkpoint()).eval()
    model = _model()
    ids = torch.tensor([list("\n".join(render("train", 9).lines).encode())])
    before = _divergence(teacher, model, ids)
    warm_start.start_decoder(model, teacher, HyperVLProcessor.from_pretrained(nano_checkpoint()))
    assert _divergence(teacher, model, ids) < 0.2 * before


def _divergence(teacher, model, ids):
    wanted, found = (m(input_ids=ids).logits[0, :, :256].log_softmax(-1) for m in (teacher, model))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_every_stage_runs_moves_its_part_and_resumes(tmp_path, monkeypatch):
    """One update each; the next process finds what the one before left."""
    sizes = smolvlm_nano.Sizes(tiles=4, tokens=900, documents=2, pool=4, fitted=32)
    monkeypatch.setattr(smolvlm_nano, "BATCH", sizes)
    monkeypatch.setattr(smolvlm_nano, "FROZEN", 0.0)
    monkeypatch.setattr(warm_start, "DOCUMENTS", 1)
    minutes = dict.fromkeys(smolvlm_nano.MINUTES, 1e-4)
    recipe = smolvlm_nano.SmolVLMNano(tmp_path, minutes=minutes)
    before = {name: p.detach().clone() for name, p in recipe.model.named_parameters()}
    recipe.run()
    moved = {name for name, p in recipe.model.named_parameters() if not torch.equal(p, before[name])}
    for part in ("vision_model", "connector", "text_model"):
        assert any(part in name for name in moved)

    again = smolvlm_nano.SmolVLMNano(tmp_path, minutes=minutes)
    again.run()
    for name, parameter in again.model.named_parameters():
        torch.testing.assert_close(parameter, recipe.model.get_parameter(name), msg=name)

    output = tmp_path / "checkpoint"
    record = smolvlm_card.write(again.model, again.processor, output, tmp_path, count=2)
    assert record["scores"][0]["visual_tokens"] in (48.0, 64.0, 80.0)
    assert [stage["name"] for stage in record["stages"]] == ["read", "answer"]
    assert f"{again.model.num_parameters() / 1e6:.2f} million" in (output / "README.md").read_text()
    stored = SmolVLMForConditionalGeneration.from_pretrained(output)
    assert stored.dtype == torch.float16
    asked = next(examples("heldout", 1))
    said, seen = answer_smolvlm(stored.float().eval(), load_processor(output), *asked)
    assert isinstance(said, str)
    assert seen in (48, 80)


def test_train_refuses_an_output_that_exists(tmp_path):
    with pytest.raises(FileExistsError, match="exists"):
        smolvlm_nano.SmolVLMNano.train(tmp_path, tmp_path / "work")
