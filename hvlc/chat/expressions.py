"""Expressions of a chat template in the dialect of onnxruntime-genai."""

import functools
import re
from collections.abc import Iterable, Mapping
from itertools import count
from string import ascii_lowercase
from typing import Any

from jinja2 import nodes

#: Special tokens that the runtime knows by name.
_KNOWN_TOKENS = ("bos_token", "eos_token")
#: Passed to a template by transformers, None where a chat has none; the runtime leaves them undefined.
_PASSED = ("tools", "documents")
_PLAIN_TESTS = frozenset("defined undefined none boolean integer float number string mapping iterable".split())
_COMPARISONS = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<="}
_TEST_COMPARISONS = {
    **dict.fromkeys(("eq", "equalto", "=="), "=="),
    **dict.fromkeys(("ne", "!="), "!="),
    **dict.fromkeys(("gt", "greaterthan", ">"), ">"),
    **dict.fromkeys(("lt", "lessthan", "<"), "<"),
    **dict.fromkeys(("ge", ">="), ">="),
    **dict.fromkeys(("le", "<="), "<="),
}
_OPERATORS = {
    nodes.Add: "+",
    nodes.Sub: "-",
    nodes.Mul: "*",
    nodes.FloorDiv: "//",
    nodes.Mod: "%",
    nodes.Div: "/",
    nodes.Pow: "**",
}
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset("not is and or del in if else true false none True False None null".split())


class UntranslatableError(Exception):
    """A construct that the runtime's engine does not have."""


class Scope:
    """Names of the template to names of the translation."""

    def __init__(self, outer: "Scope | None" = None) -> None:
        self.outer = outer
        self.names: dict[str, str] = {}

    def find(self, name: str) -> str | None:
        """The translation's name; None of a name that no scope binds."""
        if name in self.names:
            return self.names[name]
        return self.outer.find(name) if self.outer else None


