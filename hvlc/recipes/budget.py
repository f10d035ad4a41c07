"""Choose a format for every part of a model so that the total damage is least within a size budget.

Damages add up: each part's loss is of second order in its error, and the errors of different parts are nearly
independent (Malinovskii et al., "Pushing the Limits of LLM Quantization via the Linearity Theorem", arXiv 2411.17525).
The choice is a multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, chapter
11), solved by dynamic programming over sizes.
"""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, fsum, gcd

import numpy as np

from hvlc.errors import HvlcError, UserError
from hvlc.graphs.bundle import Role
from hvlc.graphs.plan import Action, Assignment
from hvlc.recipes.schema import MOST_BITS, MOST_MEGABYTES, BudgetSpec, FormatSpec, Recipe, Rule, WeightSpec
from hvlc.results.sensitivity import Candidate, Sensitivity
from hvlc.weights.formats import scale_type_at
from hvlc.weights.prequantized.matrix import STORED

_CELLS = 1 << 16  # of the grid, where sizes have no coarser one in common
_ROLES = (Role.DECODER, Role.VISION_ENCODER)  # a table that shares the head's bytes follows the head


@dataclass(frozen=True)
class Option:
    """A choice for a part.

    Attributes:
        size: in bytes.
        damage: that it does, at least 0.
    """

    size: int
    damage: float


