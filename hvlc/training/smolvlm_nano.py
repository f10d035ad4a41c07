"""The recipe of `smolvlm-nano`: start from `hypervl-nano`, read tiles, transcribe and answer.

Every stage is a file `<work>/<stage>.pt`, as in `hvlc.training.nano`: a stage that is done is not run again, a stage
that was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration
from hvlc.models.hypervl.processing import HyperVLProcessor
from hvlc.models.smolvlm import SmolVLMImageTextProcessor
from hvlc.training import attention, smolvlm_card, warm_start
from hvlc.training import smolvlm_tokenizer as tokens
from hvlc.training.answering import IGNORED, Answers, Batch, Chat, Diet, answer_logits, batches
from hvlc.training.reading import Page, ReadingHead
from hvlc.training.recipe import Recipe
from hvlc.training.smolvlm_pages import page, read_tiles
from hvlc.training.trainer import train_answering, train_reading
from hvlc.zoo import nano_checkpoint
from hvlc.zoo.documents import Document

#: Minutes of each stage on one thread that was given about 0.6 of a core (Intel Xeon, AVX512).
MINUTES = {"read": 7.0, "answer": 76.0}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a batch of one worker.

    Attributes:
        tiles: in the reading stage.
        tokens: documents times padded length in the answering stage.
        documents: at most, there.
        pool: documents that are sorted by length at a time.
        fitted: tiles over which the connector is fitted.
    """

    tiles: int = 48
    tokens: int = 3600
    documents: int = 14
    pool: int = 96
    fitted: int = 384


BATCH = Sizes()

#: Share of the answering stage in which the tower, which reads already, only looks on.
FROZEN = 0.35

#: Side of a tile, and the longest side that every image is given: two tiles.
TILE, LONGEST = 64, 128

#: Whether products are computed in bfloat16. On an Intel Xeon with AVX512-BF16 and one thread that took a third longer
#: than float32 (2.13): 7.9 against 10.5 documents per second of processor time.
AUTOCAST = False


def nano_config() -> SmolVLMConfig:
    """A tower of four layers, a decoder of four: 2.7 million parameters, the widths of `hypervl-nano`."""
    end_of_text = tokens.special_token_id(tokens.END_OF_TEXT)
    text = LlamaConfig(
        vocab_size=tokens.VOCABULARY_SIZE,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=end_of_text,
        pad_token_id=end_of_text,
        eos_token_id=tokens.special_token_id(tokens.END),
    )
    vision = SmolVLMVisionConfig(
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=TILE,
        patch_size=8,
        hidden_act="gelu_pytorch_tanh",
    )
    return SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=tokens.special_token_id(tokens.IMAGE),
        tie_word_embeddings=True,
    )


def nano_image_processor() -> SmolVLMImageProcessorPil:
    """Tiles of `TILE` pixels of an image whose longest side is made `LONGEST`, by LANCZOS."""
    return SmolVLMImageProcessorPil(size={"longest_edge": LONGEST}, max_image_size={"longest_edge": TILE})


def nano_processor(config: SmolVLMConfig, images: SmolVLMImageProcessorPil) -> SmolVLMImageTextProcessor:
    """The processor that belongs to `config`."""
    tokenizer = tokens.build_smolvlm_tokenizer()
    return SmolVLMImageTextProcessor(images, tokenizer, image_tokens(config), tokens.CHAT_TEMPLATE)


def image_tokens(config: SmolVLMConfig) -> int:
    """Visual tokens of a tile."""
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    return int(side**2)


def nano_chat(config: SmolVLMConfig) -> Chat:
    """The chat template's tokens around a question and an answer."""
    tokenizer = tokens.build_smolvlm_tokenizer()

    @cache
    def prefix(grid: tuple[int, int]) -> tuple[int, ...]:
        image = get_image_prompt_string(*grid, image_tokens(config), tokens.FAKE, tokens.IMAGE, tokens.OVERVIEW)
        return tuple(tokenizer(f"{tokens.START}User:{image}").input_ids)

    return Chat(
        prefix=lambda grid: list(prefix(grid)),
        turn=tuple(tokenizer(f"{tokens.END}\nAssistant:").input_ids),
        end=tokens.special_token_id(tokens.END),
        padding=tokens.special_token_id(tokens.END_OF_TEXT),
    )


