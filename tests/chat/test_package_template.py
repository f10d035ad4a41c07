"""The runtime renders what transformers renders, or a template is refused before anything is built with it."""

import time
from pathlib import Path

import pytest

from hvlc.chat.package_template import PackageTemplate, package_template
from hvlc.errors import UserError
from tests.chat.templates import CHATML, FAMILIES

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
PLACE = Path("checkpoint")


def settled(template: str, *, images: bool = False) -> PackageTemplate:
    return package_template(template, TOKENS, PLACE, images=images)


def refusal(template: str) -> UserError:
    with pytest.raises(UserError) as found:
        settled(template)
    assert found.value.code == "checkpoint.template"
    assert found.value.exit_code == 2
    return found.value


@pytest.mark.parametrize("family", FAMILIES)
def test_templates_of_public_families_are_taken(family: str) -> None:
    template, images = FAMILIES[family]
    found = settled(template, images=images)
    assert set(found.left_out) <= {"a content in parts"}
    assert bool(found.changes) == (found.text != template)


@pytest.mark.parametrize("family", ["chatml", "qwen 2.5", "hermes 3", "internvl"])
def test_a_template_that_both_engines_read_alike_stays_to_the_byte(family: str) -> None:
    template, images = FAMILIES[family]
    assert settled(template, images=images) == PackageTemplate(template, (), settled(template, images=images).left_out)


#: What onnxruntime-genai 0.18 renders otherwise as written, and why.
REWRITTEN = {
    "lines of blocks": ("{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n", "line breaks"),
    "spaces before blocks": ("a\n  {% if true %}b{% endif %}\n  {{ messages[0].content }}", "line breaks"),
    "a plus": ("{% for m in messages %}{{ m.content }}\n {%+ if true %}x{% endif %}{% endfor %}", "{%+"),
    "raw": ("{{ messages[0].content }}{% raw %}{{ x }}{% endraw %}", "raw blocks"),
    "a long comment": (f"{{# {'long ' * 5000}#}}{CHATML}", "a long comment"),
    "in a string": ("{% if 'a' in messages[0].content %}A{% endif %}{{ messages[0].content }}", "asked of a string"),
    "not in a string": ("{{ 'no' if 'W' not in messages[0].content else messages[0].content }}", "asked of a string"),
    "replace": ("{{ messages[0].content.replace('a', 'b').strip() }}", ".replace()"),
    "the filter replace": ("{{ messages[0].content | replace('a', 'bc') | trim }}", "the filter replace"),
    "lower": ("{{ messages[0].role.lower() }}: {{ messages[0].content }}", ".lower()"),
    "upper": ("{{ messages[0].role.upper() }}: {{ messages[0].content }}", ".upper()"),
    "the filter upper": ("{{ messages[0].role | upper }}: {{ messages[0].content }}", "the filter upper"),
    "concatenated with nothing": ("{{ 'a' ~ nothing ~ messages[0].nothing ~ messages[0].content }}", "otherwise"),
    "join": ("{{ ', '.join(['a', messages[0].content]) }}", ".join()"),
    "a letter": ("{{ messages[0].role[0] }}{{ messages[0].role[-1] }}{{ messages[0].content }}", "characters"),
    "first": ("{{ (messages | first).content }}", "the filter first"),
    "reverse": ("{% for m in messages | reverse %}{{ m.content }};{% endfor %}", "the filter reverse"),
    "a set that stays": (
        "{% for m in messages %}{% if loop.first %}{% set x = 'first ' %}{% endif %}{{ x }}{{ m.content }}{% endfor %}",
        "stays inside",
    ),
    "a variable that stays": (
        "{% set m = 'M' %}{% for m in messages %}{{ m.content }}{% endfor %}{{ m }}",
        "a loop's variable",
    ),
    "loops in loops": (
        "{% for m in messages %}{% for m in [1, 2] %}{{ m }}{% endfor %}{{ m.content }}{% endfor %}",
        "a loop's variable",
    ),
    "a parameter that stays": (
        "{% set x = 'X' %}{% macro f(x, y='Y') %}<{{ x }}{{ y }}>{% endmacro %}"
        "{{ f('a', 'b') }}{{ f('c') }}{{ f(y='d') }}{{ x }}{{ messages[0].content }}",
        "share no parameters",
    ),
    "and": ("{{ 'a' and messages[0].content }}", "one of its operands"),
    "chained": ("{% if 0 < messages | length < 3 %}few{% endif %}{{ messages[0].content }}", "chained"),
    "generation": ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "training"),
    "a token by name": ("{{ messages[0].content }}{{ pad_token }}", "pad_token"),
    "no tools": ("{% if tools is defined %}passed{% endif %}{{ messages[0].content }}", "always passed"),
    "none": ("{% if tools is none %}none{% endif %}{{ messages[0].content }}", "that there are none of"),
    "is true": ("{% if add_generation_prompt is true %}A{% endif %}{{ messages[0].content }}", "the test true"),
    "odd": ("{% for m in messages %}{% if loop.index is odd %}{{ m.content }}{% endif %}{% endfor %}", "the test odd"),
    "a test of equality": ("{% if messages[0].role is eq 'user' %}U{% endif %}{{ messages[0].content }}", "test eq"),
    "two prefixes": (
        "{{ messages[0].content.startswith(('What', 'Be')) }}{{ messages[0].content }}",
        ".startswith() takes one string",
    ),
}


