"""A checkpoint's own rendering of a chat, for what compares a package with it."""

from pathlib import Path

from hvlc.chat.renderer import Messages, Refusal, Renderer
from hvlc.chat.source import CODE, read_specials, read_template
from hvlc.errors import UserError
from hvlc.files.reading import shown


def rendered(directory: Path, messages: Messages) -> str | None:
    """Messages as transformers renders them, up to where the answer begins; None where there is no template.

    Raises:
        UserError: the template is damaged, refuses the messages, or does not come to an end.
    """
    found = read_template(directory)
    if found is None:
        return None
    renderer = Renderer({})
    text = renderer.transformers(messages, found.text, read_specials(directory), answers=True)
    renderer.close()
    if isinstance(text, Refusal):
        cause = f"cannot render the chat template of {shown(directory)}: {text.cause}"
        raise UserError(CODE, cause, "correct the template")
    return text
