"""Plain texts, cut into windows of equal length that are evenly spaced."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from hvlc.errors import Collector, UserError
from hvlc.files.reading import decoded, read_bytes, shown, state_of

#: Characters that are turned into tokens at a time: a tokenizer keeps a hundred bytes of each token's whereabouts.
_PIECE = 1 << 18

#: Characters that are sure to hold a token of usual text; English has four to five.
_ROOM = 10

_SPACES = " \n"

#: Bytes of text in one set; 128 windows of 512 tokens are about 0.3 MB.
_MOST_TEXT = 1 << 26


def evenly_spaced(available: int, wanted: int) -> list[int]:
    """Up to `wanted` of the positions 0 to `available - 1`, at even distances."""
    if wanted >= available:
        return list(range(available))
    return [(2 * i + 1) * available // (2 * wanted) for i in range(wanted)]


def windows(text: str, encode: Callable[[str], Sequence[int]], length: int, count: int) -> list[np.ndarray]:
    """Up to `count` disjoint windows of `length` tokens, at even distances; none of a text that is shorter.

    In a long text each window has a stretch of its own, at whose first white space it begins, so that no more than
    needed becomes tokens. A shorter one becomes tokens as a whole.

    Returns:
        int64 `[length]` each.
    """
    stretch = len(text) // count
    if stretch >= _ROOM * length:
        begun = (_begun(text, at * stretch, (at + 1) * stretch)[: _ROOM * length] for at in range(count))
        found = [np.array(encode(part)[:length], np.int64) for part in begun]
        if all(len(window) == length for window in found):
            return found
    ids = tokenized(text, encode)
    return [ids[at * length : (at + 1) * length] for at in evenly_spaced(len(ids) // length, count)]


def _begun(text: str, start: int, end: int) -> str:
    """A stretch of a text from its first white space on; all of one that has none, or begins the text."""
    found = [at for at in (text.find(mark, start, end) for mark in _SPACES) if at >= 0]
    return text[min(found, default=start) if start else 0 : end]


def tokenized(text: str, encode: Callable[[str], Sequence[int]]) -> np.ndarray:
    """int64 `[n]`: the tokens of a text."""
    return np.concatenate([np.array(encode(piece), np.int64) for piece in _pieces(text)])


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end before white space, where no token of a usual tokenizer is cut."""
    start = 0
    while len(text) - start > _PIECE:
        cut = max(text.rfind(mark, start + 1, start + _PIECE) for mark in _SPACES)
        end = cut if cut > start else start + _PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def read_texts(paths: Sequence[Path]) -> list[str]:
    """The texts of some files.

    Raises:
        UserError: files cannot be read, are in another encoding or hold no text, all of them at once; or they are too
            large.
    """
    size = sum(state.st_size for path in paths if (state := state_of(path)) is not None)
    if size > _MOST_TEXT:
        cause = f"{size / 1e6:.0f} MB of text, and {_MOST_TEXT / 1e6:.0f} MB are the most"
        raise UserError("calibration.too_large", cause, "give an excerpt; less than 1 MB is enough")
    found, texts = Collector(), []
    for path in paths:
        with found:
            texts.append(_read_text(path))
    found.raise_all()
    return texts


def _read_text(path: Path) -> str:
    content = read_bytes(path, "calibration.unreadable", limit=_MOST_TEXT)
    try:
        text = decoded(content)
    except UnicodeDecodeError as error:
        cause = f"{shown(path)} is not UTF-8 ({error.reason} at byte {error.start})"
        raise UserError("calibration.encoding", cause, "convert it to UTF-8") from error
    if not text.strip():
        raise UserError("calibration.empty", f"{shown(path)} holds no text", "give a file with text")
    return text


def builtin_text() -> str:
    """English that is everywhere: the help topics of Python's interpreter, under the PSF licence.

    They are prose about programming with grammars in between, some 0.45 MB, and change a little with Python's minor
    version. They stand in where nothing better is at hand: a text of what the model will be used for is always
    better.

    Raises:
        UserError: this Python was stripped of them.
    """
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        cause = "this Python comes without its help topics (pydoc_data)"
        fix = "give a text file of your own, which is better anyway"
        raise UserError("calibration.no_text", cause, fix) from error
    return "\n\n".join(topics[name].strip() for name in sorted(topics))
