"""Write a trained checkpoint with its model card."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration
from hvlc.models.hypervl.processing import HyperVLProcessor
from hvlc.training import stages
from hvlc.training.measuring import BranchScore, Score, measure
from hvlc.training.resolution import Setting
from hvlc.zoo.documents import SPLITS, split_digest

logger = logging.getLogger(__name__)

#: Examples that the digests in the card cover.
DIGESTED = 256


@dataclass(frozen=True)
class Story:
    """Content of a card that a recipe says.

    Attributes:
        head: what the model is, with a place for its `millions` of parameters.
        training: how it was trained.
        order: names of the stages.
        counts: held-out documents to measure on, by edition.
    """

    head: str
    training: str
    order: Sequence[str]
    counts: Mapping[str, int]


#: Stages in the order of the card.
ORDER = ("read-large", "read-base", "answer", "imitate", "align", "size", "resolution")


def save(model: Any, save_processor: Callable[[Path], None], output: Path) -> None:
    """Write weights, configuration, tokenizer and processor; the directory appears complete."""
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    save_processor(temporary)
    for path in temporary.glob("*.safetensors"):
        path.chmod(0o644)  # written for the owner alone
    if output.exists():
        shutil.rmtree(output)
    temporary.replace(output)


def scores(
    model: HyperVLForConditionalGeneration, processor: HyperVLProcessor, counts: Mapping[str, int]
) -> list[BranchScore]:
    """Both branches, with and without the compressor, on held-out documents: so many of each edition."""
    found = []
    for edition, count in counts.items():
        for branch in ("large", "base"):
            for compressed in (False, True):
                found.append(measure(model, processor, branch, compressed=compressed, count=count, edition=edition))
                logger.info("%s", found[-1])
    return found


def write(
    model: HyperVLForConditionalGeneration,
    processor: HyperVLProcessor,
    output: Path,
    work: Path,
    setting: Setting,
    story: Story | None = None,
) -> dict[str, Any]:
    """Save, load what was saved, measure it, and add `README.md` and `scores.json`.

    Args:
        model: what was trained.
        processor: belongs to it.
        output: directory of the checkpoint.
        work: where the stages left their state.
        setting: of the compressor.
        story: what else the card says. None: that of the first recipe.

    Returns:
        What `scores.json` holds.
    """
    story = story or FIRST
    save(model, processor.save_pretrained, output)
    loaded = HyperVLForConditionalGeneration.from_pretrained(output)
    found = scores(loaded, HyperVLProcessor.from_pretrained(output), story.counts)
    compressor = {"offset": setting.offset, "kept": setting.kept, "saved": setting.saved}
    record = {**measured(found, work, story.order), "compressor": compressor}
    write_record(record, render_card(record, model.num_parameters(), story), output)
    return record


def render_card(record: dict[str, Any], parameters: int, story: Story) -> str:
    """The model card of `hypervl-nano`."""
    head = story.head.format(millions=parameters / 1e6)
    return assemble(head, _score_lines(record["scores"]), story.training, record)


def measured(found: Sequence[Score], work: Path, order: Sequence[str]) -> dict[str, Any]:
    """Content of `scores.json`: scores, digests of the documents, and the stages of `order` with their curves."""
    digests = {
        split: {"text": split_digest(split, DIGESTED), "pixels": split_digest(split, DIGESTED, pixels=True)}
        for split in SPLITS
    }
    return {"scores": [score.as_dict() for score in found], "digests": digests, "stages": _stages(work, order)}


def write_record(record: dict[str, Any], text: str, output: Path) -> None:
    """Write `scores.json` and the model card."""
    (output / "scores.json").write_text(json.dumps(record, indent=1) + "\n")
    (output / "README.md").write_text(text)


def _stages(work: Path, order: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for name in order:
        path = work / f"{name}.pt"
        if path.exists():
            state = stages.load(path)
            points = state["curve"]
            last = len(points) - 1
            kept = [points[k] for k in sorted({round(last * share / 5) for share in range(6)})] if points else []
            found.append({"name": name, "minutes": state["spent"] / 60, "curve": kept})
    return found


def assemble(head: str, scores: Sequence[str], training: str, record: dict[str, Any]) -> str:
    """A model card: `head`, the table of scores, how it was trained, the stages' curves and the data's digests."""
    return "\n".join(
        [
            *head.splitlines(),
            *scores,
            "",
            "## Training",
            *training.splitlines(),
            *_curve_lines(record["stages"]),
            "",
            "## Data",
            *_DATA.format(count=DIGESTED).splitlines(),
            *_digest_lines(record["digests"]),
            "",
        ]
    )


def _score_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| documents | branch | VRC | exact match | 95 % interval | visual tokens | n |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        shown = (row.get("edition", "narrow"), row["branch"], "on" if row["compressed"] else "off")
        figures = f"{row['exact']:.1%} | {low:.1%} to {high:.1%} | {row['visual_tokens']:.1f} | {row['count']}"
        lines.append(f"| {' | '.join(shown)} | {figures} |")
    return lines


def _curve_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = ["| stage | minutes | over | updates | values |", "|---|---|---|---|---|"]
    for stage in found:
        for point in stage["curve"]:
            values = {k: v for k, v in point.items() if k not in ("seconds", "updates")}
            told = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
            over = point["seconds"] / 60
            lines.append(f"| {stage['name']} | {stage['minutes']:.1f} | {over:.1f} | {point['updates']} | {told} |")
    return lines


def _digest_lines(digests: dict[str, dict[str, str]]) -> list[str]:
    lines = ["| split | text | pixels |", "|---|---|---|"]
    for split, found in digests.items():
        lines.append(f"| {split} | `{found['text'][:16]}` | `{found['pixels'][:16]}` |")
    return lines


_HEAD = """\
# hypervl-nano

A HyperVL of {millions:.2f} million parameters, trained from scratch on documents drawn by
`hvlc.zoo.documents`. It is a reference for measuring a compiler, not a reader of real documents:
it knows three fonts at 11 to 17 pixels, some two hundred words and the four kinds of page that the generator draws.

## Scores

Exact match on held-out documents: float32, greedy `generate` through the processor, one question a
document. VRC: the Visual Resolution Compressor chooses the scale.

"""

_TRAINING = """
The recipe is `hvlc.training.nano` (`hvlc train nano`): read (the character under each patch), answer
(the large branch transcribes and answers packed questions), imitate (the base branch learns the
large branch's visual tokens), align (Dual Consistency Learning), then the compressor: on the size of
the text, then on labels by the trained model. `over` is in minutes, on two cores shared with other
work; values are means over the updates since the report before, on train documents.

"""

#: The recipe of `hvlc.training.nano`.
FIRST = Story(_HEAD, _TRAINING, ORDER, {"narrow": 256})

_DATA = """
Train documents were drawn at random indices below 2^40, calibration and held-out documents from
index 0 on; no two splits share a seed. SHA-256 of the first {count} examples of each split (16
digits; all of them in `scores.json`). Pixels depend on the versions of Pillow and matplotlib.

"""
