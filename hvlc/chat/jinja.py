"""Jinja as transformers sets it up for chat templates (`transformers/utils/chat_template_utils.py`, 5.23)."""

import json
from collections.abc import Callable
from typing import Any, Never

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

#: Errors that a template can raise besides Jinja's own.
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
    SyntaxError,
)
#: Name of the method that a `{% generation %}` block calls.
GENERATION = "_inside"


class _Generation(Extension):
    """`{% generation %}` marks what the model says, for training; nothing of it is in the text."""

    tags = {"generation"}  # noqa: RUF012  as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call, as transformers has it, so that names set inside stay inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method(GENERATION), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """A namespace whose attributes lead nowhere inside the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        Namespace.__setitem__(self, name, value)


def environment(*, blocks: bool = True) -> ImmutableSandboxedEnvironment:
    """The sandbox.

    Args:
        blocks: drop the line break after a block and the spaces before one; False as onnxruntime-genai reads it.
    """
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=blocks, lstrip_blocks=blocks, extensions=[_Generation, loopcontrols]
    )
    sandbox.filters["tojson"] = _json
    sandbox.globals |= {"raise_exception": _refuse, "dict": _Dict(), "namespace": _Namespace}
    return sandbox


def _json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> Never:
    raise jinja2.TemplateError(message)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have an attribute {name!r}")
