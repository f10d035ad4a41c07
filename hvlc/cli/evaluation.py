"""Evaluation of a package on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvlc.cli.common import json_option, progress
from hvlc.cli.gates import DemandedGates, GateRequest, gate_options, show_judged
from hvlc.cli.options import EXAMPLES, PLACE, WORDS, tokens
from hvlc.cli.streams import say
from hvlc.cli.variants import variant_option
from hvlc.cli.vision import vision_options
from hvlc.errors import UserError

if TYPE_CHECKING:
    from hvlc.evaluation.task import Task
    from hvlc.results import Evaluation, Measured, TextEvaluation
    from hvlc.runtime.settings import VisionSettings

#: Parts of a record that are as long as its task, and stay out of what is printed.
_LONG: dict[str, Any] = {"examples": True, "windows": True, "fidelity": {"sequences": True}}


@click.command(name="eval", short_help="Measure a package or checkpoint on a task.")
@click.argument("directory", type=PLACE)
@click.option(
    "--task",
    "task_name",
    type=WORDS,
    default="documents",
    show_default=True,
    help='"documents", a JSON Lines file of questions, "docvqa:DIR" (hvlc tasks list), or a text (.txt).',
)
@click.option("--prompt-suffix", type=WORDS, help="Of a public benchmark: text after every question.")
@click.option("--reference", type=PLACE, help="Checkpoint or package to agree with.")
@click.option(
    "--encoder", "encoders", type=WORDS, multiple=True, help="Vision encoder; repeat for several (default: all)."
)
@click.option("-n", "--count", type=EXAMPLES, help="Number of examples (default: 256 documents, or the whole file).")
@click.option("--no-vrc", is_flag=True, help="Keep the full resolution.")
@click.option("--max-new-tokens", type=tokens(1), help="Bound of an answer (default: 32).")
@click.option("--tokens", type=tokens(2), help="Of a text: how many are scored at most (default: 16384).")
@click.option("--window", type=tokens(2), help="Of a text: tokens that are read at once (default: 1024).")
@click.option("--no-fidelity", is_flag=True, help="Compare answers with the reference's, not distributions.")
@click.option("-o", "--output", type=PLACE, help="Directory for JSON files, report.html and report.md.")
@click.option("--reuse", is_flag=True, help="Take finished evaluations of the same inputs from the output.")
@gate_options
@json_option
@variant_option
@vision_options
def evaluate(
    directory: Path,
    task_name: str,
    reference: Path | None,
    encoders: tuple[str, ...],
    count: int | None,
    no_vrc: bool,
    prompt_suffix: str | None,
    max_new_tokens: int | None,
    tokens: int | None,
    window: int | None,
    no_fidelity: bool,
    output: Path | None,
    reuse: bool,
    gates: GateRequest,
    as_json: bool,
    vision: "VisionSettings | None",
) -> None:
    """Measure the package (or checkpoint) in DIRECTORY on a task: answers to questions, or perplexity of a text.

    With an output, an evaluation that was stopped goes on where it was.
    """
    _refuse({"--no-fidelity": no_fidelity and reference is None}, "there is no reference")
    _refuse({"--reuse": reuse and output is None}, "there is no output to take evaluations from")
    questions = {"--encoder": encoders, "--count": count, "--no-vrc": no_vrc, "--max-new-tokens": max_new_tokens}
    encoding = {"--tile-batch, --no-tile-reuse or --feature-cache": vision}
    questions["--prompt-suffix"] = prompt_suffix is not None
    if task_name.endswith(".txt"):
        _refuse({**questions, **encoding, "--reuse": reuse}, f"{task_name} is a text, and they are for questions")
        demanded = gates.demanded(
            kind="text", reference=reference is not None, fidelity=not no_fidelity, models=[directory]
        )
        reading: dict[str, Any] = {"tokens": tokens, "window": window, "fidelity": not no_fidelity}
        _evaluate_text(directory, Path(task_name), reference, output, demanded, as_json, **reading)
        return
    _refuse({"--tokens": tokens, "--window": window}, "they are for a task that is a text")
    from hvlc.evaluation.tasks import open_task
    from hvlc.workflows.evaluate.evaluate import encoders_of

    demanded = gates.demanded(
        kind="questions",
        reference=reference is not None,
        fidelity=not no_fidelity,
        encoders=encoders or encoders_of(directory),
        models=[directory],
    )
    options: dict[str, Any] = {"encoders": encoders, "vrc": not no_vrc, "count": count, "reuse": reuse}
    options |= {"vision": vision, "fidelity": not no_fidelity}
    options |= {"max_new_tokens": max_new_tokens} if max_new_tokens else {}
    _evaluate_questions(
        directory, open_task(task_name, count, prompt_suffix), reference, output, demanded, as_json, **options
    )


def _evaluate_questions(
    directory: Path,
    task: "Task",
    reference: Path | None,
    output: Path | None,
    gates: DemandedGates,
    as_json: bool,
    **options: Any,
) -> None:
    from hvlc.report.terminal import comparison_table, evaluation_table
    from hvlc.workflows.evaluate.evaluate import evaluate_questions, write_reports
    from hvlc.workflows.evaluate.evaluation_store import Store

    with progress("eval", 1) as step, Store(output, _announce) as store:
        found = evaluate_questions(directory, task, reference=reference, store=store, progress=step, **options)
    if output:
        write_reports(output, found.shown, task, f"{directory.resolve().name} on {task.name}")
    shown: Sequence[Evaluation] = found.shown
    table = evaluation_table(shown[0]) if len(shown) == 1 else comparison_table(shown)
    finish(directory, found.evaluations, found.references, gates, table, as_json)


def _evaluate_text(
    directory: Path,
    text: Path,
    reference: Path | None,
    output: Path | None,
    gates: DemandedGates,
    as_json: bool,
    **options: Any,
) -> None:
    from hvlc.report.terminal import text_table
    from hvlc.workflows.evaluate.evaluation_store import Store
    from hvlc.workflows.evaluate.perplexity import evaluate_texts, write_text_reports

    models = [*([reference] if reference else []), directory]
    names = [model.resolve().name for model in models]
    if len(set(names)) < len(names):
        names[0] += " (reference)"
    options = {name: value for name, value in options.items() if value is not None}
    with progress("eval", 1) as step, Store(output, _announce) as store:
        found: Sequence[TextEvaluation] = evaluate_texts(
            models, text, against_first=reference is not None, store=store, names=names, progress=step, **options
        )
    if output:
        write_text_reports(output, found, f"{names[-1]} on {text.stem}")
    finish(directory, found[-1:], found[:-1], gates, text_table(found), as_json)


def finish(
    directory: Path,
    evaluations: "Sequence[Measured]",
    references: "Sequence[Measured]",
    gates: DemandedGates,
    table: Any,
    as_json: bool,
) -> None:
    """Judge by the gates what was measured and written, and print it.

    Args:
        directory: of the model.
        evaluations: of the model, one for each setting.
        references: of the reference, for the same settings as far as it has them.
        gates: what was demanded.
        table: that shows all of them.
        as_json: print JSON instead.

    Raises:
        GateError: a gate is broken.
    """
    judgement = gates.judge(evaluations, references, models={e.name: directory for e in evaluations})
    data = [e.model_dump(mode="json", exclude=_LONG) for e in (*references, *evaluations)]
    show_judged(data, judgement, as_json, lambda console: console.print(table))


def _announce(text: str) -> None:
    say(text, error=True)


def _refuse(unused: dict[str, Any], reason: str) -> None:
    """Refuse options that a task cannot follow.

    Raises:
        UserError: one of them was given.
    """
    given = ", ".join(name for name, value in unused.items() if value)
    if given:
        raise UserError("eval.option", f"{given}: {reason}", "leave it out")
