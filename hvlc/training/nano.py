"""The recipe of `hypervl-nano`: read, transcribe and answer, agree, choose a resolution.

Every stage is a file `<work>/<stage>.pt`; a stage that is done is not run again, a stage that was
interrupted goes on. The two reading stages, and the imitation of the large branch by the base
branch, do not depend on each other and may run in two processes over one work directory.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen3Config, SiglipVisionConfig

from hvlc.models.hypervl.configuration import HyperVLConfig, HyperVLResolutionConfig
from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration, pixel_shuffle
from hvlc.models.hypervl.processing import HyperVLImageProcessor, HyperVLProcessor
from hvlc.training import attention, card, resolution
from hvlc.training import tokenizer as tokens
from hvlc.training.alignment import dual_consistency_loss
from hvlc.training.answering import Answers, Batch, Diet, batches, look_at, run
from hvlc.training.optimizing import Optimizer
from hvlc.training.reading import ReadingHead, initialize_positions, reading_loss, windows
from hvlc.training.recipe import Recipe
from hvlc.training.resolution import Setting, Tolerance
from hvlc.training.trainer import Loss, Windows, reading_of, train_answering, train_reading
from hvlc.zoo.editions import NARROW, Edition

logger = logging.getLogger(__name__)

#: Minutes of each stage on two shared cores (AMD Zen 4).
MINUTES = {
    "read-large": 24.0,
    "read-base": 20.0,
    "answer": 33.0,
    "imitate": 4.5,
    "align": 16.0,
    "size": 8.0,
    "resolution": 1.7,
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a batch of one worker.

    Attributes:
        windows: Windows in the reading stages.
        tokens: Documents times padded length in the answering stages.
        documents: Most documents there.
        proxies: Views in the compressor's stages.
        pool: Documents that are sorted by length at a time.
    """

    windows: int = 12
    tokens: int = 1800
    documents: int = 14
    proxies: int = 24
    pool: int = 96


BATCH = Sizes()

#: Share of the answering stage in which the tower, which reads already, only looks on.
FROZEN = 0.5

#: Documents that the trained model labels for the compressor, by split.
LABELLED = {"train": 1200, "calibration": 320}

#: Tolerance of what counts as equally legible, and the share of right answers the compressor has to keep on
#: calibration documents; more than the 98.7 % that is asked of held-out ones.
TOLERANCE = Tolerance()
KEEP = 0.995


def nano_config() -> HyperVLConfig:
    """Two towers of three and four layers, a language model of four: 3.8 million parameters."""
    tile = {
        "image_size": 128,
        "patch_size": 8,
        "vision_use_head": False,
        "hidden_act": "gelu_pytorch_tanh",
    }
    end_of_text = tokens.special_token_id(tokens.END_OF_TEXT)
    return HyperVLConfig(
        base_vision_config=SiglipVisionConfig(
            hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=2, **tile
        ),
        large_vision_config=SiglipVisionConfig(
            hidden_size=192, intermediate_size=384, num_hidden_layers=4, num_attention_heads=3, **tile
        ),
        text_config=Qwen3Config(
            vocab_size=tokens.VOCABULARY_SIZE,
            hidden_size=192,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            bos_token_id=end_of_text,
            pad_token_id=end_of_text,
            eos_token_id=tokens.special_token_id(tokens.END_OF_TURN),
        ),
        resolution_config=HyperVLResolutionConfig(proxy_size=160, depth_multiplier=0.25),
        image_token_id=tokens.special_token_id(tokens.IMAGE),
        row_token_id=tokens.special_token_id(tokens.ROW),
        vision_start_token_id=tokens.special_token_id(tokens.VISION_START),
        vision_end_token_id=tokens.special_token_id(tokens.VISION_END),
        max_visual_tokens=1024,
        default_branch="large",
    )


def nano_processor(config: HyperVLConfig) -> HyperVLProcessor:
    """The processor that belongs to `config`."""
    images = HyperVLImageProcessor(
        tile_size=config.tile_size,
        cell_size=config.cell_size,
        proxy_size=config.resolution_config.proxy_size,
        max_visual_tokens=config.max_visual_tokens,
    )
    return HyperVLProcessor(images, tokens.build_nano_tokenizer())


