"""`qwen3vl-nano`: its documents, its prompts and positions, its start from `hypervl-nano`, the stages of its recipe."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from transformers import Qwen3VLForConditionalGeneration  # noqa: E402

from hvlc.models.hypervl import HyperVLForConditionalGeneration  # noqa: E402
from hvlc.models.processors import load_processor  # noqa: E402
from hvlc.training import answering, attention, qwen3vl_card, qwen3vl_nano, qwen3vl_pages  # noqa: E402
from hvlc.training import tokenizer as tokens  # noqa: E402
from hvlc.training.measuring import answer_qwen3vl, prompt  # noqa: E402
from hvlc.zoo import nano_checkpoint  # noqa: E402
from hvlc.zoo.documents import Question, examples, render  # noqa: E402
from hvlc.zoo.editions import NARROW  # noqa: E402

IMAGES = qwen3vl_nano.nano_image_processor()
CELL = qwen3vl_nano.PATCH * qwen3vl_nano.MERGE


def _model():
    """Random weights; the taps too have an effect, unlike at the recipe's start."""
    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(qwen3vl_nano.nano_config()).eval()


def _documents():
    """Documents whose grids are higher than wide, wider than high, and smaller than they were drawn."""
    drawn = [render("train", index) for index in range(20)]
    high = next(d for d in drawn if d.image.height > d.image.width + CELL)
    wide = next(d for d in drawn if d.image.width > d.image.height + CELL)
    return [high, wide, qwen3vl_pages.shrunk(high, 0.7)]


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """The processor of a saved checkpoint, as everybody else loads it."""
    directory = tmp_path_factory.mktemp("random") / "checkpoint"
    qwen3vl_card.save_checkpoint(_model(), IMAGES, tokens.build_nano_tokenizer(), directory)
    return load_processor(directory)


def _inputs(processor, document, text):
    return processor(images=[document.image], text=text, return_tensors="pt")


def _parts(model):
    return model.model.visual, model.model.language_model


@torch.no_grad()
def test_packed_logits_equal_separate_ones(processor):
    """Rows of a packed batch are what transformers' own forward gives to each question alone."""
    model, documents = _model(), _documents()
    pages = [qwen3vl_pages.page(document, IMAGES) for document in documents]
    batch = answering.pack(pages, [answering.pairs(d) for d in documents], qwen3vl_nano.nano_chat())
    for part in _parts(model):
        part.set_attn_implementation(attention.NAME)
    packed = qwen3vl_nano.run(model, batch, autocast=False).logits
    for part in _parts(model):
        part.set_attn_implementation("sdpa")
    alone = []
    for document in documents:
        for question, answer in answering.pairs(document):
            text = prompt(processor.tokenizer, Question(question, answer)) + answer
            inputs = _inputs(processor, document, text)
            alone.append(model(**inputs).logits[0, -len(answer.encode()) - 1 :])
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_tap_reaches_the_logits():
    """DeepStack is in the packed forward: without the tap's output the logits are others."""
    model, document = _model(), _documents()[0]
    batch = answering.pack(
        [qwen3vl_pages.page(document, IMAGES)], [answering.pairs(document)], qwen3vl_nano.nano_chat()
    )
    with_tap = qwen3vl_nano.run(model, batch, autocast=False).logits
    for tap in model.model.visual.deepstack_merger_list:
        tap.linear_fc2.weight.zero_()
        tap.linear_fc2.bias.zero_()
    assert (qwen3vl_nano.run(model, batch, autocast=False).logits - with_tap).abs().max() > 1e-3


def test_positions_and_ids_are_transformers(processor):
    """Prompt ids are the processor's, positions those of get_rope_index, for grids of every shape."""
    model, chat = _model(), qwen3vl_nano.nano_chat()
    for document in _documents():
        question = document.questions[0]
        seen = qwen3vl_pages.page(document, IMAGES)
        batch = answering.pack([seen], [[(question.text, question.answer)]], chat, length_multiple=1)
        inputs = _inputs(processor, document, prompt(processor.tokenizer, question) + question.answer)
        torch.testing.assert_close(batch.input_ids, inputs["input_ids"])
        wanted, _ = model.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
        )
        torch.testing.assert_close(qwen3vl_nano.positions_of(batch), wanted)
        torch.testing.assert_close(qwen3vl_nano.grids_of(batch), inputs["image_grid_thw"])


def test_page_targets_lie_on_ink():
    """Marked patches have more contrast than blank ones: the order of targets is the tower's order of patches."""
    for document in _documents():
        seen = qwen3vl_pages.page(document, IMAGES)
        assert len(seen.targets) == len(seen.tiles) == seen.grid[0] * seen.grid[1] * qwen3vl_nano.MERGE**2
        contrast, marked = seen.tiles.std(1), (seen.targets > 0).any(-1)
        assert contrast[marked].mean() > 2 * contrast[~marked].mean()


