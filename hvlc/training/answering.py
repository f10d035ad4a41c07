"""Packed sequences: one image, then its transcription and all of its questions side by side.

The visual prefix is most of a sequence. Every question of a document is appended to the same
prefix with a mask that hides the other questions, and with positions that restart after the
prefix, so that each segment is computed exactly as if it were alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration, pixel_shuffle
from hvlc.models.hypervl.processing import HyperVLImageProcessor
from hvlc.training import tokenizer as tokens
from hvlc.training.reading import Page, one_of, page, random_scale
from hvlc.zoo.documents import Document
from hvlc.zoo.editions import NARROW, Edition

#: Question that asks the model to write down all text.
TRANSCRIBE = "Read."

Sample = tuple[Page, list[tuple[str, str]]]

#: Pixels per em below which a text is not asked for once its document is shrunk.
LEGIBLE = 8.5

#: Positions without a target.
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Padded sequences over one visual prefix each.

    Attributes:
        tiles: float32 `[tiles, 3, T, T]` of all documents in order.
        reading: int64 `[tiles, patches, points]`, the dense targets.
        grids: int64 `[documents, 2]`, rows and columns of cells.
        input_ids: int64 `[documents, length]`.
        position_ids: int64 `[documents, length]`, restarting after the prefix for each segment.
        segments: int64 `[documents, length]`, 0 for the prefix, 1.. for segments, -1 for padding.
        targets: int64 `[documents, length]`, the next token where a segment answers, else `IGNORED`.
    """

    tiles: torch.Tensor
    reading: torch.Tensor
    grids: torch.Tensor
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Chat:
    """Token ids by which a checkpoint's chat spells an image, a question and an answer.

    Attributes:
        prefix: The prompt up to and including the image, by the image's grid.
        turn: What stands between a question and its answer.
        end: Ends an answer.
        padding: Fills sequences up.
    """

    prefix: Callable[[tuple[int, int]], list[int]]
    turn: tuple[int, ...]
    end: int
    padding: int


def visual_prefix(grid: tuple[int, int]) -> list[int]:
    """Token ids up to and including the end of the image, as HyperVL's processor expands them."""
    rows, columns = grid
    image, row = tokens.special_token_id(tokens.IMAGE), tokens.special_token_id(tokens.ROW)
    start = [tokens.special_token_id(t) for t in (tokens.USER, tokens.VISION_START)]
    return [*start, *([image] * columns + [row]) * rows, tokens.special_token_id(tokens.VISION_END)]


#: The chat of HyperVL's reference checkpoint.
HYPERVL = Chat(
    prefix=visual_prefix,
    turn=(tokens.special_token_id(tokens.END_OF_TURN), tokens.special_token_id(tokens.ASSISTANT)),
    end=tokens.special_token_id(tokens.END_OF_TURN),
    padding=tokens.special_token_id(tokens.END_OF_TEXT),
)


def segment(question: str, answer: str, chat: Chat = HYPERVL) -> tuple[list[int], list[int]]:
    """Token ids of a question with its answer, and the target at each position; a token is a byte."""
    asked = [*question.encode(), *chat.turn]
    answered = [*answer.encode(), chat.end]
    ids = asked + answered[:-1]
    return ids, [IGNORED] * (len(asked) - 1) + answered


