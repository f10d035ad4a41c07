"""Turns of a chat: the text that a chat template puts between an answer and the next one.

The KV cache holds the first prompt and the tokens of the answer as they were generated; a later turn is only what the
template writes after them. So the whole chat is rendered with and without the turn, and what both begin with must not
differ: a template that changes earlier turns (one that drops thoughts, for instance) describes another sequence than
the cache holds.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hvlc.errors import UserError
from hvlc.runtime.prompt import PackageTokenizer

#: Messages of a chat, each with "role" and "content", as the engine of chat templates takes them.
Chat = tuple[Mapping[str, Any], ...]

_ANSWERED = "-"  # stands for an answer without text, whose place in the rendered chat could not be found


def next_turn(tokenizer: PackageTokenizer, chat: Chat, answer: str, prompt: str) -> tuple[Chat, str]:
    """Append an answer and a question to a chat.

    Args:
        tokenizer: renders.
        chat: ends with the question that was answered.
        answer: its text.
        prompt: the next question.

    Returns:
        The longer chat, and its text from the end of the answer to where the next answer begins.

    Raises:
        UserError: the template cannot be rendered, or writes earlier turns otherwise once a later one follows.
    """
    before, said = tokenizer.rendered(chat), answer if answer.strip() else _ANSWERED
    forms: tuple[Callable[[str], Any], ...] = (str, _in_parts)
    for content in forms:  # some templates write the content of a message only if it is in parts
        longer = (*chat, _message("assistant", content(said)), _message("user", content(prompt)))
        after = text_after(tokenizer.rendered(longer), before, said)
        if after is not None and prompt.strip() in after:
            return longer, after
    cause = "the package's chat template writes the earlier turns of a chat otherwise once a later turn follows"
    raise UserError("package.turns", cause, "ask the question in a chat of its own")


def text_after(rendered: str, before: str, answer: str) -> str | None:
    """The part of a rendered chat that follows an answer.

    White space around the answer counts as the template's or the answer's, whichever wrote it: what was generated stays
    as it is, and the template's before it is not repeated.

    Args:
        rendered: a chat with the answer and a later turn.
        before: the same chat, up to where the answer begins.
        answer: its text, more than white space.

    Returns:
        None: the chat does not begin with `before` and the answer.
    """
    rest = rendered.removeprefix(before).lstrip()
    body = answer.strip()
    if not rendered.startswith(before) or not rest.startswith(body):
        return None
    return rest.removeprefix(body).removeprefix(answer[len(answer.rstrip()) :])


def _message(role: str, content: Any) -> Mapping[str, Any]:
    return {"role": role, "content": content}


def _in_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]