def test_a_shrunk_document_keeps_its_characters_in_place():
    document = render("train", 3)
    assert qwen3vl_pages.shrunk(document, 1.0) is document
    small = qwen3vl_pages.shrunk(document, 0.5)
    assert small.image.size == tuple(side // 2 for side in document.image.size)
    for before, after in zip(document.glyphs, small.glyphs, strict=True):
        assert after.char == before.char
        assert after.x0 / small.image.width == pytest.approx(before.x0 / document.image.width)
        assert after.y1 / small.image.height == pytest.approx(before.y1 / document.image.height)


def test_pages_to_read_are_drawn_from_the_seed_within_a_budget():
    first, second = (next(qwen3vl_pages.read_pages("seed", IMAGES, 900, (NARROW,))) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one.tiles, other.tiles)
        torch.testing.assert_close(one.targets, other.targets)
    assert sum(len(page.tiles) for page in first[:-1]) < 900 <= sum(len(page.tiles) for page in first)


@torch.no_grad()
def test_the_start_carries_over_what_hypervl_nano_knows():
    """The projector is the teacher's, the tap has no effect, and text goes on nearly as with the teacher."""
    teacher = HyperVLForConditionalGeneration.from_pretrained(nano_checkpoint()).eval()
    model = _model()
    ids = torch.tensor([list("\n".join(render("train", 9).lines).encode())])
    before = _divergence(teacher, model, ids)
    qwen3vl_nano.start(model, teacher)
    assert _divergence(teacher, model, ids) < 0.2 * before

    branch, visual = teacher.model.branches["large"], model.model.visual
    patches = torch.randn(12, 192)
    normed = branch.tower.post_layernorm(patches).reshape(3, -1)
    torch.testing.assert_close(visual.merger(patches), branch.projector(normed), atol=1e-4, rtol=1e-4)
    assert all((tap(patches) == 0).all() for tap in visual.deepstack_merger_list)


def _divergence(teacher, model, ids):
    wanted, found = (m(input_ids=ids).logits[0, :, :256].log_softmax(-1) for m in (teacher, model))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_every_stage_runs_moves_its_part_and_resumes(tmp_path, monkeypatch):
    """One update each; the next process finds what the one before left, and the card shows it."""
    sizes = qwen3vl_nano.Sizes(patches=300, tokens=900, documents=2, pool=4)
    monkeypatch.setattr(qwen3vl_nano, "BATCH", sizes)
    monkeypatch.setattr(qwen3vl_nano, "FROZEN", 0.0)
    minutes = dict.fromkeys(qwen3vl_nano.MINUTES, 1e-4)
    recipe = qwen3vl_nano.Qwen3VLNano(tmp_path, minutes=minutes)
    before = {name: p.detach().clone() for name, p in recipe.model.named_parameters()}
    recipe.run()
    moved = {name for name, p in recipe.model.named_parameters() if not torch.equal(p, before[name])}
    for part in ("visual.blocks", "visual.merger", "visual.deepstack_merger_list", "language_model"):
        assert any(part in name for name in moved), part

    again = qwen3vl_nano.Qwen3VLNano(tmp_path, minutes=minutes)
    again.run()
    for name, parameter in again.model.named_parameters():
        torch.testing.assert_close(parameter, recipe.model.get_parameter(name), msg=name)

    output = tmp_path / "checkpoint"
    record = qwen3vl_card.write(again.model, IMAGES, tokens.build_nano_tokenizer(), output, tmp_path, count=2)
    assert [stage["name"] for stage in record["stages"]] == ["read", "answer"]
    assert f"{again.model.num_parameters() / 1e6:.2f} million" in (output / "README.md").read_text()
    assert json.loads((output / "config.json").read_text())["architectures"] == ["Qwen3VLForConditionalGeneration"]
    stored = Qwen3VLForConditionalGeneration.from_pretrained(output)
    assert stored.dtype == torch.float16
    document, question = next(examples("heldout", 1))
    said, seen = answer_qwen3vl(stored.float().eval(), load_processor(output), document, question)
    assert isinstance(said, str)
    grid = qwen3vl_pages.page(document, IMAGES).grid
    assert seen == grid[0] * grid[1]


def test_train_refuses_an_output_that_exists(tmp_path):
    with pytest.raises(FileExistsError, match="exists"):
        qwen3vl_nano.Qwen3VLNano.train(tmp_path, tmp_path / "work")
