"""Texts that end an answer."""

from collections.abc import Sequence


class StopTexts:
    """A filter over the pieces of an answer: lets out what no stop text can begin in, and ends before the first.

    Args:
        stops: the texts; none of them is empty.

    Attributes:
        stopped: whether one was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """Text that is certain after one more piece."""
        if self.stopped:
            return ""
        self._held += piece
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._take(min(found))
        return self._take(len(self._held) - self._unsure())

    def rest(self) -> str:
        """Text that was held back, once nothing more comes."""
        return "" if self.stopped else self._take(len(self._held))

    def _take(self, count: int) -> str:
        out, self._held = self._held[:count], self._held[count:]
        return out

    def _unsure(self) -> int:
        """Length of the longest end of the held text that a stop text begins with."""
        longest = min(len(self._held), max((len(stop) for stop in self._stops), default=1) - 1)
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)
