"""Terminal tables of plans, builds, packages and single answers."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hvlc.graphs.plan import Action, Plan
from hvlc.manifest.manifest import Images, Manifest
from hvlc.manifest.policy import PolicyRule
from hvlc.results import Answered
from hvlc.results.build import BuildResult, Estimate


def named_table(rows: Mapping[str, str]) -> Table:
    """Names and what they stand for."""
    table = _table("", "")
    for name, text in rows.items():
        table.add_row(Text(name, style="bold"), Text(text))
    table.show_header = False
    return table


def plan_record(plan: Plan, estimate: Estimate) -> dict[str, Any]:
    """A plan as JSON values."""
    return {
        "recipe": plan.recipe,
        "target": plan.target,
        "activations": _activations(plan),
        "kv_cache": plan.kv_cache,
        "estimate": asdict(estimate),
        "stored_bytes": plan.stored_bytes,
        "notes": list(plan.notes),
        "assignments": [
            {
                "component": a.component,
                "weight": a.weight,
                "shape": [a.out_features, a.in_features],
                "action": a.action,
                "format": a.stored_as,
                "solver": a.solver,
                "reason": a.reason,
                "bytes": a.stored_bytes,
            }
            for a in plan.assignments
        ],
    }


def plan_table(plan: Plan, estimate: Estimate, *, each: bool = False) -> Group:
    """A plan and what performing it takes.

    Args:
        plan: every weight's fate.
        estimate: of the build.
        each: one line for every weight, instead of one for each kind of assignment in each component.
    """
    return Group(
        Text(f"plan: recipe {plan.recipe}, target {plan.target}", style="bold"),
        Text(f"activations {_activations(plan)}, KV cache {plan.kv_cache}"),
        _weights_table(plan) if each else _kinds_table(plan),
        *(Text(f"note: {note}", style="yellow") for note in plan.notes),
        Text(_expected(estimate)),
        *([Text(f"encoders: {_caps(estimate.activation_bytes)}")] if estimate.activation_bytes else []),
    )


def _activations(plan: Plan) -> str:
    """Element type that products compute in."""
    if plan.activations is not None:
        return f"static {plan.activations.type}, ranges by {plan.activations.range}"
    return "float" if plan.float_compute else "int8"


def _weights_table(plan: Plan) -> Table:
    table = _table("component", "weight", "shape", "action", "format", "MB", "why")
    for a in plan.assignments:
        shape = Text(f"{a.out_features} x {a.in_features}", no_wrap=True)
        table.add_row(
            a.component,
            Text(a.weight, overflow="fold"),
            shape,
            a.action,
            a.stored_as,
            _megabytes(a.stored_bytes),
            Text(a.reason),
        )
    return table


def _kinds_table(plan: Plan) -> Table:
    table = _table("component", "action", "format", "matrices", "weights", "MB", "why")
    groups: dict[tuple[str, Action, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for a in plan.assignments:
        totals = groups[a.component, a.action, a.stored_as, a.reason]
        totals[0] += 1
        totals[1] += a.elements
        totals[2] += a.stored_bytes
    for (component, action, format, reason), (count, elements, size) in groups.items():
        table.add_row(component, action, format, str(count), f"{elements:,}", _megabytes(size), Text(reason))
    return table


def _expected(estimate: Estimate) -> str:
    threads = f"{estimate.threads} thread{'s' if estimate.threads > 1 else ''}"
    return (
        f"expected: {_megabytes(estimate.disk_bytes)} MB on disk, {estimate.memory_bytes / 1e6:.0f} MB of memory, "
        f"about {max(1, round(estimate.seconds))} s of weights with {threads}{_calibrating(estimate)}"
    )


def _calibrating(estimate: Estimate) -> str:
    if estimate.calibration_seconds is None:
        return ""
    return f", about {max(1, round(estimate.calibration_seconds))} s of calibration before"


def build_record(result: BuildResult) -> dict[str, Any]:
    """A build as JSON values."""
    return {
        "output": str(result.output),
        "bytes": result.manifest.total_bytes,
        "bits_per_decoder_weight": result.manifest.bits_per_decoder_weight,
        "seconds": dict(result.seconds),
        "peak_memory_bytes": asdict(result.memory),
        "estimate": asdict(result.estimate),
        "notes": list(result.plan.notes),
        "journal": [
            {
                "step": e.step,
                "component": e.component,
                "changed": e.changed,
                "seconds": e.seconds,
                "skipped": [{"where": s.where, "reason": s.reason} for s in e.skipped],
            }
            for e in result.journal
        ],
    }


def build_tables(result: BuildResult) -> Group:
    """Tables of a build: the journal, the plan, the package."""
    journal = _table("step", "component", "changed", "declined", "seconds", "most common reason")
    for entry in result.journal:
        reasons = [s.reason for s in entry.skipped]
        reason = max(set(reasons), key=reasons.count) if reasons else ""
        stage = entry.step in result.seconds
        step = Text(entry.step if stage else f"  {entry.step}", style="bold" if stage else "", no_wrap=True)
        declined = str(len(reasons) or "")
        journal.add_row(step, entry.component, str(entry.changed), declined, f"{entry.seconds:.2f}", Text(reason))
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in result.seconds.items())
    size, total = _megabytes(result.manifest.total_bytes), sum(result.seconds.values())
    memory = result.memory
    summary = (
        f"{result.output}: {size} MB in {total:.1f} s ({seconds}); peak memory {memory.unshared / 1e6:.0f} MB "
        f"unshared, {memory.total / 1e6:.0f} MB with mapped files"
    )
    tried = f"packages for {result.manifest.sources.target_name}: {result.manifest.tried or 'not stated'}"
    return Group(journal, plan_table(result.plan, result.estimate), Text(summary), Text(tried, style="dim"))


def manifest_tables(manifest: Manifest, caps: Mapping[str, int]) -> Group:
    """A package: where it comes from, its components, where every byte goes.

    Args:
        manifest: of the package.
        caps: bytes of activations of its encoders over a batch of tiles, at most.
    """
    sources = manifest.sources
    facts = {
        "kind": str(manifest.kind),
        "model": sources.model_type,
        "recipe": f"{sources.recipe_name} ({sources.recipe[:16]})",
        "target": f"{sources.target_name} ({sources.target[:16]})",
        **({"tried": manifest.tried} if manifest.tried else {}),
        "checkpoint": sources.checkpoint[:16],
        **_kind_facts(manifest),
        **({"encoder memory": _caps(caps)} if caps else {}),
        "versions": ", ".join(f"{name} {version}" for name, version in sources.versions.items()),
    }
    components = _table("component", "role", "runs on", "inputs", "outputs")
    for name, entry in manifest.components.items():
        runs_on = str(entry.placement) + (f" ({entry.provider.name})" if entry.provider else "")
        components.add_row(name, entry.role, runs_on, ", ".join(entry.inputs), ", ".join(entry.outputs))
    files = _table("file", "bytes", "share")
    for name, file in sorted(manifest.files.items(), key=lambda item: -item[1].bytes):
        files.add_row(name, f"{file.bytes:,}", f"{100 * file.bytes / manifest.total_bytes:.1f} %")
    return Group(named_table(facts), components, files)


def _caps(caps: Mapping[str, int]) -> str:
    """Memory of encoders beside their weights, e.g. "base 8 MB, large 13 MB at most for activations"."""
    return f"{', '.join(f'{name} {_megabytes(cap)} MB' for name, cap in caps.items())} at most for activations"


def _pieces(images: Images) -> str:
    if images.piece is None or images.tokens_per_piece is None:
        return "one piece of any size"
    height, width = images.piece
    return f"pieces of {width} x {height} px, {images.tokens_per_piece} tokens each"


def _rule(rule: PolicyRule) -> str:
    """A rule in one line."""
    conditions = rule.model_dump(exclude={"encoder"})
    return f"{rule.encoder} where " + ", ".join(f"{name} {value}" for name, value in conditions.items())


def _kind_facts(manifest: Manifest) -> dict[str, str]:
    """Rows that only some kinds of packages have."""
    facts = {}
    if manifest.policy:
        facts["default encoder"] = manifest.policy.default
        if manifest.policy.rules:
            facts["rules for encoders"] = "; ".join(map(_rule, manifest.policy.rules))
    if manifest.images:
        facts["images"] = f"{manifest.images.rule}, {_pieces(manifest.images)}"
    if manifest.preprocessing:
        facts["images"] = f"{manifest.preprocessing.image_size} px, patches of {manifest.preprocessing.patch_size} px"
    if manifest.context_length is not None:
        trained = manifest.trained_context_length
        longer = f" of the checkpoint's {trained}" if trained != manifest.context_length else ""
        facts["context"] = f"{manifest.context_length} tokens{longer}"
        bits = manifest.bits_per_decoder_weight
        facts["decoder"] = "float32" if bits is None else f"{bits:.2f} bits per weight"
    return facts


def answer_table(answered: Answered, cap: int | None = None, taken: int | None = None) -> Table:
    """Costs of an answer: tokens, times, tiles, memory.

    Args:
        answered: the answer.
        cap: bytes that the encoder takes for activations, at most. None: not stated.
        taken: bytes of resident memory that the answer took above the opened package. None: not measured.
    """
    memory = [] if cap is None else [f"at most {_megabytes(cap)} MB stated for activations of the encoder"]
    memory += [] if taken is None else [f"{_megabytes(taken)} MB measured for the whole answer"]
    rate = (len(answered.tokens) - 1) / answered.decode_seconds if answered.decode_seconds > 0 else None
    return named_table(
        {
            "encoder": answered.encoder or "none",
            "scale": ", ".join(f"{scale:.2f}" for scale in answered.scales) or "no image",
            "tiles": _tiles(answered),
            "visual tokens": str(answered.visual_tokens),
            "prompt tokens": str(answered.prompt_tokens),
            "time to first token": f"{1000 * answered.time_to_first_token:.0f} ms",
            "tokens/s": "one token only" if rate is None else f"{rate:.0f}",
            **({"memory": ", ".join(memory)} if memory else {}),
        }
    )


def _tiles(answered: Answered) -> str:
    """Numbers of tiles: all, those that differ, those that an encoder ran over, and the share that this saved."""
    found = str(answered.tiles)
    if not answered.tiles or answered.encoded_tiles is None:
        return found
    differing = "" if answered.distinct_tiles is None else f"{answered.distinct_tiles} distinct, "
    saved = 1 - answered.encoded_tiles / answered.tiles
    return f"{found} ({differing}{answered.encoded_tiles} encoded: {100 * saved:.0f} % saved)"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column,
            justify="right"
            if column in ("changed", "declined", "matrices", "weights", "MB", "bytes", "share")
            else "left",
        )
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f}"
