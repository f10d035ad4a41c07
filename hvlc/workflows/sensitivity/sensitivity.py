"""Measure how much each part of a checkpoint suffers from each format, and keep what was found."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hvlc.errors import Collector, Progress, UserError, raise_all
from hvlc.files.reading import is_directory, shown, state_of
from hvlc.files.scratch import scratch_directory, temporary_directory
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.facts import Kind
from hvlc.graphs.plan import Action, Assignment, Plan
from hvlc.package.writer import code_digest, tool_versions
from hvlc.recipes.budget import is_budgeted, uniform
from hvlc.recipes.loading import load_recipe
from hvlc.recipes.resolve import resolve
from hvlc.recipes.schema import BudgetSpec, FormatSpec, Preparation, Recipe
from hvlc.results.sensitivity import Candidate, Part, Sensitivity
from hvlc.targets import Target, load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.factors import check_stored

if TYPE_CHECKING:
    from hvlc.calibration.samples import CalibrationSet
    from hvlc.calibration.sensitivity import Damage, FloatLogits, Trial
    from hvlc.calibration.trial_cache import TrialCache
    from hvlc.passes.order import PassList
    from hvlc.workflows.calibrate.forward import ForwardPass

_STEPS = 1000  # of the progress


def cache_directory() -> Path:
    """Directory in which measurements are kept, as the XDG Base Directory Specification has it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".cache") / "hvlc" / "sensitivity"


@dataclass(frozen=True)
class SensitivityOptions:
    """Options of a measurement.

    Attributes:
        formats: of every part, one after another.
        solver: who chooses the levels.
        source: of the calibration set (`hvlc.calibration.sources`); None is the built-in one that fits the model.
        samples: of it.
        tokens: of a text sample.
        loss: compare answers; without, there are output errors alone.
        scaled: compare them for the coarsest format alone: a loss grows with the output error, each part's by a factor
            of its own (see `hvlc.results.sensitivity.Candidate.damage`), so the other formats' follow from their output
            errors. On SmolLM2-135M int8 losses found so from int4 ones, 250 times as large, are within 20 % of measured
            ones for three parts in four.
        cache: directory that keeps what was found.
        threads: of onnxruntime.
    """

    formats: tuple[FormatSpec, ...]
    solver: str = "rtn"
    source: str | None = None
    samples: int = 8
    tokens: int = 256
    loss: bool = True
    scaled: bool = False
    cache: Path | None = None
    threads: int = 1

    @classmethod
    def of(cls, budget: BudgetSpec, source: str | None, cache: Path | None, threads: int) -> "SensitivityOptions":
        """Options of a budget."""
        return cls(
            budget.formats,
            budget.solver,
            source,
            budget.samples,
            budget.tokens,
            scaled=budget.scaled,
            cache=cache,
            threads=threads,
        )


@dataclass(frozen=True)
class SensitivityInputs:
    """Inputs of a measurement.

    Attributes:
        directory: of the checkpoint, or its GGUF file.
        checkpoint: opened.
        text: directory of its tokenizer.
        recipe: that says which matrices are quantized.
        target: that takes the formats.
        target_name: name or path of it.
    """

    directory: Path
    checkpoint: Checkpoint
    text: Path
    recipe: Recipe
    target: Target
    target_name: str


@contextmanager
def opened(directory: Path, recipe: str, target: str) -> Iterator[SensitivityInputs]:
    """Open a checkpoint, a recipe and a target; what is read out of a GGUF file on the way goes in the end.

    Raises:
        UserError: something is wrong with them, all of it at once.
    """
    from hvlc.workflows.build.requirements import require_compile, text_files

    require_compile("sensitivity")
    found = Collector()
    checkpoint = rules = device = None
    with found:
        checkpoint = Checkpoint.open(directory)
    with found:
        rules = load_recipe(recipe)
    with found:
        device = load_target(target)
    checkpoint, rules, device = found.require(checkpoint), found.require(rules), found.require(device)
    with temporary_directory("sensitivity") as scratch:
        text = text_files(checkpoint, scratch)
        yield SensitivityInputs(directory, checkpoint, text, rules, device, target)


def check_results(output: Path, names: Iterable[str], *, force: bool) -> None:
    """Refuse, before any work, a directory that results cannot go into.

    Args:
        output: made later if it is not there.
        names: of the files.
        force: replace older ones.

    Raises:
        UserError: it is a file, or holds one of the files already.
    """
    if state_of(output) is not None and not is_directory(output):
        raise UserError("output.exists", f"{shown(output)} is a file", "choose another output")
    there = [shown(output / name) for name in names if state_of(output / name) is not None]
    if there and not force:
        raise UserError("output.exists", f"{', '.join(there)} exists", "choose another output or pass --force")


