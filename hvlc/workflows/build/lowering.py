"""A planned bundle lowered to what a target runs: quantized, fixed in its shapes, placed."""

from dataclasses import replace
from pathlib import Path

from hvlc.errors import UserError
from hvlc.graphs.bundle import Bundle, Role
from hvlc.graphs.facts import Kind
from hvlc.graphs.placement import Placement
from hvlc.package.staged import padding_token
from hvlc.passes.lists import Sizes, static_passes
from hvlc.passes.order import PassList
from hvlc.targets import Target
from hvlc.workflows.build.limits import check_fixed


def fix_for(bundle: Bundle, done: PassList, target: Target, context: int | None, tokenizer: Path) -> None:
    """Place every component; for a target of static shapes, fix every dimension first, and cut the decoder into parts.

    Args:
        bundle: with quantized weights; no pass changes it after.
        done: the passes that quantized it.
        target: what the graphs are for.
        context: tokens that the KV cache has room for; None: as many as target and checkpoint allow.
        tokenizer: directory of its files.

    Raises:
        UserError: the context holds no chunk of the prompt or is longer than the checkpoint's, or it was given and
            nothing is fixed, or the tokenizer cannot be read.
        TargetError: a layer alone is too large for a part, or a graph exceeds the target's limits.
    """
    if context is not None and bundle.facts.kind is Kind.VISION:
        raise UserError("build.context", "a vision tower has no KV cache", "leave --context out")
    if context is not None and not target.fixes(Role.DECODER):
        cause = f"the KV cache of {target.name} grows with the sequence"
        raise UserError("build.context", cause, "leave --context out, or choose a target of fixed shapes")
    if target.fixed_shapes:
        image, sizes = bundle.facts.image, _decoder_sizes(bundle, target, context, tokenizer)
        static_passes(done, target, sizes, image.rule if image else None).run(bundle)
    _place(bundle, target)
    if target.fixed_shapes:
        check_fixed(bundle, target)


def _decoder_sizes(bundle: Bundle, target: Target, context: int | None, tokenizer: Path) -> Sizes | None:
    """Sizes of the decoder, also in the bundle's facts; None where no decoder gets static shapes."""
    facts = bundle.facts
    if facts.text is None or not target.fixes(Role.DECODER):
        return None
    room = static_context(facts.text.context_length, target, context)
    bundle.facts = replace(facts, text=replace(facts.text, context_length=room))
    return Sizes(room, padding_token(tokenizer, bundle.facts))


def _place(bundle: Bundle, target: Target) -> None:
    """Say of every component where it runs and why, and what its session is told."""
    for component in bundle.components.values():
        if target.leaves_to_cpu(component.role):
            component.placement, component.reason = Placement.CPU, target.why_cpu(component.role)
        else:
            component.placement, component.provider = target.placement, target.provider


def static_context(longest: int, target: Target, asked: int | None) -> int:
    """Tokens that a KV cache of fixed shapes has room for: whole chunks, because the last one is padded.

    Args:
        longest: context of the checkpoint.
        target: has a chunk, and a default.
        asked: by the user, if at all.

    Raises:
        UserError: that is longer than the checkpoint's, or shorter than a chunk.
    """
    chunk = target.prompt_chunk
    wanted = min(longest, target.context or longest) if asked is None else asked
    if wanted > longest:
        cause = f"a context of {wanted} tokens is longer than the checkpoint's {longest}"
        raise UserError("build.context", cause, f"ask for {longest} at most")
    if wanted < chunk:
        cause = f"a context of {wanted} tokens holds no chunk of {chunk} tokens of the prompt"
        raise UserError("build.context", cause, f"ask for {chunk} or more, or choose a target with shorter chunks")
    return wanted // chunk * chunk
