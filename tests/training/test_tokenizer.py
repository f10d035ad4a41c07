"""Bytes in, bytes out; special tokens where the configuration expects them."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from hvlc.training import tokenizer as tokens


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.build_nano_tokenizer()


@pytest.mark.parametrize("text", ["What is the total?", "12.50\n7,00 %", " two  spaces ", "Grüße 你好", "\x00\x7f"])
def test_text_is_its_bytes_and_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_special_tokens_follow_the_bytes(tokenizer):
    assert len(tokenizer) == tokens.VOCABULARY_SIZE == 264
    for offset, token in enumerate(tokens.SPECIAL_TOKENS):
        assert tokenizer.convert_tokens_to_ids(token) == 256 + offset == tokens.special_token_id(token)
    assert (tokenizer.pad_token, tokenizer.bos_token) == (tokens.END_OF_TEXT, tokens.END_OF_TEXT)
    assert tokenizer.eos_token == tokens.END_OF_TURN


def test_chat_template(tokenizer):
    content = [{"type": "image"}, {"type": "text", "text": "Total?"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "7.50"},
        {"role": "user", "content": "Tax?"},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|user|><|vision_start|><|image_pad|><|vision_end|>Total?<|im_end|>"
        "<|assistant|>7.50<|im_end|><|user|>Tax?<|im_end|><|assistant|>"
    )


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|user|>What?<|im_end|>"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.chat_template == tokenizer.chat_template
