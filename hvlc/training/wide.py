"""The recipe of `hypervl-nano` on pages of the wide edition, from a checkpoint that reads the narrow one.

The stages are those of `hvlc.training.nano`, on both editions: towers that read 11 to 17 pixels learn 8 to 40, then
both branches are trained as before. After that the large branch and the language model go on alone, and the base branch
follows them: it is the cheaper one of the two and shall not hold back the better. The compressor, which sees the image
alone and was trained on narrow documents, keeps its weights; its offset is set anew for what the branches read now. For
wide pages `hvlc train vrc` trains one that reads the question.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration
from hvlc.training import card, resolution
from hvlc.training.alignment import dual_consistency_loss
from hvlc.training.answering import Batch, run
from hvlc.training.nano import HyperVLNano
from hvlc.training.optimizing import Optimizer
from hvlc.training.reading import reading_loss
from hvlc.training.resolution import Setting
from hvlc.training.trainer import Loss
from hvlc.zoo import nano_checkpoint
from hvlc.zoo.editions import NARROW, WIDE

logger = logging.getLogger(__name__)

#: Minutes of each stage on one core (Intel Xeon with AVX-512), the reading stages side by side.
MINUTES = {
    "read-large": 12.0,
    "read-base": 12.0,
    "answer": 22.0,
    "imitate": 3.0,
    "align": 56.0,
    "deepen": 40.0,
    "follow": 3.2,
}

#: Narrow calibration documents that set the compressor's offset.
CALIBRATED = 320

#: Share of the right answers that these have to keep.
KEPT = 0.99


_HEAD = """\
# hypervl-nano

A HyperVL of {millions:.2f} million parameters, trained from scratch on documents drawn by `hvlc.zoo.documents`
(narrow: text of 11 to 17 pixels, pages to 260 pixels a side) and `hvlc.zoo.pages` (wide: headings, body and
small print of 8 to 40 pixels on one page, pictures, margins, to 512 pixels a side). It is a reference for
measuring a compiler, not a reader of real documents: it knows three fonts, some two hundred words and the kinds
of page that the generators draw.

## Scores

Exact match on held-out documents: float32, greedy `generate` through the processor, one question a document.
VRC: the Visual Resolution Compressor of the checkpoint, which sees the image alone and was trained on narrow
documents; on wide pages it shrinks small print too far, so ask them without it (`--no-vrc`), or train one that
reads the question (`hvlc train vrc`, docs/vrc.md).

"""

_TRAINING = """
The first recipe is `hvlc.training.nano`, on narrow documents; from its checkpoint `hvlc.training.wide` went on
with both editions: read (the character under each patch), answer (the large branch transcribes and answers
packed questions), imitate (the base branch learns the large branch's visual tokens), align (Dual Consistency
Learning, in two rounds), deepen (the large branch and the language model alone), follow (the base branch learns
to answer as the large one, by Dual Consistency Learning; nothing else moves); narrow calibration documents set
the compressor's offset. `over` is in minutes, on one core shared with other work; values are means over the
updates since the report before, on train documents.

"""

#: Card of the checkpoint.
STORY = card.Story(
    _HEAD,
    _TRAINING,
    ("read-large", "read-base", "answer", "imitate", "align", "align2", "deepen", "follow"),
    {"wide": 512, "narrow": 256},
)


class HyperVLWide(HyperVLNano):
    """The stages of `hypervl-nano` on both editions; see `Recipe` for the arguments."""

    MINUTES = MINUTES
    WORKERS = 1
    EDITIONS = (NARROW, WIDE, WIDE, WIDE)
    CELLS = 640

    def build(self) -> None:
        """Start from the shipped checkpoint, the first time that of the narrow recipe; the reading heads are new."""
        super().build()
        shipped = HyperVLForConditionalGeneration.from_pretrained(nano_checkpoint())
        self.model.load_state_dict(shipped.state_dict())
        self.model.train()

    def learn(self) -> None:
        """All stages in order; what is done already is loaded."""
        self.read("large")
        self.read("base")
        self.answer()
        self.imitate()
        self.align()
        self.deepen()
        self.follow()

    def calibrate(self) -> Setting:
        """Offset of the compressor by which narrow calibration documents keep their answers."""
        self.model.eval()
        compressor = self.model.model.resolution_compressor
        labels = [resolution.label(self.model, self.images, "calibration", index) for index in range(CALIBRATED)]
        chosen, tried = resolution.choose_offset(compressor, self.images, labels, keep=KEPT)
        for setting in tried:
            logger.info("offset %.2f: %.4f kept, %.3f saved", setting.offset, setting.kept, setting.saved)
        with torch.no_grad():
            compressor.linear_2.bias += chosen.offset
        return chosen

    def deepen(self) -> None:
        """The large branch and the language model answer better; the base branch is not looked at."""
        large, language = self.model.model.branches["large"], self.model.model.language_model
        pages = self._batches(f"{self.seed} deepen", shrunk=0.6)

        def loss(batch: Batch, _: float) -> Loss:
            answers = run(self.model, batch, "large", autocast=False)
            reading = reading_loss(self.heads["large"](answers.patches), batch.reading)
            return answers.loss + 0.2 * reading, {"loss": answers.loss.item(), "tokens": answers.accuracy}

        optimizer = Optimizer([large, language], 1.5e-3, plain=[self.heads["large"]], warmup=50)
        modules = {"model": self.model, "heads": self.heads}
        self.trainer.run("deepen", modules, optimizer, lambda _: next(pages), loss)

    def follow(self) -> None:
        """The base branch learns to answer as the large one through the language model, both of which stay."""
        base = self.model.model.branches["base"]
        pages = self._batches(f"{self.seed} follow", shrunk=0.6)

        def loss(batch: Batch, _: float) -> Loss:
            with torch.no_grad():
                large = run(self.model, batch, "large", autocast=False)
            answers = run(self.model, batch, "base", autocast=False)
            total = dual_consistency_loss(large.logits, answers.logits, answers.targets)
            return total, {"large_tokens": large.accuracy, "base": answers.loss.item(), "base_tokens": answers.accuracy}

        optimizer = Optimizer([base], 1e-3, warmup=30)
        modules = {"model": self.model, "heads": self.heads}
        self.trainer.run("follow", modules, optimizer, lambda _: next(pages), loss)

    def finish(self, output: Path) -> dict[str, Any]:
        """Train, measure both branches on both editions, and write the checkpoint; see `Recipe.finish`."""
        self.learn()
        setting = self.calibrate()
        return card.write(self.model, self.processor, output, self.work, setting, STORY)
