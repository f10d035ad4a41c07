"""Evaluation of packages and checkpoints on a text."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from hvlc.errors import Progress, UserError
from hvlc.evaluation.fidelity import fidelity as summed
from hvlc.evaluation.perplexity import evaluate_text, text_divergences, with_reading_agreement
from hvlc.files.reading import TEXT, read_text
from hvlc.graphs.facts import Kind
from hvlc.report.compilation import checks_markdown
from hvlc.report.markdown import text_markdown
from hvlc.report.text_page import write_text_page
from hvlc.results import Divergence, Perplexity, ScoredWindow, TextEvaluation, write_whole
from hvlc.runtime.logits import TextScorer
from hvlc.workflows.evaluate.evaluation_store import Store, shared_facts
from hvlc.workflows.evaluate.model import Subject, open_subject, reading, require_one_vocabulary

#: Tokens that are scored, and tokens of a window, where nothing else is said.
TOKENS, WINDOW = 16_384, 1_024
_CHARACTERS = 8  # of a token, more than any text of a language has on average


def evaluate_texts(
    directories: Sequence[Path],
    text: Path,
    *,
    against_first: bool = False,
    fidelity: bool = True,
    tokens: int = TOKENS,
    window: int | None = None,
    store: Store | None = None,
    names: Sequence[str] | None = None,
    progress: Progress = lambda *_: None,
) -> list[TextEvaluation]:
    """Evaluate packages, or checkpoints built without quantization, on the middle of a text.

    Each reads it alone, the first last, so that its peak memory is its own; then each distribution is held against the
    first's.

    Args:
        directories: a language package or a checkpoint each, all with the same tokenizer.
        text: UTF-8.
        against_first: compare all others with the first.
        fidelity: whether distributions are compared too, not perplexities alone.
        tokens: how many are scored, at most; whole windows.
        window: tokens that are read at once, without what stood before; None is `WINDOW`, or as many as all read.
        store: where evaluations are written, and where one that was killed goes on.
        names: labels in reports; the directories' names when None.
        progress: told after each window of all models together.

    Raises:
        UserError: something is not a language package, reads shorter windows or has another tokenizer, or the text
            cannot be read or is shorter than one window.
    """
    _read(text)  # before a reference is built
    names = names or [directory.resolve().name for directory in directories]
    subjects = [open_subject(directory, name) for directory, name in zip(directories, names, strict=True)]
    for subject in subjects:
        if subject.kind is not Kind.LANGUAGE:
            cause = f"{subject.directory} is a {subject.kind} model, and texts are read by language models"
            raise UserError("eval.kind", cause, "name a language model, or a task of questions")
    if against_first and fidelity:
        require_one_vocabulary(subjects)
    with ExitStack() as stack:
        readers = [stack.enter_context(reading(subject)) for subject in subjects]
        windows = _shared_windows([reader for reader, _ in readers], subjects, text, tokens, window)
        others = len(subjects) - 1 if against_first else 0
        step = _Steps(progress, len(windows) * (len(subjects) + (others if fidelity else 0)))
        work = _Work(text.stem, windows, store or Store(None), step)
        found: list[TextEvaluation] = []
        for subject, (reader, runs_on) in zip(subjects[::-1], readers[::-1], strict=True):
            found.insert(0, work.read(subject, reader, runs_on))
            reader.close()
        for position in range(1, others + 1):
            found[position] = with_reading_agreement(found[position], found[0])
            if fidelity:
                found[position] = work.held_against(
                    found[position], subjects[position], readers[position][0], found[0], subjects[0], readers[0][0]
                )
    for evaluation in found:
        work.store.write(evaluation, f"{evaluation.label} {evaluation.task}")
    return found


def measure_perplexities(
    directories: Sequence[Path],
    text: Path,
    *,
    tokens: int = TOKENS,
    window: int | None = None,
    progress: Progress = lambda *_: None,
) -> list[Perplexity]:
    """The perplexities alone; see `evaluate_texts`."""
    found = evaluate_texts(directories, text, tokens=tokens, window=window, progress=progress)
    return [evaluation.reading for evaluation in found]


class _Work:
    """Work that is done with the windows of a text."""

    def __init__(self, task: str, windows: Sequence[np.ndarray], store: Store, step: "_Steps") -> None:
        self._task = task
        self._windows = windows
        self._step = step
        self.store = store

    def read(self, subject: Subject, reader: TextScorer, runs_on: str) -> TextEvaluation:
        """Score every window that an earlier run has not scored."""
        label = f"{subject.label} {self._task}"
        depends = {"task": self._task, **subject.provenance}
        return evaluate_text(
            reader.logits,
            self._windows,
            name=subject.label,
            runs_on=runs_on,
            task=self._task,
            done=partial(self._step, subject.label),
            journal=self.store.journal(label, len(self._windows), depends, ScoredWindow),
            size_bytes=subject.size_bytes,
            bits_per_weight=subject.bits_per_weight,
            compilation=subject.compilation,
            provenance=subject.provenance,
        )

    def held_against(
        self,
        evaluation: TextEvaluation,
        subject: Subject,
        reader: TextScorer,
        expected: TextEvaluation,
        reference: Subject,
        reference_reader: TextScorer,
    ) -> TextEvaluation:
        """The evaluation with its fidelity to the reference."""
        label = f"{subject.label} {self._task} fidelity"
        depends = {"task": self._task, "reference": reference.digest, **subject.provenance}
        journal = self.store.journal(label, len(self._windows), depends, Divergence)
        done = partial(self._step, f"{subject.label} fidelity")
        sequences = text_divergences(reader.logits, reference_reader.logits, self._windows, done, journal)
        reader.close()
        return evaluation.model_copy(update={"fidelity": summed(expected.label, reference.digest, sequences)})


class _Steps:
    """Adds up the windows of several models."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def __call__(self, label: str) -> None:
        self._done += 1
        self._progress(label, self._done, self._total)


