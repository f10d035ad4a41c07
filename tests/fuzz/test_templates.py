"""Random chat templates: refused with a code, or rendered by the runtime as by transformers, on chats of their own."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hvlc.chat.package_template import PackageTemplate, package_template
from hvlc.chat.renderer import Refusal, Renderer
from hvlc.errors import UserError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
PLACE = Path("checkpoint")
SECONDS = 20

SPACES = ("", "", " ", "\n", "\n\n", "  \n  ", "\t")
TEXTS = ("a", "<|im_start|>", "\n", "{", "}", "'", '"', "\\", "é", " - ", "x y", "%}", "#", "end ")
NAMES = ("x", "y", "content", "role", "message")
BROKEN = (
    "{% bad %}",
    "{{ x",
    "{% if %}",
    "{{ | trim }}",
    "{% endfor %}",
    "{{ x | frobnicate }}",
    "{% block a %}{% endblock %}",
)
#: What ends an engine, or never ends in it.
ENDLESS = (
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ i * j }}{% endfor %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ 'ab' * 999999999 }}",
    "{% for i in range(99999) %}{{ messages }}{% endfor %}",
)
METHODS = (
    *("", "", "", ".strip()", ".replace('a', 'b')", ".lower()", ".rstrip('\\n')", ".title()", " | trim", " | string"),
    *(".split('a')[-1]", " | replace('e', '')", "[1:]", ".lstrip()", ".upper()", " | length", "[0]"),
)
EXPRESSIONS = (
    *(
        "{a}",
        "{a}",
        "{a} + {b}",
        "{a} ~ {b} ~ 'b'",
        "{a} if {c} else {b}",
        "{a} | default('d')",
        "['a', {a}] | join(', ')",
    ),
    *("{{'k': {a}}} | tojson", "{a} and {b}", "{a} or {b}", "messages | length", "x", "'b' ~ y", "y ~ content"),
    *("bos_token", "pad_token ~ unk_token", "messages[-1].role", "messages | map(attribute='role') | join('+')"),
)
CONDITIONS = (
    *(
        "{m}.role == 'user'",
        "'a' in {m}.content",
        "'tools' not in {m}",
        "{m}.content is string",
        "not x",
        "not content",
    ),
    *("x is defined", "y is not defined", "tools is not none", "tools", "tools is defined", "add_generation_prompt"),
    *(
        "messages | length > 2",
        "0 < messages | length < 3",
        "x is true",
        "{m}.content.startswith(('a', 'W'))",
        "{a} == 'abc'",
    ),
    *(
        "{m}.role is eq('user')",
        "{m}.role in ['user', 'system']",
        "{m}.role not in ('user',) and x",
        "not ({a} and {b})",
    ),
)
LOOPED = ("loop.first", "loop.last and loop.index is odd", "loop.index0 == 1", "loop.previtem is defined")


class Grammar:
    """The template of a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def template(self) -> str:
        """A template that writes the messages, around whatever else."""
        kind = self._random.random()
        strange = self.choice(ENDLESS) if kind < 0.04 else self.choice(BROKEN) if kind < 0.09 else ""
        before, inner, after = self.body(2), self.body(2, "m"), self.body(1)
        loop = f"{self.tag('for m in messages')}{{{{ m.content }}}}{inner}{self.tag('endfor')}"
        return before + strange + loop + after

    def body(self, depth: int, message: str = "messages[0]") -> str:
        """Some pieces."""
        pieces = (self.piece(depth, message) + self.choice(SPACES) for _ in range(self._random.randint(0, 2)))
        return "".join(pieces)

    def piece(self, depth: int, message: str) -> str:
        """Text, an expression, or a block with pieces in it."""
        kind = self._random.random()
        if depth == 0 or kind < 0.25:
            return self.choice(TEXTS)
        if kind < 0.55:
            return f"{{{{{self.dash()} {self.expression(message)} {self.dash()}}}}}"
        inner = self.body(depth - 1, message)
        if kind < 0.7:
            otherwise = self.tag("else") + self.body(depth - 1, message) if kind < 0.62 else ""
            return self.tag(f"if {self.condition(message)}") + inner + otherwise + self.tag("endif")
        if kind < 0.84:
            return self.tag(f"set {self.choice(NAMES)} = {self.expression(message)}")
        if kind < 0.9:
            name, over = self.choice(NAMES), self.choice(("messages", "[1, 2]", "messages[1:]", "range(2)"))
            return f"{self.tag(f'for {name} in {over}')}{inner}{{{{ loop.index ~ {name} }}}}{self.tag('endfor')}"
        if kind < 0.95:
            call = self.choice(("{{ f(1) }}", "{{ f('a', y='b') }}{{ f(2) }}", "{{ x }}"))
            return f"{self.tag('macro f(x, y=2)')}{inner}{{{{ x }}}}{{{{ y }}}}{self.tag('endmacro')}{call}"
        if kind < 0.98:
            return f"{self.tag('generation')}{inner}{self.tag('endgeneration')}"
        return self.choice(("{# note #}", "{#- note -#}", "{% raw %}{{ x }}{% endraw %}", "{%+ if true %}+{% endif %}"))

    def expression(self, message: str) -> str:
        """Something to write."""
        return self.filled(self.choice(EXPRESSIONS), message)

    def condition(self, message: str) -> str:
        """Something that is true or not."""
        options = (*CONDITIONS, *LOOPED) if message == "m" else CONDITIONS
        return self.filled(self.choice(options), message)

    def filled(self, pattern: str, message: str) -> str:
        """A pattern with texts in it."""
        c = self.choice(CONDITIONS[:6]).format(m=message)
        return pattern.format(a=self.text(message), b=self.text(message), c=c, m=message)

    def text(self, message: str) -> str:
        """A string, most of the time."""
        base = self.choice((f"{message}.content", f"{message}['role']", "'abc'", "'\\n'", "'it\\'s'", "eos_token"))
        return f"({base}{self.choice(METHODS)})"

    def tag(self, inside: str) -> str:
        """A block's tag, and what is between it and the next."""
        return f"{{%{self.dash()} {inside} {self.dash()}%}}{self.choice(SPACES)}"

    def dash(self) -> str:
        """Whether white space is dropped."""
        return "-" if self._random.random() < 0.25 else ""

    def choice(self, options: Sequence[str]) -> str:
        """One of some."""
        return self._random.choice(options)


