"""A checkpoint's own rendering of chats, for what compares a package with it."""

from pathlib import Path

from hvlc.chat.renderer import Messages, Refusal, Renderer
from hvlc.chat.source import CODE, read_specials, read_template
from hvlc.errors import UserError
from hvlc.files.reading import shown


class CheckpointTemplate:
    """A checkpoint's chat template, read once; all its chats are rendered in one process.

    Args:
        directory: the checkpoint.

    Raises:
        UserError: the template is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        found = read_template(directory)
        self._text = found.text if found else None
        self._specials = read_specials(directory) if found else {}
        self._renderer = Renderer({})

    def rendered(self, messages: Messages) -> str | None:
        """Messages as transformers renders them, up to where the answer begins; None where there is no template.

        Raises:
            UserError: the template refuses the messages, or does not come to an end.
        """
        if self._text is None:
            return None
        text = self._renderer.transformers(messages, self._text, self._specials, answers=True)
        if isinstance(text, Refusal):
            cause = f"cannot render the chat template of {shown(self._directory)}: {text.cause}"
            raise UserError(CODE, cause, "correct the template")
        return text
