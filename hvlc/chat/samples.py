"""Chats on which two engines are compared: every kind of turn, and contents that templates and engines stumble over."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hvlc.chat.renderer import Messages

_PLAIN = "What is 2 + 2?"
_HARD = (
    ' "Quoted" it\'s {{ braces }} {% raw %} {# note #} back\\slash\n\n'
    "\tnext line: café, cafe\u0301, 你好, שלום, \U0001f9d1\u200d\U0001f52c, \uff5c /no_think "
)
_FOREIGN = "\u03a9\u00df? \u4f60\u597d\u3000\u662f \U0001f642."  # nothing that a condition on Latin text holds for
_THOUGHT = "<think>\nFour?\n</think>\n\nIt is 4."


@dataclass(frozen=True)
class Chat:
    """Messages, and what they are for.

    Attributes:
        name: for messages of errors.
        messages: of the chat.
        answers: whether the text ends where the model's turn begins.
        needed: a package that cannot render it is of no use.
    """

    name: str
    messages: Messages
    answers: bool = True
    needed: bool = False


def chats(images: bool) -> Iterator[Chat]:
    """All of them.

    Args:
        images: whether the model sees.
    """
    user, hard = _turn("user", _PLAIN), _turn("user", _HARD)
    assistant, system = _turn("assistant", "It is 4."), _turn("system", "Be brief.\n")
    yield Chat("a user's question", [user], needed=True)
    yield Chat("a question of hard text", [hard])
    yield Chat("a question in another script", [_turn("user", _FOREIGN)])
    yield Chat("turns in another script", [_turn(r, _FOREIGN) for r in ("system", "user", "assistant", "user")])
    yield Chat("an empty question", [_turn("user", "")])
    yield Chat("a finished answer", [user, assistant], answers=False)
    yield Chat("a system's turn and a question", [system, user])
    yield Chat("three turns", [user, assistant, hard])
    yield Chat("a system's turn and five", [system, user, assistant, hard, _turn("assistant", _THOUGHT), user])
    yield Chat("a question after a thought", [user, _turn("assistant", _THOUGHT), _turn("user", "Sure?")])
    yield Chat("a finished thought", [user, _turn("assistant", _THOUGHT)], answers=False)
    yield Chat("many turns", [*([hard, assistant] * 4), user])
    yield Chat("a conversation that ends with hard text", [user, _turn("assistant", _HARD)], answers=False)
    text = {"type": "text", "text": _HARD}
    yield Chat("a content in parts", [{"role": "user", "content": [text]}])
    if images:
        image = {"type": "image"}
        asked = [{"role": "user", "content": [image, {"type": "text", "text": _PLAIN}]}]
        yield Chat("a question about an image", asked, needed=True)
        yield Chat("two images", [{"role": "user", "content": [image, image, text]}])
        yield Chat("an image and three turns", [*asked, assistant, hard])


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
