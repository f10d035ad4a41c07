"""Texts that tokenizers stumble over, on which the runtime is compared with the library that wrote the tokenizer."""

from collections.abc import Iterator

#: Texts as any conversation has them. Two tokenizers that differ here are not the same tokenizer.
ORDINARY = (
    "What is 2 + 2?",
    "The quick brown fox jumps over the lazy dog.",
    " leading and  double  spaces and trailing ",
    "two\nlines\n\nand a third\n",
    "It's Tom's; they're \"quoted\", (bracketed) [1] {2} <3>.",
    "In 2024, 1234567 of 3.14159 made 100 %: $5.00, #7, 50/50, a_b-c.",
    "Grüße aus Köln, à bientôt, mañana, Ærø, Łódź.",
    "Привет, мир! Γειά σου Κόσμε.",
    "你好，世界。こんにちは 안녕하세요",
    "שלום עולם مرحبا بالعالم नमस्ते",
    "def f(x):\n    return {'a': x**2}  # comment\n\tif not x: pass",
    "https://example.org/path?query=1&other=a%20b#fragment",
    "\U0001f600 and \U0001f44d\U0001f3fd",
)

#: Texts that are rare in conversations.
RARE = {
    "decomposed letters": "cafe\u0301 A\u030a n\u0303 \u1100\u1161",
    "compatibility characters": "\ufb01ne \u2460 \uff21\uff22\uff5c \u00bd \u212b",
    "tabs and line ends of other systems": "a\tb\t\tc\r\nd\re",
    "spaces of other widths": "a\u00a0b\u2009c\u3000d\u200be",
    "control characters": "a\x01b\x07c\x1bd\x7fe\u0085f",
    "emoji joined from several": "\U0001f9d1\u200d\U0001f52c \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "marks of direction": "\u202babc\u202c \u2067d\u2069 \u200ff",
    "characters that are none": "a\ufffeb\uffffc\U0010ffffd",
    "private and unassigned characters": "\ue000 \U000f0000 \u0378",
    "many spaces": "a" + " " * 40 + "b" + "\n" * 12 + "c",
    "a long word": "antidisestablishmentarianism" * 20,
    "digits of other scripts": "\u0661\u0662\u0663 \u096a\u096b",
    "capital letters that change length": "\u0130stanbul Stra\u00dfe \u01c5",
    "an opening byte order mark": "\ufeffa",
}


def around(tokens: list[str]) -> Iterator[tuple[str, str]]:
    """Texts that hold each of some tokens, alone and between words, by what they are."""
    for token in tokens:
        yield f"the token {token}", token
        yield f"the token {token} between words", f"a{token}b {token} c"