def measure(
    checkpoint: Checkpoint,
    text: Path,
    recipe: Recipe,
    target: Target,
    how: SensitivityOptions,
    progress: Progress = lambda *_: None,
    announce: Callable[[str], None] = lambda _: None,
) -> Sensitivity:
    """The damage of every part whose format a budget of the recipe would choose.

    Args:
        checkpoint: opened.
        text: directory of its tokenizer.
        recipe: says which matrices are quantized, and everything of their formats that is not varied.
        target: that takes the formats.
        how: to measure.
        progress: told what is done, in shares of all work.
        announce: told how long it will take, before it starts.

    Raises:
        UserError: the recipe quantizes nothing, the model does not speak, the calibration set is wrong.
        TargetError: the target does not take one of the formats.
    """
    from hvlc.calibration.sources import Model, open_set
    from hvlc.calibration.trial_cache import TrialCache
    from hvlc.passes.lists import walked_passes
    from hvlc.workflows.calibrate.calibrate import default_source

    bundle, passes = _exported(checkpoint, target, recipe.prepare)
    if bundle.facts.kind is Kind.VISION:
        cause = "a vision tower alone says nothing whose change could be measured"
        raise UserError("sensitivity.kind", cause, "name a language or vision-language model")
    plans = _plans(recipe, bundle, target, how)
    walked_passes(passes, {}).run(bundle)
    parts = _parts(bundle, recipe, plans, how)
    if not parts:
        cause = f"recipe {recipe.name} quantizes no matrix whose format could be chosen"
        raise UserError("sensitivity.parts", cause, "name a recipe with rules that quantize and are not fixed")
    sees = any(part.component.role is Role.VISION_ENCODER for part in parts)
    source = how.source or recipe.calibration.source or default_source(bundle.facts)
    model = Model(text, bundle.facts, sees)
    inputs = open_set(source, model, samples=how.samples, tokens=how.tokens, shorten=True)
    cache = TrialCache.open(how.cache or cache_directory(), _fingerprint(checkpoint, recipe, target, inputs, how))
    missing = {part: [t for t in part.trials if not cache.knows(part.key(t), loss=t.compare)] for part in parts}
    tokens = _scored_tokens(inputs) if how.loss else 0
    if any(missing.values()):
        if how.loss:
            _check_room(cache.path.parent, bundle, inputs)
        with scratch_directory(cache.path.parent, "values-") as spool:
            wanted = {part: trials for part, trials in missing.items() if trials}
            _try_all(bundle, inputs, wanted, cache, how, spool, progress, announce)
    return Sensitivity(
        checkpoint=checkpoint.digest,
        recipe=recipe.name,
        target=target.name,
        solver=how.solver,
        calibration=inputs.name,
        calibration_digest=inputs.digest,
        tokens=tokens,
        scaled=how.loss and how.scaled,
        fixed_bytes=plans[0].stored_bytes - sum(part.candidates(cache, loss=False)[0].package_bytes for part in parts),
        parts=tuple(part.record(cache, loss=how.loss) for part in parts),
    )


def _exported(checkpoint: Checkpoint, target: Target, prepare: Preparation) -> "tuple[Bundle, PassList]":
    """The float model in the basis that it is quantized in, and the passes that made it.

    Factors are left out: they follow from the formats.
    """
    from hvlc.export import export_bundle
    from hvlc.passes.lists import float_passes

    bundle = export_bundle(checkpoint)
    raise_all(checkpoint.problems)
    check_stored(bundle, prepare)
    passes = float_passes(bundle.facts, target, prepare)
    passes.run(bundle)
    return bundle, passes


def _check_room(directory: Path, bundle: Bundle, inputs: "CalibrationSet") -> None:
    """Refuse before the work when weights and answers in float32 do not fit beside the cache.

    Raises:
        UserError: too little free space.
    """
    from hvlc.workflows.calibrate.forward import weights_of
    from hvlc.workflows.calibrate.inputs import output_of

    decoder = bundle.with_role(Role.DECODER)[0]
    logits = output_of(decoder, "logits").shape
    vocabulary = int(str(logits[2])) if logits is not None else 0
    most = bundle.facts.image.max_visual_tokens if bundle.facts.image else 0
    tokens = len(inputs.images) * most + _scored_tokens(inputs)
    needed, free = 4 * (weights_of(decoder) + tokens * vocabulary), shutil.disk_usage(directory).free
    if needed > free:
        cause = f"the measurement keeps {needed / 1e6:.0f} MB in {directory}, {free / 1e6:.0f} MB are free"
        raise UserError("sensitivity.disk", cause, "name another directory with --cache, or take --no-loss")