class Expressions:
    """Writer of expressions.

    Args:
        taken: names that the template uses.
        stored: names that it binds.
        specials: special tokens that transformers passes to it, by name.

    Attributes:
        changes: why an expression as it stands would be read otherwise.
        scope: where the next expression is.
        parameters: of macros, to their names in the translation.
    """

    def __init__(self, taken: Iterable[str], stored: Iterable[str], specials: Mapping[str, str]) -> None:
        self.changes: list[str] = []
        self.scope = Scope()
        self.parameters: dict[str, dict[str, str]] = {}
        self._taken, self._stored, self._specials = set(taken), frozenset(stored), specials

    def fresh(self, name: str) -> str:
        """A name that nothing has yet."""
        found = next(f"{name}_{i}" for i in count(1) if f"{name}_{i}" not in self._taken)
        self._taken.add(found)
        return found

    def truth(self, node: nodes.Node) -> str:
        """An expression of which only the truth counts."""
        match node:
            case nodes.And() | nodes.Or():
                word = "and" if isinstance(node, nodes.And) else "or"
                return f"({self.truth(node.left)} {word} {self.truth(node.right)})"
            case nodes.Not():
                return f"(not {self.truth(node.node)})"
        return self.expression(node)

    def expression(self, node: nodes.Node) -> str:
        """An expression as the runtime has to read it.

        Raises:
            UntranslatableError: the runtime does not have it.
        """
        match node:
            case nodes.Name():
                return self.scope.find(str(node.name)) or self.outside(str(node.name))
            case nodes.Const():
                return self._constant(node)
            case nodes.TemplateData():
                return quoted(str(node.data))
            case nodes.Tuple() | nodes.List():
                return f"[{', '.join(self.expression(item) for item in node.items)}]"
            case nodes.Dict():
                pairs = (f"{self.expression(p.key)}: {self.expression(p.value)}" for p in node.items)
                return f"{{{', '.join(pairs)}}}"
            case nodes.CondExpr():
                otherwise = f" else {self.expression(node.expr2)}" if node.expr2 else ""
                return f"({self.expression(node.expr1)} if {self.truth(node.test)}{otherwise})"
            case nodes.And():
                return self._and(node)
            case nodes.Or():
                return f"({self.expression(node.left)} or {self.expression(node.right)})"
            case nodes.Not():
                return f"(not {self.truth(node.node)})"
            case nodes.Neg():
                return f"(-{self.expression(node.node)})"
            case nodes.Pos():
                return f"(+{self.expression(node.node)})"
            case nodes.Compare():
                return self._compare(node)
            case nodes.Concat():
                parts = [self._shown(part) for part in node.nodes]
                return functools.reduce(lambda text, part: f"({text} ~ {part})", parts)
            case nodes.Getattr():
                return self._attribute(self._operand(node.node), str(node.attr))
            case nodes.Getitem():
                return self._item(node)
            case nodes.Call():
                return self._call(node)
            case nodes.Filter():
                return self._filter(node)
            case nodes.Test():
                return self._test(node)
            case nodes.BinExpr() if type(node) in _OPERATORS:
                return f"({self.expression(node.left)} {_OPERATORS[type(node)]} {self.expression(node.right)})"
        raise unknown(node)

    def _constant(self, node: nodes.Const) -> str:
        value = node.value
        if value is None or isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return quoted(value)
        if isinstance(value, int) and abs(value) < 2**63:
            return str(value)
        if isinstance(value, float):
            return repr(value)
        raise unknown(node)

    def outside(self, name: str) -> str:
        """A name that nothing in the template binds around here."""
        if name in self._specials and name not in _KNOWN_TOKENS and name not in self._stored:
            self.changes.append(f"{name} is written out")
            return quoted(self._specials[name])
        return name

    def _operand(self, node: nodes.Node) -> str:
        """An expression that something follows: a call of a function cannot be followed."""
        text = self.expression(node)
        return f"({text})" if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) else text

    def _attribute(self, of: str, name: str) -> str:
        return f"{of}[{quoted(name)}]" if name in _RESERVED or not _NAME.fullmatch(name) else f"{of}.{name}"

    def _item(self, node: nodes.Getitem) -> str:
        of = self._operand(node.node)
        if isinstance(node.arg, nodes.Slice):
            parts = [self.expression(p) if p else "" for p in (node.arg.start, node.arg.stop)]
            step = f":{self.expression(node.arg.step)}" if node.arg.step else ""
            return f"{of}[{':'.join(parts)}{step}]"
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return f"{of}[{quoted(node.arg.value)}]"
        at = _constant_index(node.arg)
        if at is None or not _may_be_text(node.node):
            return f"{of}[{self.expression(node.arg)}]"
        self.changes.append("a text has characters")
        return f"({of}[{at}:{at + 1 or ''}] if ({of} is string) else {of}[{at}])"

    def _and(self, node: nodes.And) -> str:
        if _is_truth(node.left) and _is_truth(node.right):
            return self.truth(node)
        self.changes.append("'and' is one of its operands")
        left = self.expression(node.left)
        return f"({self.expression(node.right)} if {self.truth(node.left)} else {left})"

    def _shown(self, node: nodes.Node) -> str:
        """A part of a concatenation: of what is undefined Jinja writes nothing, the runtime None."""
        text = self.expression(node)
        if isinstance(node, nodes.Name | nodes.Getattr | nodes.Getitem) and not text.startswith("'"):
            return f"({text} if ({text} is defined) else '')"
        return text

    def _compare(self, node: nodes.Compare) -> str:
        left, found = node.expr, []
        for operand in node.ops:
            found.append(self._comparison(left, operand.op, operand.expr))
            left = operand.expr
        if len(found) > 1:
            self.changes.append("comparisons are chained")
        return found[0] if len(found) == 1 else f"({' and '.join(found)})"

    def _comparison(self, left: nodes.Node, operator: str, right: nodes.Node) -> str:
        if operator in _COMPARISONS:
            return f"({self.expression(left)} {_COMPARISONS[operator]} {self.expression(right)})"
        inside = self._contains(left, right)
        return f"(not {inside})" if operator == "notin" else inside

    def _contains(self, part: nodes.Node, whole: nodes.Node) -> str:
        """`part in whole`, which the runtime knows of lists and mappings alone."""
        a, b = self.expression(part), self._operand(whole)
        plain = f"({a} in {b})"
        if isinstance(whole, nodes.List | nodes.Tuple | nodes.Dict):
            return plain
        if isinstance(part, nodes.Const) and isinstance(part.value, str) and part.value:
            self.changes.append("'in' is asked of a string")
            return f"((({b}.split({a})|length) > 1) if ({b} is string) else {plain})"
        if isinstance(whole, nodes.Const) and isinstance(whole.value, str):
            self.changes.append("'in' is asked of a string")
            return f"(({a} == '') or (({b}.split({a})|length) > 1))"
        return plain

    def _call(self, node: nodes.Call) -> str:
        if isinstance(node.node, nodes.Getattr):
            return self._method(node, node.node)
        if isinstance(node.node, nodes.Name):
            name = str(node.node.name)
            renamed = self.parameters.get(name, {}) if self.scope.find(name) is None else {}
            return f"{self.expression(node.node)}({self._arguments(node, renamed)})"
        raise unknown(node)

    def _method(self, node: nodes.Call, method: nodes.Getattr) -> str:
        name, of = str(method.attr), self._operand(method.node)
        match name, node.args:
            case "replace", [nodes.Const(value=str(old)), new] if old and not node.kwargs:
                self.changes.append(".replace() is unknown")
                return f"({of}.split({quoted(old)})|join({self.expression(new)}))"
            case "join", [items] if not node.kwargs:
                self.changes.append(".join() is unknown")
                return f"({self.expression(items)}|join({of}))"
            case "lower", []:
                self.changes.append(".lower() is unknown")
                return f"({of}|lower)"
            case "upper", []:
                self.changes.append(".upper() is unknown")
                return _upper(of)
            case "startswith" | "endswith", [nodes.Tuple() as several]:
                self.changes.append(f".{name}() takes one string")
                return f"({' or '.join(f'{of}.{name}({self.expression(one)})' for one in several.items)})"
        return f"{of}.{name}({self._arguments(node, {})})"

    def _arguments(self, node: Any, renamed: Mapping[str, str]) -> str:
        written = [self.expression(argument) for argument in node.args]
        written += [f"{renamed.get(k.key, k.key)}={self.expression(k.value)}" for k in node.kwargs]
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise UntranslatableError(f"line {node.lineno}: the runtime has no arguments of unknown number")
        return ", ".join(written)

    def _filter(self, node: nodes.Filter) -> str:
        if node.node is None:
            raise unknown(node)
        name, of = str(node.name), self.expression(node.node)
        match name, node.args, node.kwargs:
            case "replace", [nodes.Const(value=str(old)), new], [] if old:
                self.changes.append("the filter replace is unknown")
                return f"({self._operand(node.node)}.split({quoted(old)})|join({self.expression(new)}))"
            case "first", [], []:
                self.changes.append("the filter first is unknown")
                return f"{self._operand(node.node)}[0]"
            case "reverse", [], []:
                self.changes.append("the filter reverse is unknown")
                return f"{self._operand(node.node)}[::-1]"
            case "capitalize" | "title", [], []:
                self.changes.append(f"the filter {name} is unknown")
                return f"{self._operand(node.node)}.{name}()"
            case "upper", [], []:
                self.changes.append("the filter upper is unknown")
                return _upper(self._operand(node.node))
            case "d", _, _:
                self.changes.append("the filter d is unknown")
                name = "default"
        arguments = self._arguments(node, {})
        return f"({of}|{name}{f'({arguments})' if arguments else ''})"

    def _test(self, node: nodes.Test) -> str:
        name, of = str(node.name), self.expression(node.node)
        if name in ("defined", "undefined") and isinstance(node.node, nodes.Name):
            answer = self._definedness(str(node.node.name))
            if answer is not None:
                self.changes.append(f"{node.node.name} is always passed, or never")
                return str(answer == (name == "defined")).lower()
        if name == "none" and isinstance(node.node, nodes.Name) and self._definedness(str(node.node.name)):
            self.changes.append(f"{node.node.name} that there are none of is none")
            return f"({of} is undefined)"
        if name in _TEST_COMPARISONS and len(node.args) == 1:
            self.changes.append(f"the test {name} is unknown")
            return f"({of} {_TEST_COMPARISONS[name]} {self.expression(node.args[0])})"
        if name == "in" and len(node.args) == 1:
            return self._contains(node.node, node.args[0])
        if name in ("true", "false"):
            self.changes.append(f"the test {name} is unknown")
            return f"(({of} is boolean) and {of})" if name == "true" else f"(({of} is boolean) and (not {of}))"
        if name in ("odd", "even", "divisibleby"):
            self.changes.append(f"the test {name} is unknown")
            by = self.expression(node.args[0]) if name == "divisibleby" else "2"
            return f"(({of} % {by}) {'!=' if name == 'odd' else '=='} 0)"
        if name == "sequence":
            self.changes.append("a string is a sequence")
            return f"(({of} is sequence) or ({of} is string) or ({of} is mapping))"
        if name not in _PLAIN_TESTS or node.args:
            raise UntranslatableError(f"line {node.lineno}: the runtime has no test {name!r}")
        return f"({of} is {name})"

    def _definedness(self, name: str) -> bool | None:
        """Whether a name of transformers is there; None where the runtime says so itself."""
        if self.scope.find(name) is not None or name in self._stored:
            return None
        if name in _PASSED:
            return True
        if name in _KNOWN_TOKENS:
            return name in self._specials
        return None


