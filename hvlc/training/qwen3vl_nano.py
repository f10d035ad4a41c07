"""The recipe of `qwen3vl-nano`: Qwen3-VL with DeepStack, started from `hypervl-nano`, reads and answers.

What it starts from differs in three places: Qwen's tower sees a whole image with rotary positions, not tiles; the
decoder's positions have a row and a column, and no token ends a row; and a tap of the tower is added in the
decoder's first layer. All three begin so that they change as little as can be.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration
from hvlc.training import attention, qwen3vl_card
from hvlc.training import tokenizer as tokens
from hvlc.training.answering import HYPERVL, IGNORED, Answers, Batch, Chat, Diet, answer_logits, batches
from hvlc.training.optimizing import Optimizer
from hvlc.training.qwen3vl_pages import page, read_pages, shrunk
from hvlc.training.reading import Page, ReadingHead, random_scale, reading_loss
from hvlc.training.recipe import Recipe
from hvlc.training.trainer import Loss, train_answering
from hvlc.zoo import nano_checkpoint
from hvlc.zoo.documents import Document
from hvlc.zoo.editions import NARROW, Edition

#: Minutes of each stage on one core (Intel Xeon with AVX-512).
MINUTES = {"read": 9.0, "answer": 40.0}

#: Share of the answering stage in which the tower only looks on.
FROZEN = 0.2

#: Side of a patch in pixels, of the squares of patches that merge, and of the table of positions.
PATCH, MERGE, TABLE = 8, 2, 16

#: Layers of the tower whose output the decoder's first layers take as well.
TAPS = (1,)

#: Inner width of every MLP: what it starts from has more, of which the largest are kept.
INNER = 320


@dataclass(frozen=True)
class Sizes:
    """Sizes of a batch.

    Attributes:
        patches: in the reading stage.
        tokens: documents times padded length in the answering stage.
        documents: most documents there.
        pool: documents that are sorted by length at a time.
    """

    patches: int = 3000
    tokens: int = 1800
    documents: int = 14
    pool: int = 96


BATCH = Sizes()


def nano_config() -> Qwen3VLConfig:
    """A tower of four layers of 192 and a decoder of four, with the vocabulary of `hypervl-nano`."""
    end = tokens.special_token_id(tokens.END_OF_TEXT)
    text = {
        "vocab_size": tokens.VOCABULARY_SIZE,
        "hidden_size": 192,
        "intermediate_size": INNER,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5]},
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "pad_token_id": end,
        "eos_token_id": tokens.special_token_id(tokens.END_OF_TURN),
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": INNER,
        "depth": 4,
        "num_heads": 3,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": 192,
        "num_position_embeddings": TABLE**2,
        "deepstack_visual_indexes": list(TAPS),
        "hidden_act": "gelu_pytorch_tanh",
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokens.special_token_id(tokens.IMAGE),
        video_token_id=tokens.special_token_id(tokens.ROW),  # which no prompt of images has
        vision_start_token_id=tokens.special_token_id(tokens.VISION_START),
        vision_end_token_id=tokens.special_token_id(tokens.VISION_END),
        tie_word_embeddings=True,
    )


def nano_image_processor() -> Qwen2VLImageProcessorPil:
    """Native grids of 16 to 1,024 visual tokens."""
    cell = (PATCH * MERGE) ** 2
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": 16 * cell, "longest_edge": 1024 * cell},
        patch_size=PATCH,
        merge_size=MERGE,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def nano_chat() -> Chat:
    """The chat template's tokens around a question and an answer."""
    start = [tokens.special_token_id(t) for t in (tokens.USER, tokens.VISION_START)]
    image, end = tokens.special_token_id(tokens.IMAGE), tokens.special_token_id(tokens.VISION_END)
    return Chat(
        prefix=lambda grid: [*start, *[image] * (grid[0] * grid[1]), end],
        turn=HYPERVL.turn,
        end=HYPERVL.end,
        padding=HYPERVL.padding,
    )


