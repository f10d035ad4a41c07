"""Random chat templates: refused with a code, or rendered by the runtime as by transformers, on chats not tried before."""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from hvlc.chat.renderer import Refusal, Renderer
from hvlc.chat.settling import Settled, settle
from hvlc.errors import UserError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
PLACE = Path("checkpoint")
SECONDS = 20

SPACES = ("", "", " ", "\n", "\n\n", "  \n  ", "\t")
TEXTS = ("a", "<|im_start|>", "\n", "{", "}", "'", '"', "\\", "é", " - ", "x y", "%}", "#", "end ")
NAMES = ("x", "y", "content", "role", "message")
#: What ends an engine, or never ends in it.
ENDLESS = (
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ 'ab' * 999999999 }}",
    "{% for i in range(99999) %}{{ messages }}{% endfor %}",
)


class Grammar:
    """Templates of a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._loops = 0

    def template(self) -> str:
        """A template that writes the messages, around whatever else."""
        if self._random.random() < 0.04:
            return self._random.choice(ENDLESS) + "{{ messages[0].content }}"
        before = self.body(2)
        inner = self.body(2, "m")
        body = f"{self.tag('for m in messages')}{{{{ m.content }}}}{inner}{self.tag('endfor')}"
        return before + body + self.body(2)

    def body(self, depth: int, message: str = "messages[0]") -> str:
        """Some pieces."""
        count = self._random.randint(0, 3)
        return "".join(self.piece(depth, message) + self.choice(SPACES) for _ in range(count))

    def piece(self, depth: int, message: str) -> str:
        """Text, an expression, or a block with pieces in it."""
        kind = self._random.random()
        if depth == 0 or kind < 0.3:
            return self.choice(TEXTS)
        if kind < 0.6:
            return f"{{{{{self.dash()} {self.expression(depth, message)} {self.dash()}}}}}"
        if kind < 0.72:
            return f"{self.tag(f'if {self.condition(depth, message)}')}{self.body(depth - 1, message)}{self.otherwise(depth, message)}{self.tag('endif')}"
        if kind < 0.84:
            return self.tag(f"set {self.choice(NAMES)} = {self.expression(depth, message)}")
        if kind < 0.9:
            name = self.choice(NAMES)
            over = self.choice(("messages", "[1, 2]", "messages[1:]", "range(2)", "['a', 'b'] | reverse"))
            return f"{self.tag(f'for {name} in {over}')}{self.body(depth - 1, message)}{{{{ {name} }}}}{self.tag('endfor')}"
        if kind < 0.94:
            call = self.choice(("{{ f(1) }}", "{{ f('a', y='b') }}", ""))
            return f"{self.tag('macro f(x, y=2)')}{self.body(depth - 1, message)}{{{{ x }}}}{{{{ y }}}}{self.tag('endmacro')}{call}"
        if kind < 0.97:
            return f"{self.tag('generation')}{self.body(depth - 1, message)}{self.tag('endgeneration')}"
        return self.choice(
            (
                "{# note #}",
                "{#- note -#}",
                "{% raw %}{{ x }}{% endraw %}",
                "{% bad %}",
                "{{ x",
                "{%+ if true %}+{% endif %}",
            )
        )

    def otherwise(self, depth: int, message: str) -> str:
        if self._random.random() < 0.5:
            return ""
        return f"{self.tag('else')}{self.body(depth - 1, message)}"

    def expression(self, depth: int, message: str) -> str:
        """Something to write."""
        text = self.text(depth, message)
        return self.choice(
            (
                text,
                f"{text} + {self.text(depth, message)}",
                f"{text} ~ {self.text(depth, message)} ~ 'b'",
                f"{text} if {self.condition(depth, message)} else {self.text(depth, message)}",
                f"({text}).split('a')[0]",
                f"{text} | default('d')",
                f"['a', {text}] | join(', ')",
                f"{{'k': {text}}} | tojson",
                f"{text} and {self.text(depth, message)}",
                f"{text} or {self.text(depth, message)}",
                "messages | length",
                "loop.index0",
                "x",
                "y ~ content",
                "bos_token",
                "pad_token",
            )
        )

    def text(self, depth: int, message: str) -> str:
        """A string, most of the time."""
        method = self.choice(
            (
                "",
                "",
                ".strip()",
                ".replace('a', 'b')",
                ".lower()",
                ".upper()",
                ".rstrip('\\n')",
                ".title()",
                " | trim",
                " | upper",
                " | replace('e', '')",
                " | length",
                "[0]",
                "[1:]",
                ".split()",
                " | first",
            )
        )
        base = self.choice(
            (f"{message}.content", f"{message}['role']", "'abc'", "'\\n'", "'it\\'s'", "eos_token", "role")
        )
        return f"({base}{method})" if depth else base

    def condition(self, depth: int, message: str) -> str:
        """Something that is true or not."""
        return self.choice(
            (
                f"{message}.role == 'user'",
                f"'a' in {message}.content",
                f"'tools' not in {message}",
                f"{message}.content is string",
                f"not {self.choice(NAMES)}",
                "x is defined",
                "tools is not none",
                "tools",
                "add_generation_prompt",
                "loop.first",
                "loop.last and loop.index is odd",
                "messages | length > 2",
                "0 < messages | length < 3",
                "x is true",
                f"{message}.content.startswith(('a', 'W'))",
                f"{self.text(depth, message)} == 'abc'",
            )
        )

    def tag(self, inside: str) -> str:
        return f"{{%{self.dash()} {inside} {self.dash()}%}}{self.choice(SPACES)}"

    def dash(self) -> str:
        return "-" if self._random.random() < 0.25 else ""

    def choice(self, options: Any) -> str:
        return str(self._random.choice(options))


def chats(seed: int) -> list[list[dict[str, str]]]:
    """Chats that the compiler does not try."""
    found = random.Random(seed)
    words = ("a", "What about it? ", "\n", "  ", "abc", "é", "</think>", "{{", "A long answer, then.", "'", "/no_think")
    roles = ("user", "assistant", "user", "assistant", "user")

    def content() -> str:
        return "".join(found.choices(words, k=found.randint(0, 5)))

    several = [[{"role": role, "content": content()} for role in roles[:count]] for count in (1, 2, 3, 5)]
    return [*several, [{"role": "system", "content": content()}, *several[2]]]


def judged(template: str, seed: int, renderer: Renderer) -> str:
    """How a template ends: "kept", "rewritten" or "refused"; what is wrong with that fails the test."""
    started = time.monotonic()
    try:
        settled = settle(template, TOKENS, PLACE, images=False, renderer=renderer)
    except UserError as error:
        assert error.code == "checkpoint.template"
        assert error.exit_code == 2
        return "refused"
    finally:
        assert time.monotonic() - started < SECONDS, template
    compare(template, settled, seed, renderer)
    return "rewritten" if settled.changes else "kept"


def compare(template: str, settled: Settled, seed: int, renderer: Renderer) -> None:
    """The package's template renders other chats as transformers renders the checkpoint's."""
    for messages in chats(seed):
        expected = renderer.transformers(messages, template, TOKENS, answers=True)
        found = renderer.render(messages, answers=True)
        assert not (isinstance(expected, Refusal) and expected.fatal), template
        assert not (isinstance(found, Refusal) and found.fatal), template
        if isinstance(expected, str):
            assert found == expected, (template, settled.text, messages)


def ends(seeds: range) -> dict[str, int]:
    """How many templates end in each way."""
    counts = dict.fromkeys(("kept", "rewritten", "refused"), 0)
    renderer = Renderer({})
    try:
        for seed in seeds:
            counts[judged(Grammar(seed).template(), seed, renderer)] += 1
    finally:
        renderer.close()
    return counts


def test_random_templates_are_refused_or_render_alike() -> None:
    counts = ends(range(40))
    assert min(counts.values()) > 0, counts


@pytest.mark.slow
def test_many_random_templates_are_refused_or_render_alike() -> None:
    counts = ends(range(1000, 1800))
    assert min(counts.values()) > 40, counts


def test_the_comparison_finds_a_difference() -> None:
    renderer = Renderer({})
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    settle(template, TOKENS, PLACE, images=False, renderer=renderer)
    with pytest.raises(AssertionError):
        compare(template + "!", Settled(template), 0, renderer)
    renderer.close()