def _constant_index(node: nodes.Node) -> int | None:
    """A number that is written as an index; None of what is computed."""
    sign, inner = (-1, node.node) if isinstance(node, nodes.Neg) else (1, node)
    number = inner.value if isinstance(inner, nodes.Const) else None
    return sign * number if isinstance(number, int) and not isinstance(number, bool) else None


def _may_be_text(node: nodes.Node) -> bool:
    """Whether a string may be what is indexed, as the template reads: not the messages, and not what was split."""
    split = isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "split"
    listed = isinstance(node, nodes.List | nodes.Tuple) or (isinstance(node, nodes.Name) and node.name == "messages")
    return not (split or listed)


def _upper(of: str) -> str:
    """A text in capitals, as far as letters are ASCII; roles are."""
    return functools.reduce(lambda text, a: f"({text}.split('{a}')|join('{a.upper()}'))", ascii_lowercase, of)


def unknown(node: nodes.Node) -> UntranslatableError:
    """The error of a construct that the runtime does not have."""
    return UntranslatableError(f"line {node.lineno}: the runtime has no {type(node).__name__}")


def quoted(text: str) -> str:
    """A text as a string constant.

    Raises:
        UntranslatableError: it has a NUL.
    """
    if "\0" in text:
        raise UntranslatableError("the runtime's text ends at a NUL")
    return "'" + "".join(_ESCAPES.get(character, character) for character in text) + "'"


def _is_truth(node: nodes.Node) -> bool:
    """Whether an expression is True or False in Jinja."""
    if isinstance(node, nodes.And | nodes.Or):
        return _is_truth(node.left) and _is_truth(node.right)
    truths = isinstance(node, nodes.Not | nodes.Compare | nodes.Test)
    return truths or (isinstance(node, nodes.Const) and isinstance(node.value, bool))
