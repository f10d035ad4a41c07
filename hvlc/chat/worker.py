"""The process that renders chat templates and opens tokenizers, for whoever must outlive them.

A template is a program that somebody else wrote: it may call itself until the stack ends, loop or double a string for
ever, in transformers' engine as in the runtime's. This script is run by `hvlc.chat.renderer`. A request is a line of
JSON with "do", "seconds" and arguments; the answer is a line with "value", "refused" (the engine says what it does not
like) or "error" (the library behind it failed).

Every build and every opened package starts a few of these processes, so each imports only what it is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys

TYPE_CHECKING = False  # typing's own takes longer to import than this script
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

#: Every rendered text is shorter: the context of the models is some thousands of tokens.
_LONGEST = 4_000_000
#: Bytes of the stack: a request's strings share one recursion with the interpreter.
_STACK = 64_000_000


class _RefusedError(Exception):
    """An engine cannot do what a template asks of it, or the template says so itself."""


class Worker:
    """Tokenizers that are open: one of the runtime, and one of the library that made it."""

    def __init__(self) -> None:
        self._runtime: Any = None
        self._reference: Any = None
        self._compiled: dict[str, Any] = {}

    def open_runtime(self, directory: str) -> None:
        """Open a directory's tokenizer in the runtime."""
        import onnxruntime_genai as og

        with _library_errors(RuntimeError, ValueError, TypeError, MemoryError):
            self._runtime = og.Tokenizer(directory)

    def open_reference(self, file: str) -> None:
        """Open a tokenizer.json with the library that wrote it."""
        from tokenizers import Tokenizer

        try:
            self._reference = Tokenizer.from_file(file)
            self._reference.no_truncation()
            self._reference.no_padding()
        except BaseException as error:  # a panic of the library is not an Exception
            raise _RefusedError(str(error)) from error

    def runtime(self, messages: Any, answers: bool) -> str:
        """Render messages in the runtime."""
        try:
            text: str = self._runtime.apply_chat_template(json.dumps(messages), add_generation_prompt=answers)
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise _RefusedError(str(error).partition(" at row ")[0] or type(error).__name__) from error
        return text

    def transformers(
        self, messages: Any, answers: bool, template: str, specials: dict[str, str], today: str | None
    ) -> str:
        """Render messages as transformers' `apply_chat_template` does, without tools and documents."""
        import datetime

        _find_modules()
        from hvlc.chat.jinja import TEMPLATE_ERRORS, environment

        try:
            if template not in self._compiled:
                self._compiled = {template: environment().from_string(template)}
            compiled = self._compiled[template]
            day = datetime.datetime.fromisoformat(today) if today else datetime.datetime.now()
            compiled.globals["strftime_now"] = day.strftime
            pieces, length = [], 0
            asked = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": answers}
            for piece in compiled.generate(**specials, **asked):
                pieces.append(piece)
                length += len(piece)
                if length > _LONGEST:
                    break
            return "".join(pieces)
        except TEMPLATE_ERRORS as error:
            raise _RefusedError(str(error) or type(error).__name__) from error

    def translate(self, template: str, specials: dict[str, str]) -> dict[str, Any]:
        """The template in the runtime's dialect, and why it had to change."""
        _find_modules()
        from hvlc.chat.dialect import translate
        from hvlc.chat.expressions import UntranslatableError
        from hvlc.chat.jinja import TEMPLATE_ERRORS

        try:
            text, changes = translate(template, specials)
        except (UntranslatableError, *TEMPLATE_ERRORS) as error:
            raise _RefusedError(str(error) or type(error).__name__) from error
        return {"text": text, "changes": list(changes)}

    def encode_runtime(self, texts: list[str]) -> list[list[int]]:
        """Tokens of texts in the runtime."""
        with _library_errors(RuntimeError, ValueError, TypeError, MemoryError):
            return [_ids(self._runtime.encode_batch([text])) for text in texts]

    def encode_reference(self, texts: list[str]) -> list[list[int]]:
        """Tokens of texts by the library that wrote the tokenizer."""
        try:
            return [self._reference.encode(text, add_special_tokens=False).ids for text in texts]
        except BaseException as error:  # as above
            raise _RefusedError(str(error)) from error


def _ids(batch: Any) -> list[int]:
    """Ids of the only text of a batch, an int32 tensor `[1, tokens]` of the runtime.

    `Tokenizer.encode` gives the same as an array, for which it imports numpy: more than half of all that a process of a
    few requests takes.
    """
    import ctypes

    rows, tokens = batch.shape()
    if rows != 1:
        raise ValueError(f"the runtime encodes one text as {rows}")
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return list((ctypes.c_int32 * tokens).from_address(address(batch.data(), None))) if tokens else []


def _find_modules() -> None:
    """Let hvlc's own modules be found, after the libraries: this script's directory must not hide one of them."""
    from pathlib import Path

    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:
        sys.path.append(root)


@contextlib.contextmanager
def _library_errors(*errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise _RefusedError(str(error) or type(error).__name__) from error


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print is not an answer
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        do: Callable[..., Any] = getattr(worker, request.pop("do"))
        _limit_time(request.pop("seconds"))
        try:
            answer = {"value": do(**request)}
            if isinstance(answer["value"], str) and len(answer["value"]) > _LONGEST:
                answer = {"refused": f"it writes more than {_LONGEST} characters"}
        except _RefusedError as error:
            answer = {"refused": str(error)[:2000]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _limit_time(seconds: float) -> None:
    """End this process after so much more time of the processor, even when nobody waits for it any more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
