"""Coverage of a checkpoint: its stated architecture and all of its tensors, compared with what was exported.

A model that is almost the exported one loses something without a word: a classifier its scores, a value model its
head. So an architecture of another task is refused, and so is every tensor that no graph reads, but for kinds that
are known to change nothing; those are noted in the plan.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from hvlc.errors import UserError
from hvlc.graphs.bundle import Bundle
from hvlc.graphs.facts import Kind
from hvlc.weights.checkpoint import Checkpoint, StoredTensor
from hvlc.weights.lazy import expression_of

#: Ends of the names of transformers' classes for a kind's task, whatever the family.
_SUFFIXES = {
    Kind.LANGUAGE: "ForCausalLM",
    Kind.VISION: "Model",
    Kind.VISION_LANGUAGE: "ForConditionalGeneration",
}

_HARMLESS_MASK = "a mask, which follows from the positions"
_MASK = r"(.*\.)?(self_attn|attn|attention)\.(bias|mask)"  # as GPT-2's class names it; of bits alone

#: Tensors that change no number, and why.
_HARMLESS = {
    r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)": "rotary tables, which follow from the configuration",
    r"(.*\.)?rope_freqs\.weight": "rotary tables, which follow from the configuration",
    r"(.*\.)?position_ids": "the numbers from 0 on",
    r"(.*\.)?(masked_bias|causal_mask)": _HARMLESS_MASK,
    r"(.*\.)?num_batches_tracked": "a counter of training",
    r".*\.self_attn\.[qkv]_scale": "scales of a KV cache in 8 bits, which a recipe chooses anew",
}
_HEAD, _TABLE = "lm_head.weight", "embed_tokens.weight"
_JUDGED = ("bias", "g_idx")  # biases of zeros (`refuse_surplus`), and channels in the order of their groups
_NAMED = 3


def check_architecture(checkpoint: Checkpoint, kind: Kind) -> None:
    """Refuse a checkpoint whose class in transformers does another task than the exported one.

    Raises:
        UserError: `architectures` names one, or is not a list of names.
    """
    named: Any = checkpoint.config.get("architectures")
    if named is None:
        return
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        cause = f"config.json: architectures is {named!r:.80}, expected is a list of class names"
        raise UserError("checkpoint.config", cause, "correct config.json")
    others = [name for name in named if not name.endswith(_SUFFIXES[kind])]
    if others:
        cause = f"config.json: the architecture is {others[0][:80]}, exported is what ends in {_SUFFIXES[kind]}"
        fix = "choose a checkpoint for this task; its parts for another one would be lost"
        raise UserError("checkpoint.architecture", cause, fix)


def check_coverage(checkpoint: Checkpoint, bundle: Bundle, left_out: Iterable[str] = ()) -> None:
    """Refuse tensors that no graph reads; harmless ones become notes of the checkpoint.

    Args:
        checkpoint: all of its tensors.
        bundle: just exported.
        left_out: what names begin with that the family leaves out.

    Raises:
        UserError: tensors are left over.
    """
    read = set(_read(bundle))
    unread = {name: tensor for name, tensor in checkpoint.tensors.items() if tensor.name not in read}
    unread = {name: tensor for name, tensor in unread.items() if not _judged(name, read)}
    reasons = {name: _reason(name, tensor, checkpoint, tuple(left_out)) for name, tensor in unread.items()}
    for reason in dict.fromkeys(filter(None, reasons.values())):
        names = [name for name, found in reasons.items() if found == reason]
        checkpoint.notes.append(f"{_listed(names)} {'is' if len(names) == 1 else 'are'} not read: {reason}")
    lost = [name for name, reason in reasons.items() if not reason]
    if lost:
        cause = f"the checkpoint stores {_listed(lost)}, which no graph reads"
        fix = "choose the checkpoint of the architecture that config.json names, or save it without them"
        raise UserError("checkpoint.unread", cause, fix)


def _read(bundle: Bundle) -> Iterator[str]:
    """Names of the stored tensors that the graphs of a bundle are computed from."""
    for component in bundle.components.values():
        for value in component.graph.initializers.values():
            if value.const_value is not None:
                yield from (tensor.name for tensor in expression_of(value.const_value).stored())


def _judged(name: str, read: set[str]) -> bool:
    """Whether exporting has looked at a tensor and left it out: what belongs to a matrix that is read (`_JUDGED`)."""
    module, _, leaf = name.rpartition(".")
    return leaf in _JUDGED and any(f"{module}.{weight}" in read for weight in ("weight", "qweight"))


def _reason(name: str, tensor: StoredTensor, checkpoint: Checkpoint, left_out: tuple[str, ...]) -> str:
    """Reason why a tensor need not be read; empty when it need be."""
    if left_out and name.startswith(left_out):
        return "this part of the model is left out"
    for pattern, reason in _HARMLESS.items():
        if re.fullmatch(pattern, name):
            return reason
    if tensor.dtype == np.bool_ and re.fullmatch(_MASK, name):
        return _HARMLESS_MASK
    if name.endswith((_HEAD, _TABLE)) and any(_same(tensor, t) for n, t in checkpoint.tensors.items() if n != name):
        return "a copy of a tied table"
    return ""


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tables hold the same values."""
    alike = other.name.endswith((_HEAD, _TABLE)) and (one.shape, one.dtype) == (other.shape, other.dtype)
    return alike and np.array_equal(one.read(), other.read())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name[:120] for name in names[:_NAMED]) + more
