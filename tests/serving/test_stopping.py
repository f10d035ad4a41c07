"""A streamed answer ends before the first stop text, wherever its pieces are cut."""

from hypothesis import given
from hypothesis import strategies as st

from hvlc.serving.stopping import StopTexts

WORDS = st.text(alphabet="ab\n", max_size=12)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3)


def cut(text: str, stops: list[str]) -> str:
    """The oracle: the whole text up to the first stop text."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


@given(st.lists(WORDS, max_size=6), STOPS)
def test_pieces_join_to_the_text_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    filtered = StopTexts(stops)
    told = []
    for piece in pieces:
        told.append(filtered.feed(piece))
        if filtered.stopped:
            break
    found = "".join([*told, filtered.rest()])
    # One piece may hold two stop texts, of which the earlier counts; a later piece is never read.
    assert cut("".join(pieces), stops).startswith(found) or found == cut("".join(pieces), stops)
    assert not any(stop in found for stop in stops)
    assert filtered.stopped == any(stop in "".join(pieces) for stop in stops)


@given(WORDS, STOPS)
def test_one_piece_is_the_oracle(text: str, stops: list[str]) -> None:
    filtered = StopTexts(stops)
    assert filtered.feed(text) + filtered.rest() == cut(text, stops)


def test_text_that_no_stop_begins_with_is_let_out_at_once() -> None:
    filtered = StopTexts(["stop"])
    assert [filtered.feed(piece) for piece in ("a st", "ill s", "to", "p it", "x")] == ["a ", "still ", "", "", ""]
    assert filtered.stopped
    assert filtered.rest() == ""
