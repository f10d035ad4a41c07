"""A package's decoder at every position of a text: what onnxruntime-genai, which wants the next token, leaves out."""

from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from hvlc.errors import UserError
from hvlc.graphs.builder import keep_positions
from hvlc.inputs.tokenizer import opening_tokens
from hvlc.manifest.manifest import FLOAT_PRODUCTS, Kind, Manifest
from hvlc.runtime.fixed import DTYPES, StagedDecoder
from hvlc.runtime.prompt import open_tokenizer
from hvlc.runtime.providers import load_decoder

_FOLDER = "session.model_external_initializers_file_folder_path"


class TextScorer:
    """The decoder of a language package, with its own weights and kernels, opened for whole windows of text.

    Args:
        directory: what `hvlc build` wrote.
        threads: of the session; 0 lets onnxruntime choose.

    Attributes:
        opening: ids that come before a text.
        context_length: tokens that it reads at most.

    Raises:
        UserError: the package has no decoder that reads tokens, or a file was changed.
    """

    def __init__(self, directory: Path, threads: int = 0) -> None:
        self._directory = directory
        self._threads = threads
        self._manifest = Manifest.load(directory)
        self._manifest.verify(directory)
        if self._manifest.kind is not Kind.LANGUAGE:
            cause = f"{directory} is a {self._manifest.kind} package, and text alone is scored by language packages"
            raise UserError("package.kind", cause, "name a language package, or a task with images")
        self._file = None if self._manifest.is_staged else self._manifest.whole_decoder.file
        self.opening = tuple(opening_tokens(directory, "package.tokenizer"))
        self.context_length = int(self._manifest.context_length or 0)  # every language package has one

    def encode(self, text: str) -> np.ndarray:
        """int64 `[n]`: the tokens of a text and nothing else."""
        model = load_decoder(
            self._directory, self._manifest
        )  # its tokenizer opens with the whole model, and goes before the session
        return open_tokenizer(model, self._directory).encode(text).astype(np.int64)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """float32 `[n, vocabulary]`: what the decoder says after each token of int64 `[n]`."""
        if self._file is None:
            return self._staged.logits(ids)
        mask = np.ones((1, len(ids)), np.int64)
        past = {
            value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), DTYPES[value.type])
            for value in self._session.get_inputs()
            if value.name not in ("input_ids", "attention_mask")
        }
        feeds = {"input_ids": ids[None].astype(np.int64), "attention_mask": mask, **past}
        return self._session.run(["logits"], feeds)[0][0]

    def close(self) -> None:
        """Free the session; the next text opens it again."""
        self.__dict__.pop("_session", None)
        self.__dict__.pop("_staged", None)

    @cached_property
    def _staged(self) -> StagedDecoder:
        return StagedDecoder(self._directory, self._manifest, self._threads)

    @cached_property
    def _session(self) -> ort.InferenceSession:
        model = ir.load(self._directory / self._manifest.whole_decoder.file)
        keep_positions(model.graph)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        options.add_session_config_entry(_FOLDER, str(self._directory))
        options.add_session_config_entry(*FLOAT_PRODUCTS)
        serialized = ir.to_proto(model).SerializeToString()
        return ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