def pack(
    pages: Sequence[Page],
    segments: Sequence[Sequence[tuple[str, str]]],
    chat: Chat = HYPERVL,
    length_multiple: int = 16,
) -> Batch:
    """Join documents with their (question, answer) pairs into one batch."""
    rows = [_pack_row(p.grid, pairs, chat) for p, pairs in zip(pages, segments, strict=True)]
    longest = max(len(ids) for ids, *_ in rows)
    length = -(-longest // length_multiple) * length_multiple
    fills = (chat.padding, 0, -1, IGNORED)
    columns = [torch.tensor([row[k] + [fill] * (length - len(row[k])) for row in rows]) for k, fill in enumerate(fills)]
    return Batch(
        torch.cat([p.tiles for p in pages]),
        torch.cat([p.targets for p in pages]),
        torch.tensor([p.grid for p in pages]),
        *columns,
    )


def _pack_row(
    grid: tuple[int, int], pairs: Sequence[tuple[str, str]], chat: Chat
) -> tuple[list[int], list[int], list[int], list[int]]:
    ids = chat.prefix(grid)
    prefix = len(ids)
    positions, numbers, targets = list(range(prefix)), [0] * prefix, [IGNORED] * prefix
    for number, (question, answer) in enumerate(pairs, start=1):
        own, wanted = segment(question, answer, chat)
        ids, targets = ids + own, targets + wanted
        positions += range(prefix, prefix + len(own))
        numbers += [number] * len(own)
    return ids, positions, numbers, targets


def attention_mask(segments: torch.Tensor) -> torch.Tensor:
    """Additive mask float32 `[documents, 1, length, length]`: the prefix and the own segment, causally."""
    length = segments.shape[1]
    own = segments[:, :, None] == segments[:, None, :]
    visible = own | (segments == 0)[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(visible.shape).masked_fill(~(visible & causal), -1e9)
    return mask[:, None]


@dataclass
class Answers:
    """Answers of the model to a batch.

    Attributes:
        logits: float32 `[targets, vocabulary]`, at the positions that have a target.
        targets: int64 `[targets]`.
        patches: float `[tiles, patches, width]`, the tower's output.
        visual: float `[tiles, cells, hidden]`, the projected tokens.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    patches: torch.Tensor
    visual: torch.Tensor

    @property
    def loss(self) -> torch.Tensor:
        """Mean cross-entropy of the answers."""
        return F.cross_entropy(self.logits, self.targets)

    @property
    def accuracy(self) -> float:
        """Share of target tokens that are the most probable ones."""
        return float((self.logits.argmax(-1) == self.targets).float().mean())


def run(
    model: HyperVLForConditionalGeneration,
    batch: Batch,
    branch: str,
    *,
    autocast: bool = True,
    frozen: bool = False,
) -> Answers:
    """Teacher-forced forward of a packed batch.

    Args:
        model: Both branches and the language model.
        batch: Documents with their questions.
        branch: "base" or "large".
        autocast: Computes in bfloat16.
        frozen: Keeps no gradient of the tower.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        part = model.model.branches[branch]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            patches = part.tower(batch.tiles).last_hidden_state
        visual = part.projector(pixel_shuffle(patches, part.shuffle_factor))
        embeds = model.model.merge(batch.input_ids, model.model.stitch(visual, batch.grids))
        logits = answer_logits(model.model.language_model, model.lm_head, embeds, batch)
    return Answers(logits, batch.targets[batch.targets != IGNORED], patches, visual)


def answer_logits(language: nn.Module, head: nn.Module, embeds: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Logits float32 `[targets, vocabulary]` of a packed batch, its tokens embedded: `[documents, length, hidden]`."""
    hidden = language(
        inputs_embeds=embeds,
        attention_mask=attention_mask(batch.segments),
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    logits: torch.Tensor = head(hidden[batch.targets != IGNORED])
    return logits.float()


def pairs(document: Document, scale: float = 1.0) -> list[tuple[str, str]]:
    """The transcription and every question of a document, as far as its text is legible at a scale."""
    sizes = document.line_sizes or (0,) * len(document.lines)
    lines = [line for line, size in zip(document.lines, sizes, strict=True) if _is_legible(size, scale)]
    asked = [(q.text, q.answer) for q in document.questions if _is_legible(q.text_size, scale)]
    return [(TRANSCRIBE, "\n".join(lines)), *asked]


def _is_legible(size: int, scale: float) -> bool:
    """Whether a text is large enough at a scale; at full size each is, and so is one whose document has one size."""
    return scale >= 1 or size == 0 or size * scale >= LEGIBLE


@dataclass(frozen=True)
class Diet:
    """Documents that a stage sees.

    Attributes:
        cells: Documents whose grid has more cells are left out.
        tokens: Bound of documents times padded length in a batch.
        documents: Most documents in a batch.
    """

    cells: int = 400
    tokens: int = 4096
    documents: int = 16


def batches(
    seed: str,
    look: Callable[[Document, random.Random], Page],
    diet: Diet,
    chat: Chat = HYPERVL,
    pool: int = 96,
    editions: Sequence[Edition] = (NARROW,),
) -> Iterator[Batch]:
    """Endless packed batches of train documents, of similar length each.

    Args:
        seed: Chooses documents, scales and the order.
        look: Makes a page of a document, at a scale of its choice.
        diet: Which documents.
        chat: How image, question and answer are spelled.
        pool: Documents that are sorted by length before they are cut into batches.
        editions: One of them is drawn from each time; one that stands here twice, twice as often.
    """
    rng = random.Random(seed)
    while True:
        samples: list[Sample] = []
        while len(samples) < pool:
            document = one_of(editions, rng).render("train", rng.getrandbits(40))
            seen = look(document, rng)
            if seen.grid[0] * seen.grid[1] <= diet.cells:
                samples.append((seen, pairs(document, seen.scale)))
        samples.sort(key=lambda s: s[0].tiles.shape[0] * 1000 + s[0].grid[0] * s[0].grid[1])
        groups = list(_groups(samples, diet, chat))
        rng.shuffle(groups)
        for group in groups:
            yield pack([p for p, _ in group], [q for _, q in group], chat)


def look_at(processor: HyperVLImageProcessor, patch: int, shrunk: float) -> Callable[[Document, random.Random], Page]:
    """Pages by HyperVL's image processor, shrunk by a random legible amount with probability `shrunk`."""
    return lambda document, rng: page(document, random_scale(document, rng, shrunk), processor, patch)


def _groups(samples: Sequence[Sample], diet: Diet, chat: Chat) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    longest = 0
    for sample in samples:
        length = len(_pack_row(sample[0].grid, sample[1], chat)[0])
        full = len(group) == diet.documents or max(longest, length) * (len(group) + 1) > diet.tokens
        if group and full:
            yield group
            group, longest = [], 0
        group.append(sample)
        longest = max(longest, length)
    if group:
        yield group
