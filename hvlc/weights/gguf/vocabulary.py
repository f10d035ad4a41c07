"""The vocabulary of a GGUF file as llama.cpp reads it: tokens, merges, and the tokens that begin and end texts.

Source: `llama_vocab::impl::load` in llama.cpp's src/llama-vocab.cpp (2026). What llama.cpp does not take from the file
(defaults by tokenizer type, end-of-generation tokens by their text) is written down here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvlc.errors import UserError
from hvlc.files.reading import shown
from hvlc.weights.gguf.file import GgufFile

#: Values of tokenizer.ggml.model that are read: byte-level BPE, and SentencePiece's BPE.
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"

_KEYS = "tokenizer.ggml"
# Bounds far above those of public tokenizers: rebuilding one takes time by the squares of its tokens' lengths.
_MOST_TOKENS, _MOST_PIECES = 600_000, 50_000_000
#: Token types (llama.h).
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

#: Ways of splitting whose words are looked up whole before merging, and that put a token of beginning before a text.
_LLAMA3 = "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano".split()
_WHOLE_WORDS = frozenset((*_LLAMA3, "tekken", "minicpm5", "youtu"))
_BEGINNING = frozenset((*_LLAMA3, "tekken", "chameleon"))

#: Ids that a SentencePiece vocabulary has where its file names none. Of byte-level ones llama.cpp takes 11 for both.
_DEFAULTS: dict[str, dict[str, int]] = {
    SENTENCEPIECE: {"bos": 1, "eos": 2, "unknown": 0},
    BYTE_LEVEL: {"bos": 11, "eos": 11},
}
#: Texts of tokens that end an answer, whatever their type.
_ENDS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[ "
    "<\uff5cend\u2581of\u2581sentence\uff5c>".split()
)
#: Fill-in-the-middle tokens that end an answer too: keys of the file, else the first text that is there.
_FILLING: dict[str, tuple[str, ...]] = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}


@dataclass(frozen=True)
class Vocabulary:
    """Vocabulary of a file's tokenizer as llama.cpp reads it.

    Attributes:
        kind: tokenizer.ggml.model.
        split: tokenizer.ggml.pre; "" where the file names none.
        tokens: texts by id, all different.
        merges: pairs of a byte-level vocabulary, best first.
        scores: of a SentencePiece vocabulary, higher is merged first.
        special: ids that are found whole in a text, and are not part of what a user reads.
        user_defined: ids that are found whole in a text.
        bos: id of the token before a text.
        eos: id of the token that ends a text.
        unknown: id of the token for what has none.
        padding: id of the padding token.
        adds_bos: whether a text begins with `bos`.
        adds_eos: whether a text ends with `eos`.
        adds_space: whether a SentencePiece text begins with a space.
        whole_words: whether words are looked up whole before merging.
        chat_template: its Jinja source.
    """

    kind: str
    split: str
    tokens: Sequence[str]
    merges: Sequence[tuple[str, str]]
    scores: Sequence[float]
    special: Sequence[int]
    user_defined: Sequence[int]
    bos: int | None
    eos: int | None
    unknown: int | None
    padding: int | None
    adds_bos: bool
    adds_eos: bool
    adds_space: bool
    whole_words: bool
    chat_template: str | None


def read_vocabulary(file: GgufFile) -> Vocabulary:
    """The vocabulary inside a GGUF file.

    Raises:
        UserError: there is none, of another kind, or it is damaged.
    """
    read = _Reader(file)
    kind, split = read.text("model"), read.text("pre")
    if kind not in _DEFAULTS:
        raise read.problem(f"its tokenizer is {kind[:80]!r}, read are {' and '.join(map(repr, _DEFAULTS))}")
    tokens = _named(read.array("tokens", str))
    if not tokens:
        raise read.problem("its tokenizer is damaged: it holds no tokens")
    ids = {token: index for index, token in enumerate(tokens)}
    if len(tokens) > _MOST_TOKENS or sum(len(token) ** 2 for token in tokens) > _MOST_PIECES:
        raise read.problem(f"its {len(tokens)} tokens are more, or longer, than those of any tokenizer")
    if len(ids) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if ids[token] != index)
        raise read.problem(f"its tokenizer is damaged: the token {shown(twice, 80)!r} is there twice")
    types = read.array("token_type", int) or [1] * len(tokens)
    scores = read.array("scores", int, float) or [0.0] * len(tokens)
    for name, values in (("token_type", types), ("scores", scores)):
        if len(values) < len(tokens):
            raise read.problem(f"its tokenizer is damaged: {name} has {len(values)} of {len(tokens)} values")
    ends = set(_ends(read, ids, types))
    special = [i for i in range(len(tokens)) if types[i] in (_UNKNOWN, _CONTROL) or i in ends]
    chosen = {*special}
    found = Vocabulary(
        kind=kind,
        split=split,
        tokens=tokens,
        merges=_merges(read, ids) if kind == BYTE_LEVEL else (),
        scores=scores,
        special=special,
        user_defined=[i for i in range(len(tokens)) if types[i] == _USER_DEFINED and i not in chosen],
        bos=read.token("bos", len(tokens), kind),
        eos=read.token("eos", len(tokens), kind),
        unknown=read.token("unknown", len(tokens), kind),
        padding=read.token("padding", len(tokens), kind),
        adds_bos=read.switch("add_bos_token", kind == SENTENCEPIECE or split in _BEGINNING),
        adds_eos=read.switch("add_eos_token", default=False),
        adds_space=read.switch("add_space_prefix", default=kind == SENTENCEPIECE),
        whole_words=split in _WHOLE_WORDS,
        chat_template=read.template(),
    )
    for added, token, name in ((found.adds_bos, found.bos, "bos"), (found.adds_eos, found.eos, "eos")):
        if added and token is None:
            raise read.problem(f"texts get a token by {_KEYS}.add_{name}_token, and {_KEYS}.{name}_token_id names none")
    return found


def end_tokens(file: GgufFile) -> list[int]:
    """Ids that end an answer (llama.cpp's `special_eog_ids`), the file's eos first; [] where it names none.

    Raises:
        UserError: an id is not a whole number, or the tokens are not texts.
    """
    read = _Reader(file)
    tokens = _named(read.array("tokens", str))
    return _ends(read, {token: index for index, token in enumerate(tokens)}, read.array("token_type", int))


def _ends(read: "_Reader", ids: Mapping[str, int], types: Sequence[int]) -> list[int]:
    """See `end_tokens`."""
    kind, count = read.text("model"), len(ids)
    eos = read.token("eos", count, kind)
    if eos is not None and not read.has("eos_token_id") and types[eos : eos + 1] != [_CONTROL]:
        eos = None  # llama.cpp's default of byte-level vocabularies is an ordinary token in most of them
    found = [eos, *(read.token(key, count, "") for key in ("eot", "eom"))]
    for key, texts in _FILLING.items():
        stated = read.token(key, count, "")
        found.append(stated if stated is not None else next((ids[text] for text in texts if text in ids), None))
    found += sorted(ids[text] for text in _ENDS if text in ids)
    unwanted = _not_ends(ids, {token for token in found if token is not None})
    return [token for token in dict.fromkeys(found) if token is not None and token not in unwanted]


def _not_ends(ids: Mapping[str, int], found: set[int]) -> set[int]:
    """Tokens that end an answer in most vocabularies and not in the one whose other tokens are here."""

    def ends(*texts: str) -> bool:
        return any(ids.get(text) in found for text in texts)

    unwanted: set[int] = set()
    called = ends("<|call|>", "<|calls|>")
    if called and (ends("<|return|>") or ends("<|flush|>")) and "<|end|>" in ids:  # o200k_harmony, Solar
        unwanted.add(ids["<|end|>"])
    if ends("<|tool_response>") and "</s>" in ids:  # Gemma 4
        unwanted.add(ids["</s>"])
    return unwanted


def _named(tokens: Sequence[str]) -> list[str]:
    return [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]


def _merges(read: "_Reader", ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs, split at the first space that is not the first character; they and what they make are tokens."""
    found = []
    merges = read.array("merges", str)
    if not read.has("merges"):
        raise read.problem("its tokenizer is damaged: it holds no merges")
    for merge in merges:
        at = merge.find(" ", 1)
        first, second = merge[: max(at, 0)], merge[at + 1 :]
        if at < 0 or not {first, second, first + second} <= ids.keys():
            raise read.problem(f"its tokenizer is damaged: the merge {shown(merge, 80)!r} is not of its tokens")
        found.append((first, second))
    return found


class _Reader:
    """Metadata of the tokenizer, each value of the type that it must have."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file

    def has(self, key: str) -> bool:
        return f"{_KEYS}.{key}" in self.file.metadata

    def text(self, key: str) -> str:
        found = self.file.metadata.get(f"{_KEYS}.{key}", "")
        if not isinstance(found, str):
            raise self._type(key, found, "a text")
        return found

    def template(self) -> str | None:
        found = self.file.metadata.get("tokenizer.chat_template")
        if found is not None and not isinstance(found, str):
            raise self.problem(f"tokenizer.chat_template is {_brief(found)}, not a text")
        return found or None

    def switch(self, key: str, default: bool) -> bool:
        found = self.file.metadata.get(f"{_KEYS}.{key}", default)
        if not isinstance(found, bool):
            raise self._type(key, found, "true or false")
        return found

    def array(self, key: str, *types: type) -> list[Any]:
        """The list; [] where the file has none."""
        found = self.file.metadata.get(f"{_KEYS}.{key}", [])
        if not isinstance(found, list) or not {type(value) for value in found} <= {*types}:
            raise self._type(key, found, f"an array of {' or '.join(kind.__name__ for kind in types)}")
        return found

    def token(self, key: str, count: int, kind: str) -> int | None:
        """An id of a token that there is: the file's, or the default of a kind of vocabulary."""
        found = self.file.metadata.get(f"{_KEYS}.{key}_token_id")
        if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
            raise self._type(f"{key}_token_id", found, "a whole number")
        if found is None or not 0 <= found < (count or found + 1):
            found = _DEFAULTS.get(kind, {}).get(key)
        return found if found is not None and found < (count or found + 1) else None

    def _type(self, key: str, found: Any, expected: str) -> UserError:
        return self.problem(f"{_KEYS}.{key} is {_brief(found)}, not {expected}")

    def problem(self, cause: str) -> UserError:
        fix = "put tokenizer.json and tokenizer_config.json beside the file, and name the directory"
        return UserError("checkpoint.tokenizer", f"{shown(self.file.path)}: {cause}", fix)


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"an array of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
