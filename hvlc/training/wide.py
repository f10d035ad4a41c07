"""The recipe of `hypervl-nano` on pages of the wide edition, from a checkpoint that reads the narrow one.

The stages are those of `hvlc.training.nano`, on both editions: towers that read 11 to 17 pixels learn 8 to 40, then
both branches are trained as before. The compressor is left as it is: `hvlc train vrc` trains it, as anybody's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration
from hvlc.training import card
from hvlc.training.nano import HyperVLNano
from hvlc.training.resolution import Setting
from hvlc.zoo import nano_checkpoint
from hvlc.zoo.editions import NARROW, WIDE

#: Minutes of each stage on one core (Intel Xeon with AVX-512), the reading stages side by side.
MINUTES = {"read-large": 12.0, "read-base": 12.0, "answer": 22.0, "imitate": 3.0, "align": 26.0}


class HyperVLWide(HyperVLNano):
    """The stages of `hypervl-nano` on both editions; see `Recipe` for the arguments."""

    MINUTES = MINUTES
    WORKERS = 1
    EDITIONS = (NARROW, WIDE, WIDE, WIDE)
    CELLS = 640

    def build(self) -> None:
        """Start from the shipped checkpoint; the reading heads are new."""
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

    def finish(self, output: Path) -> dict[str, Any]:
        """Train, measure both branches, and write the checkpoint; see `Recipe.finish`."""
        self.learn()
        return card.write(self.model, self.processor, output, self.work, Setting(0.0, 1.0, 0.0))
