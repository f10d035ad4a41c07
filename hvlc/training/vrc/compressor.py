"""From labels to a compressor's directory: the network, the price of an answer, and how both are measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from hvlc.errors import Progress, UserError
from hvlc.evaluation.task import Task
from hvlc.export.compressor import (
    MODEL_TYPE,
    CompressorSettings,
    QuestionSettings,
    configuration_digest,
    settings_of,
)
from hvlc.files.scratch import nameless_file
from hvlc.files.writing import make_directory, writing
from hvlc.models.hypervl.configuration import HyperVLResolutionConfig
from hvlc.models.hypervl.processing import HyperVLImageProcessor
from hvlc.training.stages import Report
from hvlc.training.vrc.fitting import Questions, choose_price, fit, held_out
from hvlc.training.vrc.labels import Label
from hvlc.training.vrc.network import CHANNELS, WINDOW, ResolutionNetwork, start
from hvlc.training.vrc.rules import Tolerance, passes_by_loss, smallest
from hvlc.weights.checkpoint import Checkpoint

_MOST_QUESTION = 48  # tokens of a question
_WIDTH = 16  # of the question's table
_DEPTH = 0.25  # of the shipped network, which a new one starts from
_MIDDLE = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Recipe:
    """Recipe of a compressor's training.

    Attributes:
        labels: rule of the labels, "equivalence" or "loss".
        reads_question: whether the network sees the question too.
        minutes: of training.
        work: directory of its state.
        seed: of the network and the order.
        floor: share of the score that must be kept on held-out questions.
        proxy_size: side in pixels of the network's view.
    """

    labels: str
    reads_question: bool
    minutes: float
    work: Path
    seed: int
    floor: float
    proxy_size: int


@dataclass(frozen=True)
class TrainedCompressor:
    """A trained network and what is said of it.

    Attributes:
        network: as it was trained.
        settings: of its directory, figures on held-out questions included.
        report: prices that were tried, and numbers of labels.
    """

    network: ResolutionNetwork
    settings: CompressorSettings
    report: Mapping[str, Any]

    def save(self, place: Path) -> None:
        """Write config.json, report.json and the weights."""
        state = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        save_file(state, place / "model.safetensors", metadata={"format": "pt"})
        (place / "model.safetensors").chmod(0o644)  # written for the owner alone
        (place / "config.json").write_text(self.settings.model_dump_json(indent=1) + "\n", "utf-8")
        (place / "report.json").write_text(json.dumps(self.report, indent=1) + "\n", "utf-8")


def train_compressor(
    checkpoint: Checkpoint,
    tasks: Mapping[str, Task],
    labels: Mapping[str, Sequence[Label]],
    recipe: Recipe,
    progress: Progress,
) -> TrainedCompressor:
    """Train on one split, choose the price of an answer on another, measure on a third.

    Args:
        checkpoint: the model that made the labels.
        tasks: questions of "train", "calibration" and "heldout".
        labels: of each question.
        recipe: how.
        progress: told of the seconds.

    Raises:
        UserError: the question is to be read, and the checkpoint has no embeddings in float.
    """
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(1)
    table = _table(checkpoint) if recipe.reads_question else None
    config = HyperVLResolutionConfig(proxy_size=recipe.proxy_size, depth_multiplier=_DEPTH)
    network = ResolutionNetwork(config, None if table is None else len(table), _WIDTH)
    start(network, table)
    questions = {split: _questions(tasks[split], labels[split], recipe) for split in tasks}

    def told(report: Report) -> None:
        progress("fit", round(60 * recipe.minutes * report.over), round(60 * recipe.minutes))

    fit(
        network,
        questions["train"],
        max_tokens=_MOST_QUESTION,
        minutes=recipe.minutes,
        work=recipe.work,
        seed=recipe.seed,
        progress=told,
    )
    price, tried = choose_price(network, questions["calibration"], _MOST_QUESTION, recipe.floor)
    found = held_out(network, questions["heldout"], _MOST_QUESTION, price)
    asked = None
    if table is not None:
        asked = QuestionSettings(
            vocabulary=len(table), width=_WIDTH, channels=CHANNELS, window=WINDOW, max_tokens=_MOST_QUESTION
        )
    settings = settings_of(
        {
            "model_type": MODEL_TYPE,
            "proxy_size": recipe.proxy_size,
            "min_scale": config.min_scale,
            "scale_step": config.scale_step,
            "mean": _MIDDLE,
            "std": _MIDDLE,
            "depth_multiplier": _DEPTH,
            "hidden_size": config.hidden_size,
            "layer_norm_eps": config.layer_norm_eps,
            "price": price,
            "question": asked,
            "made_for": configuration_digest(checkpoint),
            "labels": recipe.labels,
            "data": tasks["train"].name,
            "floor": recipe.floor,
            "accepted": found.kept >= recipe.floor,
            "held_out": found,
        }
    )
    report = {"prices": tried, "labels": {split: len(made) for split, made in labels.items()}}
    return TrainedCompressor(network, settings, report)


def _questions(task: Task, labels: Sequence[Label], recipe: Recipe) -> Questions:
    """Labels with their views and the scale that the rule chooses."""
    processor = HyperVLImageProcessor(proxy_size=recipe.proxy_size)
    side = recipe.proxy_size
    views = _room(recipe.work, (len(task), side, side, 3)).permute(0, 3, 1, 2)
    for index in range(len(task)):
        views[index] = processor.proxy(task.example(index).images[0])[0][0]
    tolerance = Tolerance()
    passes = [one.equivalent if recipe.labels == "equivalence" else passes_by_loss(one, tolerance) for one in labels]
    return Questions(labels, views, [smallest(one) for one in passes])


def _room(work: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """A float16 tensor in a file without a name: views of thousands of questions need not all be in memory."""
    make_directory(work, "train.work")
    with writing(work, "train.work"), nameless_file(work) as file:
        return torch.from_numpy(np.memmap(file, np.float16, "w+", shape=shape))


def _table(checkpoint: Checkpoint) -> torch.Tensor:
    """Embedding table of a checkpoint, float32 `[vocabulary, hidden]`.

    Raises:
        UserError: it has none that is stored in float.
    """
    names = [name for name in checkpoint.tensors if name.endswith("embed_tokens.weight")]
    if not names or checkpoint.gguf is not None:
        cause = f"{checkpoint.directory} has no embedding table in float"
        raise UserError("vrc.table", cause, "train with --image-only")
    return torch.from_numpy(checkpoint.tensors[min(names, key=len)].read().astype("float32"))