def chats(seed: int) -> list[list[dict[str, str]]]:
    """Chats that no template is tried on when it is settled."""
    found = random.Random(seed)
    words = ("a", "What about it? ", "\n", "  ", "abc", "é", "</think>", "{{", "A long answer, then.", "'", "/no_think")
    roles = ("user", "assistant", "user", "assistant", "user")

    def content() -> str:
        return "".join(found.choices(words, k=found.randint(0, 5)))

    several = [[{"role": role, "content": content()} for role in roles[:count]] for count in (1, 2, 3, 5)]
    return [*several, [{"role": "system", "content": content()}, *several[2]]]


def judged(template: str, seed: int, renderer: Renderer) -> str:
    """How a template ends: kept, rewritten, or refused; anything else fails the test."""
    started = time.monotonic()
    settled: PackageTemplate | None = None
    code = "checkpoint.template"
    try:
        settled = package_template(template, TOKENS, PLACE, images=False, renderer=renderer)
    except UserError as error:
        code = error.code
    assert code == "checkpoint.template", template
    assert time.monotonic() - started < SECONDS, template
    if settled is None:
        return "refused"
    compare(template, settled, seed, renderer)
    return "rewritten" if settled.changes else "kept"


def compare(template: str, settled: PackageTemplate, seed: int, renderer: Renderer) -> None:
    """The package's template, open in the renderer, renders other chats as transformers renders the checkpoint's."""
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
    package_template(template, TOKENS, PLACE, images=False, renderer=renderer)
    with pytest.raises(AssertionError):
        compare(template + "!", PackageTemplate(template), 0, renderer)
    renderer.close()
