"""The tokenizer inside a GGUF file, as the files that onnxruntime-genai reads: the same ids as llama.cpp's.

transformers' own conversion respells tokens with characters outside the byte alphabet (DeepSeek's control tokens) and
adds them again behind the table, adds no token before a text that llama.cpp adds, and splits text GPT-2's way when it
does not know the file's `tokenizer.ggml.pre`. So the vocabulary is read here, its ways of splitting are transformers',
and only those that are known are taken.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.tokenization_utils_base import generate_merges

from hvlc.errors import UserError
from hvlc.files.reading import shown
from hvlc.files.writing import writing
from hvlc.weights.gguf.file import GgufFile, read_gguf
from hvlc.weights.gguf.vocabulary import BYTE_LEVEL, Vocabulary, read_vocabulary

_CODE = "checkpoint.tokenizer"
_FIX = "put tokenizer.json and tokenizer_config.json beside the file, and name the directory"
_GPT2 = ("gpt-2", "gpt2")
_SINGLE_DIGITS = ("smollm",)  # GPT-2's way, every digit for itself (llama.cpp's LLAMA_VOCAB_PRE_TYPE_SMOLLM)
_SPACE = "\u2581"  # how SentencePiece writes a space
_TABLE = "token_embd.weight"


def write_gguf_tokenizer(path: Path, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template of a GGUF file.

    Raises:
        UserError: the file holds no tokenizer, or one that is not known to be rebuilt right; or the directory cannot be
            written.
    """
    file = read_gguf(path)
    vocabulary = read_vocabulary(file)
    _check(file, vocabulary)
    tokenizer = _byte_level(vocabulary) if vocabulary.kind == BYTE_LEVEL else _sentencepiece(vocabulary)
    _add_tokens(tokenizer, vocabulary)
    moved = [t for i, t in enumerate(vocabulary.tokens) if tokenizer.token_to_id(t) != i]
    if moved or tokenizer.get_vocab_size() != len(vocabulary.tokens):
        cause = f"{shown(path)}: its tokenizer cannot be rebuilt with the same ids: {moved[:3]}"
        raise UserError(_CODE, cause, _FIX)
    with writing(directory, _CODE, "the file's tokenizer"):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
        (directory / "tokenizer_config.json").write_text(json.dumps(_config(vocabulary), indent=1), "utf-8")
        template = _template(vocabulary)
        if template is not None:
            (directory / "chat_template.jinja").write_text(template, "utf-8")


def _check(file: GgufFile, vocabulary: Vocabulary) -> None:
    """Refuse what is not known to give llama.cpp's tokens, or none that the model has a row for.

    Raises:
        UserError: an unknown way of splitting, more tokens than rows, or a token after each text.
    """
    known = (*GGUF_PRE_TOKENIZER_SPLITS, *_GPT2, *_SINGLE_DIGITS)
    causes = []
    if vocabulary.kind == BYTE_LEVEL and vocabulary.split not in known:
        causes.append(f"its tokenizer {vocabulary.kind!r} with the splitting {vocabulary.split[:80]!r} is not read")
    rows = file.entries[_TABLE].shape[0] if _TABLE in file.entries else len(vocabulary.tokens)
    if len(vocabulary.tokens) > rows:
        causes.append(f"it has {len(vocabulary.tokens)} tokens and {rows} rows in {_TABLE}")
    if vocabulary.adds_eos:
        causes.append("tokenizer.ggml.add_eos_token is true: the model is not made to go on with a text")
    if causes:
        raise UserError(_CODE, f"{shown(file.path)}: {'; '.join(causes)}", _FIX)


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    """BPE over bytes spelled as characters; control tokens keep their own spelling, which no merge reaches."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    model = models.BPE(vocab=ids, merges=list(vocabulary.merges), ignore_merges=vocabulary.whole_words)
    tokenizer = Tokenizer(model)
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if vocabulary.split in _SINGLE_DIGITS:
        before: list[Any] = [pre_tokenizers.Digits(individual_digits=True)]
    elif vocabulary.split in _GPT2:
        before = []
    else:
        pattern = Regex(GGUF_PRE_TOKENIZER_SPLITS[vocabulary.split])
        before = [pre_tokenizers.Split(pattern, behavior="isolated")]
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, spelled]) if before else spelled
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    """BPE over characters, what has no token in bytes; llama.cpp puts a space before every piece of text."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=False))
    merges = generate_merges(ids, scores)
    unknown = None if vocabulary.unknown is None else vocabulary.tokens[vocabulary.unknown]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, byte_fallback=True, fuse_unk=True, unk_token=unknown))
    spaces = normalizers.Replace(" ", _SPACE)
    first: list[Any] = [normalizers.Prepend(_SPACE)] if vocabulary.adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*first, spaces]) if first else spaces
    last: list[Any] = [decoders.Strip(" ", 1, 0)] if vocabulary.adds_space else []
    bytes_to_text = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*bytes_to_text, *last])
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Tokens that are found whole in a text, and what stands before a text."""
    special = [AddedToken(vocabulary.tokens[i], normalized=False, special=True) for i in vocabulary.special]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(vocabulary.tokens[i], normalized=False) for i in vocabulary.user_defined])
    if vocabulary.adds_bos and vocabulary.bos is not None:
        text = vocabulary.tokens[vocabulary.bos]
        begin = {"id": text, "ids": [vocabulary.bos], "tokens": [text]}
        single = [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        content = json.loads(tokenizer.to_str())
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": {text: begin},
        }
        tokenizer.post_processor = Tokenizer.from_str(json.dumps(content)).post_processor
    else:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])


def _config(vocabulary: Vocabulary) -> dict[str, Any]:
    """Content of tokenizer_config.json besides the chat template."""

    def text(index: int | None) -> str | None:
        return None if index is None else vocabulary.tokens[index]

    return {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": text(vocabulary.bos),
        "eos_token": text(vocabulary.eos),
        "unk_token": text(vocabulary.unknown),
        "pad_token": text(vocabulary.padding),
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }


def _template(vocabulary: Vocabulary) -> str | None:
    """The chat template, which begins with the token that llama.cpp puts before every text.

    llama.cpp adds it to a rendered chat too, and takes it out first where the template writes it.
    """
    template, bos = vocabulary.chat_template, vocabulary.bos
    if template is None or not vocabulary.adds_bos or bos is None:
        return template
    text = vocabulary.tokens[bos]
    if "bos_token" in template or text in template:
        return template
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}{template}"