class HyperVLNano(Recipe):
    """The stages of `hypervl-nano`; see `Recipe` for the arguments."""

    MINUTES = MINUTES
    WORKERS = 2
    EDITIONS: ClassVar[tuple[Edition, ...]] = (NARROW,)
    CELLS: ClassVar[int] = 400

    def build(self) -> None:
        """Make the model and a reading head for each branch; see `Recipe.build`."""
        self.config = nano_config()
        self.processor = nano_processor(self.config)
        self.model = HyperVLForConditionalGeneration(self.config)
        self.heads = nn.ModuleDict()
        for name, branch in self.model.model.branches.items():
            initialize_positions(branch.tower)
            branch.tower.set_attn_implementation(attention.NAME)
            self.heads[name] = ReadingHead(self.config.vision_config(name).hidden_size)
        self.model.model.language_model.set_attn_implementation(attention.NAME)
        self.model.train()

    def run(self) -> Setting:
        """All stages in order; what is done already is loaded."""
        self.read("large")
        self.read("base")
        self.answer()
        self.imitate()
        self.align()
        self.size_text()
        self.label()
        return self.fit_resolution()

    def finish(self, output: Path) -> dict[str, Any]:
        """Train from scratch, measure both branches, and write the checkpoint; see `Recipe.finish`."""
        setting = self.run()
        return card.write(self.model, self.processor, output, self.work, setting)

    @property
    def images(self) -> HyperVLImageProcessor:
        """The product's image processor."""
        return self.processor.image_processor

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.config.base_vision_config.patch_size

    def read(self, branch: str) -> None:
        """A tower learns which character is under each patch."""
        tower, head = self.model.model.branches[branch].tower, self.heads[branch]
        name = f"read-{branch}"
        seed = f"{self.seed} read {branch}"
        pages = windows(seed, self.images, self.patch, BATCH.windows, editions=self.EDITIONS)
        train_reading(self.trainer, name, tower, head, pages)

    def answer(self) -> None:
        """The large branch and the language model learn to transcribe and to answer."""
        branch, language = self.model.model.branches["large"], self.model.model.language_model
        head = self.heads["large"]
        seed = f"{self.seed} answer"
        easy = self._batches(seed + " easy", shrunk=1.0, cells=64)
        full = self._batches(seed + " full", shrunk=0.6)
        rng = random.Random(seed)

        def draw(over: float) -> Batch:
            return next(easy if rng.random() > over / 0.25 else full)

        def forward(batch: Batch, frozen: bool) -> Answers:
            return run(self.model, batch, "large", frozen=frozen)

        modules = {"branch": branch, "language": language, "head": head}
        train_answering(self.trainer, modules, [branch, language], head, draw, forward, FROZEN)

    def imitate(self) -> None:
        """The base branch learns the visual tokens of the (frozen) large branch."""
        large, base = self.model.model.branches["large"], self.model.model.branches["base"]
        head = self.heads["base"]
        pages = windows(
            f"{self.seed} imitate", self.images, self.patch, BATCH.windows, sheets=0.3, editions=self.EDITIONS
        )

        def loss(batch: Windows, _: float) -> Loss:
            tiles, targets = batch
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    wanted = large(tiles)
                patches = base.tower(tiles).last_hidden_state
                visual = base.projector(pixel_shuffle(patches, base.shuffle_factor))
                reading = reading_loss(head(patches), targets)
            distance = F.mse_loss(visual.float(), wanted.float()) / wanted.float().var()
            values = {"distance": distance.item(), "reading": reading.item()}
            return distance + 0.5 * reading, values

        optimizer = Optimizer([base], 1.5e-3, plain=[head], floor=0.25)
        self.trainer.run("imitate", {"branch": base, "head": head}, optimizer, lambda _: next(pages), loss)

    def align(self) -> None:
        """Dual Consistency Learning of both branches and the language model."""
        full = self._batches(f"{self.seed} align", shrunk=0.6)

        def loss(batch: Batch, _: float) -> Loss:
            large, base = (run(self.model, batch, name) for name in ("large", "base"))
            reading = self._reading(batch, large, "large") + self._reading(batch, base, "base")
            total = dual_consistency_loss(large.logits, base.logits, base.targets) + 0.1 * reading
            return total, {
                "large": large.loss.item(),
                "base": base.loss.item(),
                "large_tokens": large.accuracy,
                "base_tokens": base.accuracy,
            }

        parts = [*self.model.model.branches.values(), self.model.model.language_model]
        optimizer = Optimizer(parts, 1e-3, plain=[self.heads], warmup=50)
        modules = {"model": self.model, "heads": self.heads}
        self.trainer.run("align", modules, optimizer, lambda _: next(full), loss)

    def size_text(self) -> None:
        """The compressor learns the size of the text, which the renderer knows."""
        proxies = resolution.size_batches(f"{self.seed} size", self.images, BATCH.proxies, self.EDITIONS)
        self._fit("size", proxies, quantile=0.5, rate=3e-3)

    def label(self, share: tuple[int, int] = (0, 1)) -> None:
        """The trained model labels train and calibration documents, saved every few documents.

        Args:
            share: This process and the number of processes that label side by side.
        """
        number, count = share
        for split, documents in LABELLED.items():
            path = self.work / f"labels-{split}-{number}of{count}.pt"
            labels = _load_labels(path)
            for index in range(number + count * len(labels), documents, count):
                labels.append(resolution.label(self.model, self.images, split, index))
                if len(labels) % 50 == 0:
                    _save_labels(path, labels)
            _save_labels(path, labels)

    def fit_resolution(self) -> Setting:
        """The compressor learns the labels of train documents; calibration documents set its offset."""
        labels = {split: self._labels(split) for split in LABELLED}
        processor = self.images
        proxies = resolution.label_batches(f"{self.seed} fit", processor, labels["train"], TOLERANCE, BATCH.proxies)
        self._fit("resolution", proxies, quantile=0.7, rate=1e-3)
        compressor = self.model.model.resolution_compressor
        chosen, tried = resolution.choose_offset(compressor, processor, labels["calibration"], keep=KEEP)
        for setting in tried:
            logger.info("offset %.2f: %.4f kept, %.3f saved", setting.offset, setting.kept, setting.saved)
        with torch.no_grad():
            compressor.linear_2.bias += chosen.offset
        return chosen

    def _labels(self, split: str) -> list[resolution.Label]:
        found = [_load_labels(path) for path in self.work.glob(f"labels-{split}-*.pt")]
        return sorted((label for part in found for label in part), key=lambda label: label.index)

    def _fit(self, name: str, proxies: Iterator[Windows], quantile: float, rate: float) -> None:
        compressor = self.model.model.resolution_compressor
        resolution.steady_statistics(compressor)
        compressor.train()

        def loss(batch: Windows, _: float) -> Loss:
            predicted = compressor(batch[0])
            error = (predicted.detach() - batch[1]).abs().mean()
            return resolution.quantile_loss(predicted, batch[1], quantile), {"error": error.item()}

        optimizer = Optimizer([compressor], rate, muon=False, warmup=50)
        self.trainer.run(name, {"compressor": compressor}, optimizer, lambda _: next(proxies), loss)

    def _batches(self, seed: str, shrunk: float, cells: int | None = None) -> Iterator[Batch]:
        diet = Diet(cells or self.CELLS, BATCH.tokens, BATCH.documents)
        look = look_at(self.images, self.patch, shrunk)
        return batches(seed, look, diet, pool=BATCH.pool, editions=self.EDITIONS)

    def _reading(self, batch: Batch, answers: Answers, branch: str) -> torch.Tensor:
        return reading_of(self.trainer, batch, answers, self.heads[branch])


def _save_labels(path: Path, labels: list[resolution.Label]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save([dataclasses.asdict(label) for label in labels], temporary)
    temporary.replace(path)


def _load_labels(path: Path) -> list[resolution.Label]:
    if not path.exists():
        return []
    return [resolution.Label(**fields) for fields in torch.load(path, weights_only=True)]
