"""Perplexity of packages on a text, the reference built on the fly."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from hvlc.errors import UserError
from hvlc.evaluation.perplexity import perplexity
from hvlc.manifest import MANIFEST
from hvlc.pipeline.build import build
from hvlc.pipeline.request import BuildRequest
from hvlc.results import Perplexity
from hvlc.runtime.logits import TextScorer

#: Tokens that are scored, and tokens of a window, where nothing else is said.
TOKENS, WINDOW = 16_384, 1_024
_CHARACTERS = 8  # of a token, more than any text of a language has on average

#: Told what is being done, how far it is, and how far it goes.
Progress = Callable[[str, int, int], None]


def measure_perplexities(
    directories: Sequence[Path],
    text: Path,
    *,
    tokens: int = TOKENS,
    window: int | None = None,
    progress: Progress = lambda *_: None,
) -> list[Perplexity]:
    """How packages, or checkpoints built without quantization, read the middle of a text.

    Args:
        directories: a language package or a checkpoint each, all with the same tokenizer.
        text: UTF-8.
        tokens: how many are scored, at most; whole windows.
        window: tokens that are read at once, without what stood before; None is `WINDOW`, or as many as all read.
        progress: told after each window.

    Raises:
        UserError: something is no language package, reads shorter windows or has another tokenizer, or the text cannot
            be read or is shorter than one window.
    """
    _read(text)  # before a reference is built
    with ExitStack() as stack:
        scorers = [stack.enter_context(_opened(directory)) for directory in directories]
        most = min(scorer.context_length for scorer in scorers)
        if window is not None and window > most:
            cause = f"a window of {window} tokens exceeds the context of {most}"
            raise UserError("eval.window", cause, f"ask for --window {most} or less")
        windows = [text_windows(scorer, text, tokens, window or min(WINDOW, most)) for scorer in scorers]
        for directory, found in zip(directories, windows, strict=True):
            if not np.array_equal(found, windows[0]):
                cause = f"{directory} and {directories[0]} read the text as different tokens"
                raise UserError("eval.reference", cause, "compare models that share a tokenizer")
        total, done = len(directories) * len(windows[0]), 0
        measured = []
        for directory, scorer in zip(directories, scorers, strict=True):

            def step(name: str = directory.name) -> None:
                nonlocal done
                done += 1
                progress(name, done, total)

            measured.append(perplexity(scorer.logits, windows[0], step))
    return measured


@contextmanager
def _opened(directory: Path) -> Iterator[TextScorer]:
    """A package; of a checkpoint a float32 one that is built for as long."""
    if (directory / MANIFEST).is_file():
        yield TextScorer(directory)
        return
    with tempfile.TemporaryDirectory(prefix="hvlc-") as work:
        reference = Path(work) / "float32"
        build(BuildRequest(directory, "cpu", "float32", reference))
        yield TextScorer(reference)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("task.text", f"cannot read {path}: {error}", "give a UTF-8 text file") from error


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
