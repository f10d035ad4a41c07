"""A package's decoder at every position of a text: what onnxruntime-genai, which wants the next token, leaves out."""

from functools import cached_property
from pathlib import Path

import numpy as np

from hvlc.errors import UserError
from hvlc.graphs.builder import keep_all_logits
from hvlc.graphs.facts import Kind
from hvlc.graphs.states import empty_shape
from hvlc.inputs.tokenizer import opening_tokens
from hvlc.opening.cutting import load_ir, session_of
from hvlc.opening.package import open_package
from hvlc.opening.sessions import PackageSession, session_options
from hvlc.runtime.fixed import DTYPES, StagedDecoder
from hvlc.runtime.providers import open_engine


class TextScorer:
    """The decoder of a language package, with its own weights and kernels, opened for whole windows of text.

    Args:
        directory: what `hvlc build` wrote.
        threads: of the session; 0 lets onnxruntime choose.

    Attributes:
        opening: ids that come before a text.
        context_length: tokens that it reads at most.

    Raises:
        UserError: see `open_package`; or the package has no decoder that reads tokens.
    """

    def __init__(self, directory: Path, threads: int = 0) -> None:
        self._directory = directory
        self._threads = threads
        self._package = open_package(directory, verify=True)
        self._manifest = self._package.manifest
        if self._manifest.kind is not Kind.LANGUAGE:
            cause = f"{directory} is a {self._manifest.kind} package, and text alone is scored by language packages"
            raise UserError("package.kind", cause, "name a language package, or a task with images")
        self._file = None if self._manifest.is_staged else self._manifest.whole_decoder.file
        self.opening = tuple(opening_tokens(directory, "package.tokenizer"))
        self.context_length = int(self._manifest.context_length or 0)  # every language package has one

    def encode(self, text: str) -> np.ndarray:
        """int64 `[n]`: the tokens of a text and nothing else.

        Raises:
            UserError: onnxruntime-genai cannot open the package or its tokenizer, or cannot take the text whole.
        """
        _, tokenizer = open_engine(self._package)  # opens with the whole model, and goes before the session
        return np.array(tokenizer.encode(text, "task.text"), np.int64)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """float32 `[n, vocabulary]`: what the decoder says after each token of int64 `[n]`.

        Raises:
            UserError: onnxruntime cannot open or run the graph.
        """
        if self._file is None:
            return self._staged.logits(ids)
        mask = np.ones((1, len(ids)), np.int64)
        past = {
            value.name: np.zeros(empty_shape(value.shape), DTYPES[value.type])
            for value in self._session.get_inputs()
            if value.name not in ("input_ids", "attention_mask")
        }
        feeds = {"input_ids": ids[None].astype(np.int64), "attention_mask": mask, **past}
        logits: np.ndarray = self._session.run(["logits"], feeds)[0][0]
        return logits

    def close(self) -> None:
        """Free the session; the next text opens it again."""
        self.__dict__.pop("_session", None)
        self.__dict__.pop("_staged", None)

    @cached_property
    def _staged(self) -> StagedDecoder:
        return StagedDecoder(self._directory, self._manifest, self._threads)

    @cached_property
    def _session(self) -> PackageSession:
        file = self._manifest.whole_decoder.file
        model, folder = load_ir(self._directory / file)
        keep_all_logits(model.graph)
        return session_of(file, model, folder, session_options(self._threads))
