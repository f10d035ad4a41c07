"""Dual Consistency Learning for a checkpoint with two encoders: the small one learns to answer as the large.

Both answer through one language model (arXiv 2512.14052). Which parameters are an encoder's own is found by asking:
those that a loss reaches through that encoder and not through the other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from hvlc.errors import UserError
from hvlc.evaluation.task import Example, Task
from hvlc.models.loaded import LoadedModel, followed
from hvlc.training.alignment import divergence
from hvlc.training.optimizing import Optimizer
from hvlc.training.stages import Reporter
from hvlc.training.trainer import Loss, Trainer

#: Teachers of the small encoder: the answers alone, or the large encoder's distributions too.
Method = Literal["ce", "dcl"]

#: Parts that learn: the small encoder, or both encoders and the language model.
Parts = Literal["small", "all"]


@dataclass(frozen=True)
class Consistency:
    """Recipe of a training.

    Attributes:
        small: name of the encoder that learns.
        large: name of the encoder that it follows. None: the small one learns alone.
        method: "dcl" or "ce".
        parts: "small" or "all".
        weight: factor on the divergence.
        temperature: of the divergence.
        rate: peak learning rate.
        minutes: of training.
        questions: of each update.
        seed: of the order.
        work: directory of the state.
    """

    small: str
    large: str | None
    method: Method
    parts: Parts
    weight: float
    temperature: float
    rate: float
    minutes: float
    questions: int
    seed: int
    work: Path


def answer_logits(model: LoadedModel, example: Example, answer: torch.Tensor, encoder: str) -> torch.Tensor:
    """Logits float `[n, vocabulary]` before each token of an answer, int64 `[n]`, teacher-forced."""
    inputs = model.inputs(example.question, example.images, [1.0] * len(example.images))
    given = followed(inputs, answer[None, :-1])
    found: torch.Tensor = model.model(**given, **model.chosen(encoder), logits_to_keep=len(answer)).logits[0]
    return found.float()


def answer_ids(model: LoadedModel, text: str) -> torch.Tensor:
    """Tokens of an answer and of its end, int64 `[n]`."""
    ids = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    end = model.model.generation_config.eos_token_id
    return torch.tensor([*ids, end[0] if isinstance(end, list) else end])


def own_parameters(model: LoadedModel, example: Example, encoder: str, others: Sequence[str]) -> list[str]:
    """Names of the parameters that a loss reaches through an encoder, and not through the others.

    Raises:
        UserError: there are none.
    """
    reached = {name: _reached(model, example, name) for name in (encoder, *others)}
    found = reached[encoder].difference(*(reached[name] for name in others))
    if not found:
        cause = f"the encoder {encoder} has no parameters of its own"
        raise UserError("dcl.encoder", cause, "give a checkpoint whose encoders differ")
    return sorted(found)


def _reached(model: LoadedModel, example: Example, encoder: str) -> set[str]:
    named = dict(model.model.named_parameters())
    answer = answer_ids(model, example.answers[0])
    loss = F.cross_entropy(answer_logits(model, example, answer, encoder), answer)
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


def train_consistency(
    model: LoadedModel, task: Task, recipe: Consistency, progress: Reporter | None = None
) -> list[str]:
    """Train a loaded model in place; interrupted, it goes on from the recipe's directory.

    Returns:
        Names of the parameters that learned.

    Raises:
        UserError: the encoder has no parameters of its own.
    """
    learning = _learning(model, task.example(0), recipe)
    for name, parameter in model.model.named_parameters():
        parameter.requires_grad_(name in set(learning))
    batches = _batches(task, recipe.questions, recipe.seed)

    def loss(batch: Sequence[Example], _: float) -> Loss:
        parts = [_loss(model, example, recipe) for example in batch]
        values = {name: sum(values[name] for _, values in parts) / len(parts) for name in parts[0][1]}
        return torch.stack([found for found, _ in parts]).mean(), values

    optimizer = Optimizer([model.model], recipe.rate, warmup=30)
    recipe.work.mkdir(parents=True, exist_ok=True)
    module: nn.Module = model.model
    trainer = Trainer(recipe.work, {"consistency": recipe.minutes}, progress)
    trainer.run("consistency", {"model": module}, optimizer, lambda _: next(batches), loss)
    return learning


def _learning(model: LoadedModel, example: Example, recipe: Consistency) -> list[str]:
    """Names of the parameters that learn.

    Raises:
        UserError: the small encoder has none of its own.
    """
    if recipe.parts == "small":
        return own_parameters(model, example, recipe.small, [n for n in model.encoders if n != recipe.small])
    reached = [_reached(model, example, name) for name in (recipe.small, recipe.large) if name]
    return sorted(set().union(*reached))


def _loss(model: LoadedModel, example: Example, recipe: Consistency) -> Loss:
    answer = answer_ids(model, example.answers[0])
    small = answer_logits(model, example, answer, recipe.small)
    total = F.cross_entropy(small, answer)
    values = {recipe.small: total.item()}
    if recipe.large is not None and (recipe.parts == "all" or recipe.method == "dcl"):
        with torch.set_grad_enabled(recipe.parts == "all"):
            large = answer_logits(model, example, answer, recipe.large)
        answered = F.cross_entropy(large, answer)
        total = total + (answered if recipe.parts == "all" else 0)
        apart = divergence(large, small, recipe.temperature)
        total = total + (recipe.weight * apart if recipe.method == "dcl" else 0)
        values |= {recipe.large: answered.item(), "divergence": apart.item()}
    return total, values


def _batches(task: Task, count: int, seed: int) -> Iterator[list[Example]]:
    """Endless batches in random order; images are loaded when their turn comes."""
    rng = random.Random(seed)
    while True:
        order = list(range(len(task)))
        rng.shuffle(order)
        for start in range(0, max(1, len(order) - count + 1), count):
            yield [task.example(index) for index in order[start : start + count]]
