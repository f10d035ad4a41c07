"""Self-contained HTML page of evaluations: tables, plots and every example, without network requests.

Questions and answers are untrusted text: the template escapes all of it, and the page's own content security policy
forbids any script but the one hashed there, and any request.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from hvlc.report import columns, gallery, plots
from hvlc.report.compilation import CHECK, checked_packages
from hvlc.report.runs import lettered
from hvlc.report.templates import asset, page_environment
from hvlc.results import Evaluation, write_whole


def write_page(
    path: Path,
    evaluations: Sequence[Evaluation],
    images: Callable[[int], Image.Image | None],
    *,
    title: str,
    facts: Mapping[str, str],
    reference: Evaluation | None = None,
) -> None:
    """Write evaluations of the same examples side by side.

    Args:
        path: the HTML file; an existing one is replaced, and only by a whole one.
        evaluations: what to show, in this order; those with an `agreement` are set against their reference.
        images: gives the image of the example at a position of the task; None where the question has none.
        title: headline of the page.
        facts: what else to state at the top, e.g. checkpoint, recipe, versions.
        reference: shown first, unless it is among `evaluations`.

    Raises:
        UserError: the evaluations answered different examples, or the page cannot be written.
    """
    shown = list(evaluations)
    if reference is not None and reference.label not in [evaluation.label for evaluation in shown]:
        shown.insert(0, reference)
    write_whole(path, page_parts(shown, images, title=title, facts=facts))


def page_parts(
    shown: Sequence[Evaluation],
    images: Callable[[int], Image.Image | None],
    *,
    title: str,
    facts: Mapping[str, str],
    comparison: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """The text of a page.

    Args:
        shown: evaluations of the same examples; none where a comparison has no questions.
        images: gives the image of the example at a position of the task; None where the question has none.
        title: headline of the page.
        facts: what else to state at the top.
        comparison: what comparison.html.j2 shows besides.

    Raises:
        UserError: the evaluations answered different examples.
    """
    if shown or comparison is None:
        columns.require_same_examples(shown)
    runs = lettered(shown)
    examples = gallery.outcomes(runs)
    script = asset("page.js")
    return (
        _environment()
        .get_template("page.html.j2")
        .generate(
            title=title,
            facts=dict(facts),
            runs=runs,
            comparison=comparison,
            compiled=checked_packages(shown),
            check=CHECK,
            columns=columns.COLUMNS,
            absent=columns.ABSENT,
            notes=columns.notes(shown)[-1] if shown else "",
            by_kind=plots.score_by_kind(runs) if runs else None,
            by_time=plots.score_by_time(runs) if runs else None,
            tokens=plots.visual_tokens(runs) if runs else None,
            outcomes=examples,
            kinds=sorted({outcome.example.kind for outcome in examples}),
            cards=gallery.cards(examples, images),
            style=Markup(asset("page.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _environment() -> jinja2.Environment:
    environment = page_environment()
    environment.filters.update(verdict=columns.verdict, percent=_percent, place=_place, key=_key)
    environment.filters.update(significant=columns.significant, scored=columns.scored)
    return environment


def _percent(share: float) -> str:
    """A share in percent that no line break splits."""
    return columns.percent(share).replace(" ", "\N{NO-BREAK SPACE}")


def _key(title: str) -> str:
    """The CSS class of a column, e.g. "exact-match"."""
    return title.partition(",")[0].replace(" ", "-").replace("/", "-")


def _place(value: float) -> str:
    """A place in percent, short."""
    return f"{value:.2f}%"
