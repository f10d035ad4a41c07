"""Models side by side, on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvlc.cli.common import json_option, progress
from hvlc.cli.gates import DemandedGates, GateRequest, gate_options, show_judged
from hvlc.cli.options import EXAMPLES, PLACE, WORDS, tokens
from hvlc.cli.streams import say
from hvlc.cli.variants import variant_option
from hvlc.errors import UserError

if TYPE_CHECKING:
    from hvlc.results.gates import Judgement
    from hvlc.workflows.evaluate.compare import ComparedModel, ComparisonResult, EvaluationRequest


@click.command(short_help="Compare packages or reports side by side.")
@click.argument("models", type=PLACE, nargs=-1, required=True)
@click.option(
    "--reference", type=WORDS, help="Name of the model that the others are held against (default: the first)."
)
@click.option(
    "--task",
    type=WORDS,
    default="documents",
    show_default=True,
    help='What packages are evaluated on: "documents", a JSON Lines file of questions, or a text (.txt).',
)
@click.option(
    "--encoder", "encoders", type=WORDS, multiple=True, help="Vision encoder; repeat for several (default: all)."
)
@click.option("-n", "--count", type=EXAMPLES, help="Number of examples (default: 256 documents, or the file).")
@click.option("--no-vrc", is_flag=True, help="Keep the full resolution.")
@click.option("--tokens", type=tokens(2), help="Of a text: how many are scored at most (default: 16384).")
@click.option("--window", type=tokens(2), help="Of a text: tokens that are read at once (default: 1024).")
@click.option("--no-fidelity", is_flag=True, help="Compare answers with the reference's, not distributions.")
@click.option(
    "--traces",
    type=click.IntRange(0, 1000),
    default=2,
    show_default=True,
    help="Questions whose values are compared layer by layer; 0 compares neither values nor weights.",
)
@click.option("--work", type=PLACE, help="Keeps evaluations: later comparisons and killed ones go on from there.")
@click.option("-o", "--output", type=PLACE, help="Directory for comparison.json, .md and .html.")
@gate_options
@json_option
@variant_option
def compare(
    models: tuple[Path, ...],
    reference: str | None,
    encoders: tuple[str, ...],
    no_vrc: bool,
    no_fidelity: bool,
    work: Path | None,
    output: Path | None,
    gates: GateRequest,
    as_json: bool,
    **asked: Any,
) -> None:
    """Compare MODELS: packages, which are evaluated, or reports that `hvlc eval -o` wrote.

    Scores with paired significance, sizes, errors of weights and values by layer, examples that changed sides, and what
    differs in recipe, plan, target and versions.
    """
    from hvlc.report.comparison import comparison_tables, headline
    from hvlc.workflows.evaluate.compare import EvaluationRequest, compare_models, open_models, write_comparison

    _check(asked, {"--encoder": encoders, "--no-vrc": no_vrc})
    given = {name: value for name, value in asked.items() if value is not None}
    asking = EvaluationRequest(encoders=encoders, vrc=not no_vrc, fidelity=not no_fidelity, **given)
    opened = open_models(models, reference)
    demanded = _demanded(gates, opened, asking)
    with progress("compare", 1) as step:
        found = compare_models(opened, asking, work=work, progress=step, announce=_announce)
    if output:
        names = " and ".join(model.name for model in opened)
        write_comparison(output, found, names if len(opened) == 2 else f"{len(opened)} models compared")
    data = {"headline": headline(found.comparison), **found.comparison.model_dump(mode="json")}
    judgement = _judged(demanded, opened, found)
    tables = comparison_tables(found.comparison, found.evaluations)
    show_judged(data, judgement, as_json, lambda console: console.print(tables))


def _demanded(gates: GateRequest, opened: "Sequence[ComparedModel]", asking: "EvaluationRequest") -> DemandedGates:
    """The gates, read before the long work.

    Raises:
        UserError: one cannot be understood or answered.
    """
    from hvlc.results import TextEvaluation
    from hvlc.workflows.evaluate.evaluate import encoders_of

    first = opened[0]
    read = [e for model in opened for e in model.evaluations]
    text = isinstance(read[0], TextEvaluation) if first.package is None else asking.text is not None
    if first.package is None:
        encoders = tuple(e.encoder for e in read if not isinstance(e, TextEvaluation))
    else:
        encoders = () if text else asking.encoders or encoders_of(first.package)
    return gates.demanded(
        kind="text" if text else "questions",
        reference=True,
        fidelity=asking.fidelity or bool(read),
        encoders=encoders,
        models=[model.package for model in opened if model.package],
    )


def _judged(gates: DemandedGates, opened: "Sequence[ComparedModel]", found: "ComparisonResult") -> "Judgement | None":
    """Judge every model but the reference by the gates.

    Raises:
        UserError: a gate has nothing to decide on, or a file cannot be written.
    """
    if not gates.gates:
        return None
    from hvlc.workflows.evaluate.recipe_lines import worst_weights

    reference = opened[0].name
    packages = {model.name: model.package for model in opened if model.package}
    worst = {
        name: [
            (e.layer.partition(".")[0], e.worst, e.worst_error) for e in found.comparison.layers if e.contestant == name
        ]
        for name in packages
        if name != reference
    }
    return gates.judge(
        [e for e in found.evaluations if e.name != reference],
        [e for e in found.evaluations if e.name == reference],
        models=packages,
        suspects={name: worst_weights(packages[name], errors) for name, errors in worst.items() if errors},
    )


def _check(asked: dict[str, Any], of_questions: dict[str, Any]) -> None:
    """Refuse options that the task cannot follow.

    Raises:
        UserError: one of them was given.
    """
    text = asked["task"].endswith(".txt")
    unused = {**of_questions, "--count": asked["count"]} if text else {f"--{n}": asked[n] for n in ("tokens", "window")}
    given = ", ".join(name for name, value in unused.items() if value)
    if given:
        reason = (
            f"{asked['task']} is a text, and they are for questions" if text else "they are for a task that is a text"
        )
        raise UserError("compare.option", f"{given}: {reason}", "leave it out")


def _announce(text: str) -> None:
    say(text, error=True)
