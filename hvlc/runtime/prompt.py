"""From the prompt to tokens: the package's chat template, or the plain prompt where it has none."""

import json
from pathlib import Path

import onnxruntime_genai as og

from hvlc.errors import UserError


def open_tokenizer(model: og.Model, directory: Path) -> og.Tokenizer:
    """The package's tokenizer.

    Raises:
        UserError: onnxruntime-genai cannot read it.
    """
    try:
        return og.Tokenizer(model)
    except RuntimeError as error:
        cause = f"onnxruntime-genai cannot read the tokenizer in {directory}: {error}"
        raise UserError(
            "package.tokenizer", cause, "correct the checkpoint's tokenizer files and build again"
        ) from error


def templated(tokenizer: og.Tokenizer, content: str | list[dict[str, str]]) -> str:
    """One user message through the chat template, up to where the answer begins.

    Raises:
        UserError: onnxruntime-genai cannot render the template.
    """
    message = json.dumps([{"role": "user", "content": content}])
    try:
        text: str = tokenizer.apply_chat_template(message, add_generation_prompt=True)
    except RuntimeError as error:
        cause = f"onnxruntime-genai cannot render the package's chat template: {error}"
        raise UserError("package.template", cause, "simplify chat_template.jinja of the checkpoint") from error
    return text
