"""The byte-level tokenizer of `smolvlm-nano`: one token a byte, then SmolVLM's special tokens."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from hvlc.training.tokenizer import END_OF_TEXT, build_byte_tokenizer

START = "<|im_start|>"
END = "<end_of_utterance>"
FAKE = "<fake_token_around_image>"
OVERVIEW = "<global-img>"
IMAGE = "<image>"
VIDEO = "<video>"

#: Without a use, so that the vocabulary is a multiple of 16.
RESERVED = tuple(f"<|reserved_special_token_{number}|>" for number in range(5))

#: Rows and columns of tiles that have a token, as in the public checkpoints.
GRID = 6

TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, GRID + 1) for column in range(1, GRID + 1))

#: Special tokens in the order of their ids, which follow the 256 bytes.
SPECIAL_TOKENS = (END_OF_TEXT, START, END, FAKE, OVERVIEW, IMAGE, VIDEO, *TILES, *RESERVED)

VOCABULARY_SIZE = 256 + len(SPECIAL_TOKENS)

#: SmolVLM2's, without the blank after a colon: an answer is the text alone. Plain enough for the small Jinja engine of
#: onnxruntime-genai.
CHAT_TEMPLATE = (
    "<|im_start|>"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant:{% elif message['role'] == 'system' %}System:{% else %}User:"
    "{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<end_of_utterance>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def special_token_id(token: str) -> int:
    """The id of one of `SPECIAL_TOKENS`."""
    return 256 + SPECIAL_TOKENS.index(token)


def build_smolvlm_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with the attributes that SmolVLM's processor asks for."""
    named = {
        "image_token": IMAGE,
        "fake_image_token": FAKE,
        "global_image_token": OVERVIEW,
        "end_of_utterance_token": END,
        "video_token": VIDEO,
    }
    return build_byte_tokenizer(SPECIAL_TOKENS, END, CHAT_TEMPLATE, named)