def _plans(recipe: Recipe, bundle: Bundle, target: Target, how: SensitivityOptions) -> list[Plan]:
    """Plan of a build in which all parts have one format, for each of them."""
    from hvlc.solvers.registry import CALIBRATED, SOLVERS, solver_problems

    options = {name: solver.options for name, solver in CALIBRATED.items()}
    recipes = [uniform(recipe, format, how.solver) for format in how.formats]
    found, plans = Collector(), []
    for one in recipes:
        with found:
            plans.append(resolve(one, bundle, target, {*SOLVERS, *CALIBRATED}, options))
            found.problems += solver_problems(plans[-1])
    found.raise_all()
    return plans


@dataclass(frozen=True, eq=False)
class _Part:
    """Matrices that share an input and get one format.

    Attributes:
        component: that has them.
        trials: for each format, what is done.
        tables: for each format, the assignments of tables whose bytes may be shared with a matrix.
    """

    component: Component
    trials: tuple["Trial", ...]
    tables: tuple[tuple[Assignment, ...], ...]

    @property
    def first(self) -> str:
        """Name of its first node."""
        return self.trials[0].products[0].node

    def key(self, trial: "Trial") -> str:
        """In a cache: the part in a format."""
        nodes = "+".join(a.node for a in (*trial.products, *trial.tables))
        return f"{self.component.name}:{nodes} {trial.products[0].format}"

    def candidates(self, cache: "TrialCache", *, loss: bool) -> tuple[Candidate, ...]:
        """Candidates with the known damage of each format; what was not compared is scaled by what was."""
        compared = [cache.damages[self.key(trial)] for trial in self.trials if trial.compare]
        factor = compared[0]["loss"] / compared[0]["output_error"] if loss and compared[0]["output_error"] else 0.0
        found = []
        for trial, tables in zip(self.trials, self.tables, strict=True):
            damage = cache.damages[self.key(trial)]
            format = trial.products[0].format
            if format is None:
                raise ValueError(f"{self.first} has no format")
            found.append(
                Candidate(
                    bits=format.bits,
                    block_size=format.block_size,
                    stored_bytes=sum(a.stored_bytes for a in trial.products),
                    table_bytes=sum(a.stored_bytes for a in tables),
                    output_error=damage["output_error"],
                    loss=(damage["loss"] if trial.compare else factor * damage["output_error"]) if loss else None,
                )
            )
        return tuple(found)

    def record(self, cache: "TrialCache", *, loss: bool) -> Part:
        """The part with what is known of it."""
        products = self.trials[0].products
        return Part(
            component=self.component.name,
            role=self.component.role,
            weights=tuple(a.weight for a in products),
            elements=sum(a.elements for a in products),
            candidates=self.candidates(cache, loss=loss),
        )


def _parts(bundle: Bundle, recipe: Recipe, plans: Sequence[Plan], how: SensitivityOptions) -> list[_Part]:
    """Every group of linears that shares an input, as far as a budget chooses its format."""
    from hvlc.calibration.sensitivity import Trial
    from hvlc.graphs.linears import linear_groups

    sharing = {(a.component, a.node): a.shares for plan in plans for a in plan.assignments if a.shares}
    coarsest = min(how.formats, key=lambda format: (format.bits, -format.block_size))
    compared = [how.loss and (not how.scaled or format == coarsest) for format in how.formats]
    found = []
    for component in bundle.components.values():
        if component.role not in (Role.DECODER, Role.VISION_ENCODER):
            continue
        mine = [plan.for_component(component.name) for plan in plans]
        for group in linear_groups(component.graph):
            names = [str(n.name) for n in group.nodes]
            chosen = [n for n in names if n in mine[0] and is_budgeted(recipe, mine[0][n])]
            if not chosen:
                continue
            owned = {place for place, owner in sharing.items() if owner[0] == component.name and owner[1] in chosen}
            tables = [tuple(a for a in plan.assignments if (a.component, a.node) in owned) for plan in plans]
            trials = [
                Trial(tuple(plan[n] for n in chosen), tuple(t for t in shared if t.action is Action.TIE), compare)
                for plan, shared, compare in zip(mine, tables, compared, strict=True)
            ]
            found.append(_Part(component, tuple(trials), tuple(tables)))
    return found