@pytest.mark.parametrize("construct", REWRITTEN)
def test_what_the_runtime_reads_otherwise_is_rewritten_and_said(construct: str) -> None:
    template, reason = REWRITTEN[construct]
    found = settled(template)
    assert found.text != template
    assert [reason in change for change in found.changes].count(True) == 1, found.changes


REFUSED = {
    "a macro that calls itself": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "transformers cannot render"),
    "two macros that call each other": (
        "{% macro f(x) %}{% if x %}{{ g(x) }}{% endif %}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}"
        "{{ f(false) }}{{ messages[0].content }}",
        "calls itself",
    ),
    "a loop without end": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "did not end",
    ),
    "a string that doubles": (
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "transformers cannot render",
    ),
    "text without end": ("{% for i in range(99999) %}{{ 'long ' * 20 }}{% endfor %}", "writes more than"),
    "another language": ("{% for m in messages %}", "Unexpected end of template"),
    "an unknown filter": ("{{ messages[0].content | frobnicate }}", "frobnicate"),
    "a call block": (
        "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{{ messages[0].content }}{% endcall %}",
        "no CallBlock",
    ),
    "a filter of transformers alone": ("{{ messages[0].content | wordwrap }}", "not callable"),
    "a method of transformers alone": ("{{ messages[0].content.swapcase() }}", "Unknown method"),
    "capitals beyond ASCII": ("{{ messages[0].content.upper() }}", "instead of"),
    "a character of a string": ("{{ messages[0].content[0] }}", "a question in another script"),
    "characters counted": ("{{ messages[0].content | length }}", "instead of"),
    "a refusal": ("{{ raise_exception('no chats at all') }}", "no chats at all"),
    "a way out of the sandbox": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "a NUL": ("{{ 'a\0b' }}{{ messages[0].content }}", "NUL"),
}


@pytest.mark.parametrize("construct", REFUSED)
def test_what_cannot_be_shown_equal_is_refused_in_time(construct: str) -> None:
    template, reason = REFUSED[construct]
    started = time.monotonic()
    assert reason in refusal(template).cause
    assert time.monotonic() - started < 15


def test_the_first_difference_is_shown() -> None:
    cause = refusal("{{ messages[0].role }}{{ messages[0].content | length }}").cause
    assert "a question of hard text becomes 'user1" in cause
    assert "instead of 'user1" in cause


def test_chats_that_transformers_refuses_are_left_out_and_named() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    found = settled(template)
    assert "a system's turn and a question" in found.left_out
    assert "a user's question" not in found.left_out


def test_the_samples_see_a_template_that_drops_the_images() -> None:
    kept = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert settled(kept, images=True).changes == ()
    with pytest.raises(UserError) as found:
        package_template(kept.replace("'<image>'", "p.missing.it"), TOKENS, PLACE, images=True)
    assert "a question about an image" in found.value.cause


def test_hostile_templates_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    refusal("{{ 'a' * 99999999999 }}")
    assert list(tmp_path.iterdir()) == []
