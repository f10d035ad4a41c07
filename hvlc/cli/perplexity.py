"""How a language model reads a text, on the command line."""

from pathlib import Path
from typing import Any

from hvlc.cli.common import progress, show
from hvlc.errors import UserError


def evaluate_text(
    directory: Path,
    text: Path,
    reference: Path | None,
    *,
    tokens: int | None,
    window: int | None,
    as_json: bool,
    unused: dict[str, Any],
) -> None:
    """Print the perplexity of a package (or checkpoint), and its ratio to a reference's.

    Args:
        directory: what is measured.
        text: the task.
        reference: what it is divided by.
        tokens: scored at most.
        window: read at once.
        as_json: instead of a table.
        unused: options of other tasks by name, and what was asked.

    Raises:
        UserError: such an option was given, or the text cannot be scored.
    """
    from hvlc.pipeline.perplexity import TOKENS, measure_perplexities
    from hvlc.report.terminal import perplexity_table

    refuse(unused, f"{text} is a text, and they are for tasks with images")
    name = directory.resolve().name
    models = {name: directory}
    if reference is not None:
        other = reference.resolve().name
        models = {f"{other} (reference)": reference, name: directory}
    with progress("eval", 1) as step:
        found = measure_perplexities(list(models.values()), text, tokens=tokens or TOKENS, window=window, progress=step)
    measured = dict(zip(models, found, strict=True))
    against = next(iter(models)) if reference is not None else None
    data = {n: {"perplexity": p.value, "tokens": p.tokens, **p.model_dump(mode="json")} for n, p in measured.items()}
    if against is not None:
        quotient, error = measured[name].ratio(measured[against])
        data[name] |= {"ratio": quotient, "standard_error": error}
    show(data, as_json, lambda console: console.print(perplexity_table(measured, against)))


def refuse(unused: dict[str, Any], reason: str) -> None:
    """Refuse options that a task cannot follow.

    Raises:
        UserError: one of them was given.
    """
    given = ", ".join(name for name, value in unused.items() if value)
    if given:
        raise UserError("eval.option", f"{given}: {reason}", "leave it out")
