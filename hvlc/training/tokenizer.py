"""The byte-level tokenizer of the reference checkpoint: one token a byte, eight special tokens."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
IMAGE = "<|image_pad|>"
ROW = "<|vision_pad|>"

#: Special tokens in the order of their ids, which follow the 256 bytes.
SPECIAL_TOKENS = (END_OF_TEXT, END_OF_TURN, USER, ASSISTANT, VISION_START, VISION_END, IMAGE, ROW)

VOCABULARY_SIZE = 256 + len(SPECIAL_TOKENS)

#: Plain enough for the small Jinja engine of onnxruntime-genai.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def special_token_id(token: str) -> int:
    """The id of one of `SPECIAL_TOKENS`."""
    return 256 + SPECIAL_TOKENS.index(token)


def build_nano_tokenizer() -> PreTrainedTokenizerFast:
    """A byte tokenizer with `SPECIAL_TOKENS`."""
    return build_byte_tokenizer(SPECIAL_TOKENS, END_OF_TURN, CHAT_TEMPLATE, list(SPECIAL_TOKENS[2:]))


def build_byte_tokenizer(
    special: Sequence[str], end: str, chat_template: str, extra: Sequence[str] | dict[str, str]
) -> PreTrainedTokenizerFast:
    """A BPE without merges over the 256 byte symbols: byte b has id b, special tokens follow.

    Args:
        special: Special tokens in the order of their ids, `END_OF_TEXT` among them.
        end: The one that ends an answer.
        chat_template: Jinja.
        extra: Those that are named in the configuration besides, with the names of their attributes if they have any.
    """
    symbols = _byte_symbols()
    vocabulary = {symbol: byte for byte, symbol in enumerate(symbols)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        eos_token=end,
        extra_special_tokens=extra,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=2048,
        chat_template=chat_template,
    )


def _byte_symbols() -> list[str]:
    """The printable character that the ByteLevel pre-tokenizer uses for each byte (as in GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols, extra = [], 0
    for byte in range(256):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(256 + extra))
            extra += 1
    return symbols
