"""A tokenizer of bytes, with the special tokens that a test asks for."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(special: Iterable[str], *, newlines_merge: bool = True) -> PreTrainedTokenizerFast:
    """Every byte is a token; two newlines are one more where `newlines_merge`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    merges = [("Ċ", "Ċ")] if newlines_merge else []
    vocabulary |= {"ĊĊ": len(vocabulary)} if newlines_merge else {}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
