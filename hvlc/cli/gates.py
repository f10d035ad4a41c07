"""Gates on the command line: options for commands that measure, and what they do with them.

A command takes `@gate_options`, which gives it one argument `gates: GateRequest`, and then:

    demanded = gates.demanded(kind="questions", reference=reference is not None, encoders=encoders, models=[directory])
    ...                                   # the long work, and the command's own files
    judgement = demanded.judge(evaluations, references)   # writes --junit, --sarif and --markdown
    show_judged(data, judgement, as_json, human)          # prints, and ends with exit code 4 if a gate is broken

`demanded` refuses what can be refused before the long work. Without a gate `judge` answers None, and `show_judged` is
`hvlc.cli.common.show`.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hvlc.cli.common import console, show
from hvlc.cli.options import PLACE, WORDS
from hvlc.cli.streams import say_json
from hvlc.errors import GateError, UserError

if TYPE_CHECKING:
    from hvlc.results import Measured
    from hvlc.results.gates import Gate, Judgement, Suspect


def gate_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of gates; the command gets them as `gates: GateRequest`."""

    @functools.wraps(function)
    def gated(
        *arguments: Any,
        gate_texts: tuple[str, ...],
        gates_file: Path | None,
        junit: Path | None,
        sarif: Path | None,
        markdown: Path | None,
        recipe_file: Path | None,
        **options: Any,
    ) -> Any:
        request = GateRequest(gate_texts, gates_file, junit, sarif, markdown, recipe_file)
        return function(*arguments, gates=request, **options)

    options = (
        click.option(
            "--gate",
            "gate_texts",
            type=WORDS,
            multiple=True,
            metavar="GATE",
            help='Bound to keep, e.g. "exact_match >= 0.98x" or "size <= 40MB"; repeat for several (docs/gates.md).',
        ),
        click.option("--gates", "gates_file", type=PLACE, help="YAML file of gates."),
        click.option("--junit", type=PLACE, help="Write the gates as a JUnit XML file."),
        click.option("--sarif", type=PLACE, help="Write the gates that did not pass as a SARIF file."),
        click.option("--markdown", type=PLACE, help="Write gates and scores as Markdown tables."),
        click.option(
            "--recipe-file", type=PLACE, help="With --sarif: the recipe of the package, whose lines are pointed at."
        ),
    )
    for option in reversed(options):
        gated = option(gated)
    return gated


@dataclass(frozen=True)
class GateRequest:
    """Gates and files that were asked for on the command line.

    Attributes:
        texts: gates.
        file: of gates.
        junit: file to write.
        sarif: file to write.
        markdown: file to write.
        recipe: file of the recipe that SARIF points at.
    """

    texts: tuple[str, ...] = ()
    file: Path | None = None
    junit: Path | None = None
    sarif: Path | None = None
    markdown: Path | None = None
    recipe: Path | None = None

    def demanded(
        self,
        *,
        kind: Literal["questions", "text"],
        reference: bool,
        fidelity: bool = True,
        encoders: Sequence[str] = (),
        models: Sequence[Path] = (),
    ) -> "DemandedGates":
        """Read the gates, before the long work.

        Args:
            kind: of the task.
            reference: whether there is a reference.
            fidelity: whether its distributions are compared too.
            encoders: vision encoders that will be evaluated.
            models: packages, checkpoints or evaluation files that gates will speak of.

        Raises:
            UserError: a gate cannot be understood or answered, a file is asked for without a gate, its directory is
                missing, or the recipe is not that of a package.
        """
        from hvlc.evaluation.gates import read_gates, require_checkable
        from hvlc.files.reading import is_directory

        files = {"--junit": self.junit, "--sarif": self.sarif, "--markdown": self.markdown}
        asked = [option for option, path in files.items() if path]
        if asked and not self.texts and not self.file:
            raise UserError("gate.missing", f"{', '.join(asked)} without a gate", "add --gate or --gates")
        if self.recipe and not self.sarif:
            raise UserError("gate.recipe", "--recipe-file without --sarif", "add --sarif, or leave it out")
        for path in filter(None, files.values()):
            if not is_directory(path.parent):
                raise UserError("results.unwritable", f"{path.parent} is not a directory", "make it, or choose another")
        gates = read_gates(self.texts, self.file)
        require_checkable(gates, kind=kind, reference=reference, fidelity=fidelity, encoders=encoders)
        if self.recipe:
            from hvlc.workflows.evaluate.recipe_lines import require_recipe

            require_recipe(self.recipe, models)
        return DemandedGates(tuple(gates), self)


@dataclass(frozen=True)
class DemandedGates:
    """Gates that were read.

    Attributes:
        gates: what is demanded.
        request: where to write what comes of them.
    """

    gates: "tuple[Gate, ...]"
    request: GateRequest

    def judge(
        self,
        evaluations: "Sequence[Measured]",
        references: "Sequence[Measured]" = (),
        *,
        models: Mapping[str, Path] | None = None,
        suspects: "Mapping[str, Sequence[Suspect]] | None" = None,
    ) -> "Judgement | None":
        """Hold the gates against what was measured, and write the files; None without a gate.

        Args:
            evaluations: what was measured.
            references: what relative gates refer to, of every setting.
            models: the package, checkpoint or evaluation file of each evaluation's name, for SARIF.
            suspects: weights with the largest errors of each evaluation's name, for SARIF
                (`hvlc.workflows.evaluate.recipe_lines.worst_weights`).

        Raises:
            UserError: a gate has nothing to decide on, or a file cannot be written.
        """
        if not self.gates:
            return None
        from hvlc.evaluation.gates import check

        judgement = check(self.gates, evaluations, references)
        self._write(judgement, models or {}, suspects or {})
        return judgement

    def _write(
        self, judgement: "Judgement", models: Mapping[str, Path], suspects: "Mapping[str, Sequence[Suspect]]"
    ) -> None:
        from hvlc.report.junit import junit_xml
        from hvlc.report.markdown import judgement_markdown
        from hvlc.report.sarif import sarif_json
        from hvlc.results import write_whole
        from hvlc.workflows.evaluate.recipe_lines import origin_of

        request = self.request
        if request.junit:
            write_whole(request.junit, [junit_xml(judgement)])
        if request.markdown:
            write_whole(request.markdown, [judgement_markdown(judgement)])
        if request.sarif:
            origins = {name: origin_of(model, suspects.get(name, ()), request.recipe) for name, model in models.items()}
            write_whole(request.sarif, [sarif_json(judgement, origins)])


def show_judged(
    data: Any, judgement: "Judgement | None", as_json: bool, human: Callable[[Any], None], *, name: str = "evaluations"
) -> None:
    """Print a command's data and what came of the gates: what broke first, then the gates, then `human`'s tables.

    Without gates, `data` is printed as it is. With gates JSON is one object: `data` (under `name`, if it is not an
    object), "judgement", and "error" if a gate is broken.

    Raises:
        GateError: a gate is broken; with JSON, the process exits with the error's code instead.
    """
    if judgement is None:
        show(data, as_json, human)
        return
    from hvlc.evaluation.gates import raise_broken
    from hvlc.report.gates import judgement_tables

    if not as_json:
        terminal = console()
        terminal.print(judgement_tables(judgement))
        human(terminal)
        raise_broken(judgement)
        return
    record = {**(data if isinstance(data, dict) else {name: data}), "judgement": judgement.model_dump(mode="json")}
    try:
        raise_broken(judgement)
    except GateError as error:
        record = {"error": {"code": error.code, "cause": error.cause, "fix": error.fix}, **record}
        say_json(record)
        sys.exit(error.exit_code)
    say_json(record)