@torch.no_grad()
def start(model: Qwen3VLForConditionalGeneration, teacher: HyperVLForConditionalGeneration) -> None:
    """Take over the large branch and the language model of a HyperVL.

    The connector's first layer is wider here: what is more begins without effect, and so does the tap. MLPs are
    narrower: the inner channels with the largest weights are kept.
    """
    branch, visual = teacher.model.branches["large"], model.model.visual
    embeddings, patches = branch.tower.embeddings, visual.patch_embed.proj
    frames = patches.weight.shape[2]
    patches.weight.copy_(embeddings.patch_embedding.weight[:, :, None].expand(-1, -1, frames, -1, -1) / frames)
    patches.bias.copy_(embeddings.patch_embedding.bias)
    visual.pos_embed.weight.copy_(embeddings.position_embedding.weight)
    for block, layer in zip(visual.blocks, branch.tower.encoder.layers, strict=True):
        _start_block(block, layer)
    visual.merger.norm.load_state_dict(branch.tower.post_layernorm.state_dict())
    _widen(visual.merger, branch.projector)
    for tap in visual.deepstack_merger_list:
        tap.linear_fc2.weight.zero_()
        tap.linear_fc2.bias.zero_()
    state = teacher.model.language_model.state_dict()
    for number in range(model.config.text_config.num_hidden_layers):
        gate, up, down = (f"layers.{number}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        kept = _largest(state[gate].norm(dim=1) * state[up].norm(dim=1) * state[down].norm(dim=0))
        state |= {gate: state[gate][kept], up: state[up][kept], down: state[down][:, kept]}
    model.model.language_model.load_state_dict(state)


def _start_block(block: nn.Module, layer: nn.Module) -> None:
    block.norm1.load_state_dict(layer.layer_norm1.state_dict())
    block.norm2.load_state_dict(layer.layer_norm2.state_dict())
    for name in ("weight", "bias"):
        joined = torch.cat([getattr(layer.self_attn.get_submodule(f"{part}_proj"), name) for part in "qkv"])
        getattr(block.attn.qkv, name).copy_(joined)
    block.attn.proj.load_state_dict(layer.self_attn.out_proj.state_dict())
    first, second = layer.mlp.fc1, layer.mlp.fc2
    kept = _largest(first.weight.norm(dim=1) * second.weight.norm(dim=0))
    block.mlp.linear_fc1.weight.copy_(first.weight[kept])
    block.mlp.linear_fc1.bias.copy_(first.bias[kept])
    block.mlp.linear_fc2.weight.copy_(second.weight[:, kept])
    block.mlp.linear_fc2.bias.copy_(second.bias)


def _largest(sizes: torch.Tensor) -> torch.Tensor:
    """Indices of the `INNER` largest, in order."""
    return sizes.topk(INNER).indices.sort().values


def _widen(merger: nn.Module, projector: nn.Module) -> None:
    """Put a projector into a merger whose inner width is larger; both have two linears and a GELU between them."""
    first, second = merger.linear_fc1, merger.linear_fc2
    inner = projector.linear_1.weight.shape[0]
    second.weight.zero_()
    first.weight[:inner].copy_(projector.linear_1.weight)
    first.bias[:inner].copy_(projector.linear_1.bias)
    second.weight[:, :inner].copy_(projector.linear_2.weight)
    second.bias.copy_(projector.linear_2.bias)


def grids_of(batch: Batch) -> torch.Tensor:
    """int64 `[documents, 3]`: frames, rows and columns of patches, as the tower takes them."""
    return torch.cat([torch.ones_like(batch.grids[:, :1]), batch.grids * MERGE], 1)


def positions_of(batch: Batch) -> torch.Tensor:
    """int64 `[3, documents, length]`: a visual token has a row and a column; every segment goes on after the prefix."""
    found = batch.position_ids[None].repeat(3, 1, 1)
    for document, (rows, columns) in enumerate(batch.grids.tolist()):
        count, begin = rows * columns, 2  # the user's and the image's start stand before
        places = torch.arange(count)
        found[0, document, begin : begin + count] = begin
        found[1, document, begin : begin + count] = begin + places // columns
        found[2, document, begin : begin + count] = begin + places % columns
        found[:, document, begin + count :] += max(rows, columns) - count
    return found


def run(
    model: Qwen3VLForConditionalGeneration, batch: Batch, *, autocast: bool = True, frozen: bool = False
) -> Answers:
    """Teacher-forced forward of a packed batch; `frozen` keeps no gradient of the tower, `autocast` is bfloat16."""
    parts = model.model
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            seen = parts.visual(batch.tiles, grid_thw=grids_of(batch))
        embeds = parts.language_model.embed_tokens(batch.input_ids)
        places = batch.input_ids == model.config.image_token_id
        embeds = embeds.masked_scatter(places[..., None], seen.pooler_output.to(embeds.dtype))
        logits = answer_logits(
            _Deep(parts.language_model, places, seen.deepstack_features, positions_of(batch)),
            model.lm_head,
            embeds,
            batch,
        )
    return Answers(logits, batch.targets[batch.targets != IGNORED], seen.last_hidden_state, seen.pooler_output)


@dataclass(frozen=True)
class _Deep:
    """Language model that is given the taps and positions of a batch with whatever it is asked."""

    language: nn.Module
    places: torch.Tensor
    taps: list[torch.Tensor]
    positions: torch.Tensor

    def __call__(self, **asked: Any) -> Any:
        asked["position_ids"] = self.positions
        return self.language(**asked, visual_pos_masks=self.places, deepstack_visual_embeds=self.taps)


class Qwen3VLNano(Recipe):
    """The stages of `qwen3vl-nano`; see `Recipe` for the arguments."""

    MINUTES = MINUTES
    EDITIONS: ClassVar[tuple[Edition, ...]] = (NARROW,)

    def build(self) -> None:
        """Make the model from the shipped `hypervl-nano`; see `Recipe.build`."""
        self.config = nano_config()
        self.images = nano_image_processor()
        self.model = Qwen3VLForConditionalGeneration(self.config)
        self.head = ReadingHead(self.config.vision_config.hidden_size)
        start(self.model, HyperVLForConditionalGeneration.from_pretrained(nano_checkpoint()))
        self.model.model.visual.set_attn_implementation(attention.NAME)
        self.model.model.language_model.set_attn_implementation(attention.NAME)
        self.model.train()

    def run(self) -> None:
        """All stages in order; what is done already is loaded."""
        self.read()
        self.answer()

    def finish(self, output: Path) -> dict[str, Any]:
        """Train from the shipped `hypervl-nano`, measure, and write the checkpoint; see `Recipe.finish`."""
        self.run()
        return qwen3vl_card.write(self.model, self.images, tokens.build_nano_tokenizer(), output, self.work)

    def read(self) -> None:
        """The tower learns which character is under each patch, with its positions turned."""
        pages = read_pages(f"{self.seed} read", self.images, BATCH.patches, self.EDITIONS)
        visual = self.model.model.visual

        def loss(batch: list[Page], _: float) -> Loss:
            grids = torch.tensor([[1, MERGE * p.grid[0], MERGE * p.grid[1]] for p in batch])
            targets = torch.cat([p.targets for p in batch])
            with self.trainer.bfloat16():
                logits = self.head(visual(torch.cat([p.tiles for p in batch]), grid_thw=grids).last_hidden_state)
            right = (logits.argmax(-1) == targets)[targets > 0].float().mean()
            total = reading_loss(logits, targets)
            return total, {"loss": total.item(), "characters": right.item()}

        tower = [visual.patch_embed, visual.pos_embed, visual.blocks]
        optimizer = Optimizer(tower, 2e-3, plain=[self.head], floor=0.1)
        self.trainer.run("read", {"tower": visual, "head": self.head}, optimizer, lambda _: next(pages), loss)

    def answer(self) -> None:
        """Connector, tap and decoder learn to transcribe and to answer, then the tower with them."""
        documents = self._batches(f"{self.seed} answer")

        def forward(batch: Batch, frozen: bool) -> Answers:
            return run(self.model, batch, autocast=self.AUTOCAST, frozen=frozen)

        parts = [self.model.model.visual, self.model.model.language_model]
        modules = {"model": self.model, "head": self.head}
        train_answering(self.trainer, modules, parts, self.head, lambda _: next(documents), forward, FROZEN)

    def _batches(self, seed: str) -> Iterator[Batch]:
        def look(document: Document, rng: random.Random) -> Page:
            return page(shrunk(document, random_scale(document, rng, 0.4)), self.images)

        diet = Diet(tokens=BATCH.tokens, documents=BATCH.documents)
        return batches(seed, look, diet, nano_chat(), BATCH.pool, self.EDITIONS)
