"""Directory that onnxruntime-genai is given for a package: links to the files that the manifest lists, and a
configuration that hvlc writes itself.

It looks for files by their names in the directory of its configuration, and does what they say. So it is given a
directory of its own. Links lead to where the files really are, because onnxruntime takes external data through a link
only where the graph is one too, and both end in one directory (run: tests/opening/test_engine.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hvlc.errors import UserError
from hvlc.files.reading import is_file, shown
from hvlc.files.scratch import temporary_directory
from hvlc.files.writing import writing
from hvlc.opening.configuration import CONFIGURATION
from hvlc.opening.package import Package
from hvlc.opening.tokenizer import TOKENIZER_FILES, check_tokenizer


@contextmanager
def engine_directory(package: Package) -> Iterator[Path]:
    """A directory that onnxruntime-genai opens in place of the package, for as long as it opens it.

    Raises:
        UserError: a file of the tokenizer is damaged, or the temporary directory cannot be written.
    """
    check_tokenizer(package.directory)
    with temporary_directory("engine") as directory:
        with writing(directory, "output.write", "what onnxruntime-genai opens"):
            (directory / CONFIGURATION).write_text(package.configuration.text(), "utf-8")
            for file in package.manifest.files:
                if _is_shown(file) and is_file(package.directory / file):
                    (directory / file).symlink_to((package.directory / file).resolve())
        yield directory


def _is_shown(file: str) -> bool:
    """Whether the runtime may find a file by its name."""
    return file in TOKENIZER_FILES or file.endswith((".onnx", ".onnx.data", ".bin"))


@contextmanager
def engine_runs(directory: Path, what: str = "run", code: str = "package.graph") -> Iterator[None]:
    """A block that calls onnxruntime-genai, whose every error is a RuntimeError.

    Args:
        directory: the package.
        what: that it is asked to do, for the message.
        code: of the error.

    Raises:
        UserError: it refused.
    """
    try:
        yield
    except MemoryError as error:
        raise EngineError(code, f"{shown(directory)}: there is not enough memory to {what} it", _FIX) from error
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # the others are of its Python binding
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise EngineError(code, f"onnxruntime-genai cannot {what} {shown(directory)}: {said}", _FIX) from error


class EngineError(UserError):
    """onnxruntime-genai refuses a package, or cannot run it."""


_FIX = "build or copy the package again"