class Knapsack:
    """The best choices for every budget.

    Sizes beyond each part's smallest are counted in what they all have in common, so that the choice is exact; where
    that would be more than 65536 steps, in steps that are rounded up, so that a budget holds all the same.

    Attributes:
        parts: the options of every part.
        least: bytes of the smallest choice.
    """

    def __init__(self, parts: Sequence[Sequence[Option]]) -> None:
        self.parts = tuple(tuple(options) for options in parts)
        smallest = [min(option.size for option in options) for options in self.parts]
        self.least = sum(smallest)
        extra = [[o.size - low for o in options] for options, low in zip(self.parts, smallest, strict=True)]
        most = sum(max(sizes) for sizes in extra)
        common = gcd(*(size for sizes in extra for size in sizes)) or 1
        self._unit = common if most // common <= _CELLS else ceil(most / _CELLS)
        self._steps = [[ceil(size / self._unit) for size in sizes] for sizes in extra]
        self._cells = sum(max(steps) for steps in self._steps)
        self._chosen = self._solve()

    def _solve(self) -> list[np.ndarray]:
        """For each part and each number of steps that it and the parts before it may take, the best option."""
        damage = np.zeros(self._cells + 1)
        chosen = []
        for options, steps in zip(self.parts, self._steps, strict=True):
            best = np.full(self._cells + 1, np.inf)
            choice = np.zeros(self._cells + 1, np.int16)
            for index in sorted(range(len(options)), key=lambda i: (steps[i], options[i].damage)):
                step = steps[index]
                total = damage[: self._cells + 1 - step] + options[index].damage
                better = total < best[step:]  # of equal ones the smaller
                best[step:][better] = total[better]
                choice[step:][better] = index
            damage = best
            chosen.append(choice)
        return chosen

    def best(self, budget: int) -> tuple[int, ...] | None:
        """The option of every part with the least summed damage, or None where nothing is small enough.

        Never larger than the budget, never worse than any one option for all parts that fits it, and never worse than
        with a smaller budget.

        Args:
            budget: in bytes.
        """
        if budget < self.least:
            return None
        room = min((budget - self.least) // self._unit, self._cells)
        found = []
        for choice, steps in zip(reversed(self._chosen), reversed(self._steps), strict=True):
            found.append(int(choice[room]))
            room -= steps[found[-1]]
        uniform = [(index,) * len(self.parts) for index in range(min(len(options) for options in self.parts))]
        fitting = [choice for choice in uniform if self.size(choice) <= budget]
        return min([tuple(reversed(found)), *fitting], key=lambda choice: (self.damage(choice), self.size(choice)))

    def size(self, choice: Sequence[int]) -> int:
        """Bytes of a choice."""
        return sum(options[index].size for options, index in zip(self.parts, choice, strict=True))

    def damage(self, choice: Sequence[int]) -> float:
        """Summed damage of a choice."""
        return fsum(options[index].damage for options, index in zip(self.parts, choice, strict=True))


def parse_budget(text: str) -> dict[str, float]:
    """A budget of the command line as fields of a `BudgetSpec`.

    Args:
        text: "4.5bpw", "40MB" or "40MiB".

    Raises:
        UserError: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(bpw|MB|MiB)\s*", text, re.ASCII)
    if found is None:
        cause = f"{text[:100]!r} is not a budget"
        raise UserError("budget.syntax", cause, "write bits per weight as 4.5bpw, or 40MB or 40MiB")
    number = float(found[1]) * (2**20 / 10**6 if found[2] == "MiB" else 1)
    most = MOST_BITS if found[2] == "bpw" else MOST_MEGABYTES
    if not 0 < number <= most:
        unit = "bpw" if found[2] == "bpw" else "MB"
        cause = f"{text[:100]!r} is not above 0 and at most {most:.0f}{unit}"
        raise UserError("budget.syntax", cause, f"allow more than 0{unit} and at most {most:.0f}{unit}")
    return {"bits_per_weight": number} if found[2] == "bpw" else {"megabytes": number}


def with_budget(recipe: Recipe, text: str) -> Recipe:
    """A recipe with another budget, the rest of its budget's settings as they are.

    Raises:
        UserError: the text is not a budget.
    """
    settings = recipe.budget.model_dump(exclude={"bits_per_weight", "megabytes"}) if recipe.budget else {}
    return recipe.model_copy(update={"budget": BudgetSpec(**{**settings, **parse_budget(text)})})


def uniform(recipe: Recipe, format: FormatSpec, solver: str | None = None) -> Recipe:
    """A recipe without a budget whose rules, those that a budget would speak of, have one format.

    Args:
        recipe: the rules.
        format: for all of them.
        solver: in place of the rules' own; None keeps them.
    """

    def changed(rule: Rule) -> Rule:
        if rule.quantize is None or rule.fixed or rule.role not in _ROLES:
            return rule
        return rule.model_copy(update={"quantize": _respecified(rule.quantize, format, solver)})

    return recipe.model_copy(update={"budget": None, "rules": tuple(changed(rule) for rule in recipe.rules)})


def _respecified(spec: WeightSpec, format: FormatSpec | Candidate, solver: str | None = None) -> WeightSpec:
    if spec.products is not None:  # a form of its own, which no block has
        spec = spec.fallback or WeightSpec(bits=8, block_size=32)
    changes: dict[str, object] = {"bits": format.bits, "block_size": format.block_size, "per_channel": False}
    if (scales := scale_type_at(format.bits, spec.scale_type)) is not spec.scale_type:
        changes["scale_type"] = scales
    if solver is not None and solver != spec.solver:
        changes |= {"solver": solver, "options": {}}
    return spec.model_copy(update=changes)


def is_budgeted(recipe: Recipe, assignment: Assignment) -> bool:
    """Whether a budget of the recipe chooses the format of a matrix."""
    if assignment.action is not Action.QUANTIZE or assignment.role not in _ROLES or assignment.solver == STORED:
        return False
    rule = next((r for r in recipe.rules if r.matches(assignment.role, assignment.weight)), None)
    return rule is not None and not rule.fixed


def knapsack(sensitivity: Sensitivity, *, package: bool) -> Knapsack:
    """The choices that a budget has.

    Args:
        sensitivity: damage of every part in every format.
        package: count what the choices mean for the whole package (tables that share a head's bytes or do not), not
            the bytes of the chosen matrices alone.
    """
    return Knapsack(
        [
            [Option(c.package_bytes if package else c.stored_bytes, c.damage) for c in part.candidates]
            for part in sensitivity.parts
        ]
    )


def allocate(sensitivity: Sensitivity, budget: BudgetSpec) -> tuple[int, ...]:
    """For every part the index of its candidate, with the least summed damage within a budget.

    Raises:
        UserError: even the smallest choice is larger.
    """
    if budget.bits_per_weight is not None:
        problem = knapsack(sensitivity, package=False)
        chosen = problem.best(floor(budget.bits_per_weight * sensitivity.elements / 8 + 1e-6))
        least = ceil(8000 * problem.least / sensitivity.elements) / 1000
        asked, smallest = f"{budget.bits_per_weight:g} bits a weight", f"{least:g}bpw"
    elif budget.megabytes is not None:
        problem = knapsack(sensitivity, package=True)
        chosen = problem.best(floor(budget.megabytes * 10**6 + 1e-6) - sensitivity.fixed_bytes)
        least = ceil((problem.least + sensitivity.fixed_bytes) / 10**4) / 100
        asked, smallest = f"{budget.megabytes:g} MB", f"{least:g}MB"
    else:
        raise HvlcError("budget.empty", "a budget has no size", "report it")
    if chosen is None:
        cause = f"{asked} are too few: with the smallest of the formats for every part it is {smallest}"
        raise UserError("budget.too_small", cause, f"allow {smallest}, or allow smaller formats")
    return chosen


def explicit(recipe: Recipe, sensitivity: Sensitivity, choice: Sequence[int], name: str | None = None) -> Recipe:
    """A recipe that says for every weight which format was chosen, and needs no budget any more.

    Args:
        recipe: the rules that the budget was given for; they follow the chosen ones.
        sensitivity: the parts.
        choice: index of the candidate of every part.
        name: of the new recipe; None keeps it.
    """
    rules = []
    for part, index in zip(sensitivity.parts, choice, strict=True):
        candidate = part.candidates[index]
        for weight in part.weights:
            rule = next(r for r in recipe.rules if r.matches(part.role, weight))
            if rule.quantize is None:
                raise HvlcError("budget.rule", f"{weight} is kept and has a format", "report it")
            spec = _respecified(rule.quantize, candidate)
            rules.append(Rule(role=part.role, weights=glob.escape(weight), quantize=spec))
    rest = [rule.model_copy(update={"optional": True}) for rule in recipe.rules]
    changes = {"budget": None, "rules": (*rules, *rest), **({"name": name} if name else {})}
    return recipe.model_copy(update=changes)
