"""The tokenizer inside a GGUF file, as the files that onnxruntime-genai reads.

transformers rebuilds it from the metadata. It leaves how text is split before merging at GPT-2's way when it does not
know the file's `tokenizer.ggml.pre`, which gives other tokens without a word; so only ways that are known are taken.
"""

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from hvlc.errors import UserError
from hvlc.weights.gguf.file import read_gguf

_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"  # values of tokenizer.ggml.model
_GPT2 = ("gpt-2", "gpt2")
_SINGLE_DIGITS = ("smollm",)  # GPT-2's way, every digit for itself (llama.cpp's LLAMA_VOCAB_PRE_TYPE_SMOLLM)


def write_gguf_tokenizer(path: Path, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template of a GGUF file.

    Raises:
        UserError: the file holds no tokenizer, or one that is not known to be rebuilt right.
    """
    metadata = read_gguf(path).metadata  # refuses what would keep the readers below busy
    fix = "put tokenizer.json and tokenizer_config.json beside the file, and name the directory"
    kind, split = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    known = kind == _SENTENCEPIECE or (
        kind == _BYTE_LEVEL and split in (*GGUF_PRE_TOKENIZER_SPLITS, *_GPT2, *_SINGLE_DIGITS)
    )
    if not known:
        cause = f"{path}: its tokenizer {kind!r} with the splitting {split!r} is not read"
        raise UserError("checkpoint.tokenizer", cause, fix)
    try:
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
        if split in _SINGLE_DIGITS:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        tokenizer.save_pretrained(directory)
    except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        raise UserError("checkpoint.tokenizer", f"{path}: its tokenizer is damaged: {error}", fix) from error