def run(
    model: SmolVLMForConditionalGeneration, batch: Batch, *, autocast: bool = True, frozen: bool = False
) -> Answers:
    """Teacher-forced forward of a packed batch; `frozen` keeps no gradient of the tower, `autocast` is bfloat16."""
    parts = model.model
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            patches = parts.vision_model(batch.tiles).last_hidden_state
        visual = parts.connector(patches)
        embeds = parts.text_model.embed_tokens(batch.input_ids)
        places = (batch.input_ids == model.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(places, visual.to(embeds.dtype))
        logits = answer_logits(parts.text_model, model.lm_head, embeds, batch)
    return Answers(logits, batch.targets[batch.targets != IGNORED], patches, visual)


class SmolVLMNano(Recipe):
    """The stages of `smolvlm-nano`; see `Recipe` for the arguments."""

    MINUTES = MINUTES
    AUTOCAST = AUTOCAST

    def build(self) -> None:
        """Make the model from the shipped `hypervl-nano`; see `Recipe.build`."""
        self.config = nano_config()
        self.images = nano_image_processor()
        self.chat = nano_chat(self.config)
        self.model = SmolVLMForConditionalGeneration(self.config)
        self.head = ReadingHead(self.config.vision_config.hidden_size)
        self._start()
        self.model.model.vision_model.set_attn_implementation(attention.NAME)
        self.model.model.text_model.set_attn_implementation(attention.NAME)
        self.model.train()

    def run(self) -> None:
        """All stages in order; what is done already is loaded."""
        self.read()
        self.answer()

    def finish(self, output: Path) -> dict[str, Any]:
        """Train from the shipped `hypervl-nano`, measure, and write the checkpoint; see `Recipe.finish`."""
        self.run()
        return smolvlm_card.write(self.model, self.processor, output, self.work)

    @property
    def processor(self) -> SmolVLMImageTextProcessor:
        """The processor that belongs to the model."""
        return nano_processor(self.config, self.images)

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.config.vision_config.patch_size)

    def _start(self) -> None:
        teacher = HyperVLForConditionalGeneration.from_pretrained(nano_checkpoint()).eval()
        processor = HyperVLProcessor.from_pretrained(nano_checkpoint())
        warm_start.start_tower(self.model, teacher)
        warm_start.start_decoder(self.model, teacher, processor)
        tiles, _ = next(read_tiles(f"{self.seed} fit", self.images, self.patch, BATCH.fitted))
        warm_start.fit_connector(self.model, teacher, tiles)

    def read(self) -> None:
        """The tower learns which character is under each patch of SmolVLM's tiles."""
        tiles = read_tiles(f"{self.seed} read", self.images, self.patch, BATCH.tiles)
        train_reading(self.trainer, "read", self.model.model.vision_model, self.head, tiles, rate=2e-3)

    def answer(self) -> None:
        """Connector and decoder learn to transcribe and to answer, then the tower with them."""
        documents = self._batches(f"{self.seed} answer")

        def forward(batch: Batch, frozen: bool) -> Answers:
            return run(self.model, batch, autocast=AUTOCAST, frozen=frozen)

        parts = [self.model.model.vision_model, self.model.model.connector, self.model.model.text_model]
        modules = {"model": self.model, "head": self.head}
        train_answering(self.trainer, modules, parts, self.head, lambda _: next(documents), forward, FROZEN)

    def _batches(self, seed: str) -> Iterator[Batch]:
        def look(document: Document, _: random.Random) -> Page:
            return page(document, self.images, self.patch)

        return batches(seed, look, Diet(tokens=BATCH.tokens, documents=BATCH.documents), self.chat, BATCH.pool)