def _fingerprint(
    checkpoint: Checkpoint, recipe: Recipe, target: Target, inputs: "CalibrationSet", how: SensitivityOptions
) -> dict[str, str]:
    """Digests of all that a damage depends on besides its part and format."""
    return {
        "checkpoint": checkpoint.digest,
        "preparation": recipe.prepare.model_dump_json(),
        "rules": json.dumps([rule.model_dump(mode="json") for rule in recipe.rules]),
        "target": target.model_dump_json(),
        "solver": how.solver,
        "calibration set": inputs.digest,
        "code": code_digest(),
        **tool_versions(),
    }


def _scored_tokens(inputs: "CalibrationSet") -> int:
    """Positions whose answers count: all of a text; the tokens after an image, each where it is foretold."""
    from hvlc.calibration.samples import TextSample

    total = 0
    for sample in inputs.samples:
        if isinstance(sample, TextSample):
            total += len(sample.ids)
        elif sample.prompt is not None:
            total += len(sample.prompt.after)
    return total


def _try_all(
    bundle: Bundle,
    inputs: "CalibrationSet",
    missing: Mapping[_Part, Sequence["Trial"]],
    cache: "TrialCache",
    how: SensitivityOptions,
    spool: Path,
    progress: Progress,
    announce: Callable[[str], None],
) -> None:
    """Try every part in every format that is missing, and enter what is found."""
    from hvlc.calibration.sensitivity import Probe
    from hvlc.workflows.calibrate.forward import forward_pass_of

    compares = any(trial.compare for trials in missing.values() for trial in trials)
    forward = forward_pass_of(bundle, inputs, how.threads, spool)
    progress("the float model", 0, _STEPS)
    float_logits, rate = _float_logits(forward, _scored_tokens(inputs), how.threads, spool) if compares else (None, 0.0)
    work: list[tuple[Probe, dict[str, Sequence[Trial]]]] = []
    costs: dict[tuple[str, str], list[int]] = {}
    for current in forward.components:
        trials = {part.first: tried for part, tried in missing.items() if part.component is current.component}
        compared = float_logits and float_logits.of(current.sequences)
        probe = Probe(
            current.component,
            current.feeds,
            current.output,
            current.answers,
            compared,
            how.threads,
            spool,
            forward.cache,
        )
        if trials:
            work.append((probe, trials))
            for name, cost in probe.costs(trials):
                costs[current.component.name, name] = [c and c + current.weights_after for c in cost]
    total = sum(sum(cost) for cost in costs.values())
    count = sum(len(trials) for trials in missing.values())
    announce(f"{count} trials on {len(inputs.samples)} samples{_duration(rate * total) if compares else ''}")
    owners = {id(trial): part for part, trials in missing.items() for trial in trials}
    done = tried = 0

    def found(trial: "Trial", damage: "Damage") -> None:
        nonlocal done, tried
        part = owners[id(trial)]
        cache.put(part.key(trial), damage)
        done, tried = done + costs[part.component.name, part.first].pop(0), tried + 1
        progress(part.first, _STEPS * done // total if total else _STEPS * tried // count, _STEPS)

    for probe, trials in work:
        probe.run(trials, found)


def _float_logits(forward: "ForwardPass", tokens: int, threads: int, spool: Path) -> tuple["FloatLogits", float]:
    """Logits of the float model, and the seconds that they take for a weight of the decoder's products."""
    from hvlc.calibration.segments import Walk, cut_segments, in_float, walk
    from hvlc.calibration.sensitivity import FloatLogits
    from hvlc.graphs.linears import linear_groups
    from hvlc.workflows.calibrate.forward import weights_of

    decoder = forward.components[-1]
    graph = decoder.component.graph
    walked = Walk(decoder.feeds({}), threads, spool, forward.cache)
    started = time.perf_counter()
    walk(cut_segments(graph, [g.input for g in linear_groups(graph)], [decoder.output]), walked, in_float)
    seconds = time.perf_counter() - started
    logits = [walked.value(decoder.output, i) for i in range(len(walked))]
    return FloatLogits(logits, forward.scored, tokens), seconds / weights_of(decoder.component)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f", about {minutes} min" if minutes > 1 else f", about {max(1, round(seconds))} s"
