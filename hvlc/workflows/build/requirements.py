"""Requirements before weights are read: the packages that only building needs, and a tokenizer."""

import importlib.util
from pathlib import Path

from hvlc.errors import UserError
from hvlc.weights.checkpoint import Checkpoint


def require_compile(work: str) -> None:
    """Refuse work that needs what only building installs, where it is not installed.

    Raises:
        UserError: torch, transformers, optimum or numba is missing.
    """
    missing = [name for name in ("torch", "transformers", "optimum", "numba") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError("install.compile", f"{work} needs {', '.join(missing)}", "pip install 'hvlc[compile]'")


def text_files(checkpoint: Checkpoint, scratch: Path) -> Path:
    """Directory of the tokenizer: beside the weights, or `scratch` when a GGUF file has it inside.

    Raises:
        UserError: the file's tokenizer cannot be read.
    """
    if checkpoint.gguf is None or (checkpoint.directory / "tokenizer.json").is_file():
        return checkpoint.directory
    from hvlc.export.gguf_tokenizer import write_gguf_tokenizer

    write_gguf_tokenizer(checkpoint.gguf, scratch)
    return scratch