def _shared_windows(
    readers: Sequence[TextScorer], subjects: Sequence[Subject], text: Path, tokens: int, window: int | None
) -> list[np.ndarray]:
    """The windows that all models read.

    Raises:
        UserError: one reads shorter windows or other tokens, or there is no window.
    """
    most = min(reader.context_length for reader in readers)
    if window is not None and window > most:
        cause = f"a window of {window} tokens exceeds the context of {most}"
        raise UserError("eval.window", cause, f"ask for --window {most} or less")
    windows = [text_windows(reader, text, tokens, window or min(WINDOW, most)) for reader in readers]
    for subject, found in zip(subjects, windows, strict=True):
        if not np.array_equal(found, windows[0]):
            cause = f"{subject.directory} and {subjects[0].directory} read the text as different tokens"
            raise UserError("eval.reference", cause, "compare models that share a tokenizer")
    return windows[0]


def write_text_reports(output: Path, evaluations: Sequence[TextEvaluation], title: str) -> None:
    """report.html and report.md of evaluations on one text, beside their JSON files.

    Raises:
        UserError: they cannot be written.
    """
    write_text_page(output / "report.html", evaluations, title=title, facts=shared_facts(evaluations))
    write_whole(output / "report.md", [text_markdown(evaluations), "\n", checks_markdown(evaluations)])


def _read(path: Path) -> str:
    return read_text(path, "task.text", limit=TEXT, fix="give a UTF-8 text file")


def text_windows(scorer: TextScorer, path: Path, tokens: int, window: int) -> list[np.ndarray]:
    """Consecutive windows int64 `[window]` from the middle of a text, each with the tokens that open a text.

    Raises:
        UserError: the text cannot be read or is shorter than one window.
    """
    text, room = _read(path), tokens * _CHARACTERS
    inner = window - len(scorer.opening)
    if inner < 2 or tokens < window:
        cause = f"{tokens} tokens in windows of {window}, {len(scorer.opening)} of them to open the text, are too few"
        raise UserError("eval.window", cause, "ask for more --tokens, or another --window")
    start = max(0, (len(text) - room) // 2)
    ids = scorer.encode(text[start : start + room])
    count = min(tokens // window, len(ids) // inner)
    if count < 1:
        cause = f"{path} has {len(ids)} tokens around its middle, and a window takes {window}"
        raise UserError("task.text", cause, "give a longer text, or ask for a shorter --window")
    opening = np.array(scorer.opening, np.int64)
    return [np.concatenate([opening, ids[i * inner : (i + 1) * inner]]) for i in range(count)]
