"""A chat template in the dialect of onnxruntime-genai (its extensions' `minja.hpp`).

That engine reads Jinja with differences that change prompts without a word. Found in its source and tried on 0.18:
line breaks after blocks and spaces before them stay; a loop's variables live through all of its turns and stay behind
in the text around it; all calls of a macro share their parameters; `'a' in 'abc'` is false; `a and b` is a truth value;
`.replace()`, `.lower()` and `[x] * n` are unknown. `translate` writes a template out again from Jinja's own parse:
text as transformers would keep it, every name once per scope, and every construct in words that both engines read
alike. What neither can be written nor parsed is refused; equality is shown elsewhere (`hvlc.chat.package_template`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jinja2 import nodes

from hvlc.chat.expressions import Expressions, Scope, UntranslatableError, quoted, unknown
from hvlc.chat.jinja import GENERATION, environment

_TAG_LIKE = re.compile(r"\{[{%#]|\{$")
#: Marks in the text that the engine does not read, or reads with a stack as deep as they are long.
_UNREAD = {
    "carriage returns": re.compile(r"\r"),
    "{%+": re.compile(r"\{[%{#]\+|\+[%}#]\}"),
    "raw blocks": re.compile(r"\{%-?\s*raw\b"),
    "a long comment": re.compile(r"\{#(?:(?!#\}).){400}", re.DOTALL),
}


def translate(source: str, specials: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """A template as the runtime's engine has to read it.

    Args:
        source: the template.
        specials: special tokens that transformers passes to it, by name.

    Returns:
        The text, and why the source itself would be read otherwise: nothing, where it is read alike.

    Raises:
        UntranslatableError: see the class.
        jinja2.TemplateError: it is not a template.
    """
    parsed = environment().parse(source)
    printer = _Statements(parsed, specials)
    text = printer.template(parsed)
    changes = [f"it has {what}" for what, pattern in _UNREAD.items() if pattern.search(source)]
    bare = environment(blocks=False).parse(source)
    if _Statements(bare, specials).template(bare) != text:
        changes.append("line breaks after blocks and spaces before blocks are dropped")
    return text, (*changes, *dict.fromkeys(printer.changes))


class _Statements(Expressions):
    """Writer of templates."""

    def __init__(self, parsed: nodes.Template, specials: Mapping[str, str]) -> None:
        names, macros = list(parsed.find_all(nodes.Name)), {str(macro.name) for macro in parsed.find_all(nodes.Macro)}
        taken = {str(node.name) for node in names} | {str(node.name) for node in parsed.find_all(nodes.NSRef)}
        stored = {str(name.name) for name in names if name.ctx != "load"}
        super().__init__(taken | macros, stored | macros, specials)
        self._shared = _shared_variables(parsed)
        _refuse_recursion(parsed)

    # Statements

    def template(self, parsed: nodes.Template) -> str:
        return _joined(self._body(parsed.body))

    def _body(self, body: Sequence[nodes.Node]) -> Iterator[tuple[str, bool]]:
        for node in body:
            yield from self._statement(node)

    def _statement(self, node: nodes.Node) -> Iterator[tuple[str, bool]]:
        match node:
            case nodes.Output():
                for part in node.nodes:
                    if isinstance(part, nodes.TemplateData):
                        yield str(part.data), True
                    else:
                        yield f"{{{{ {self.expression(part)} }}}}", False
            case nodes.If():
                yield from self._if(node)
            case nodes.For():
                yield from self._for(node)
            case nodes.Macro():
                yield from self._macro(node)
            case nodes.Assign():
                value = self.expression(node.node)
                yield f"{{% set {self._target(node.target)} = {value} %}}", False
            case nodes.AssignBlock(filter=None, target=nodes.Name()):
                yield f"{{% set {self._target(node.target)} %}}", False
                yield from self._body(node.body)
                yield "{% endset %}", False
            case nodes.CallBlock() if _is_generation(node):
                yield from self._generation(node)
            case nodes.Continue():
                yield "{% continue %}", False
            case nodes.Break():
                yield "{% break %}", False
            case _:
                raise unknown(node)

    def _if(self, node: nodes.If) -> Iterator[tuple[str, bool]]:
        yield f"{{% if {self.truth(node.test)} %}}", False
        yield from self._body(node.body)
        for branch in node.elif_:
            yield f"{{% elif {self.truth(branch.test)} %}}", False
            yield from self._body(branch.body)
        if node.else_:
            yield "{% else %}", False
            yield from self._body(node.else_)
        yield "{% endif %}", False

    def _for(self, node: nodes.For) -> Iterator[tuple[str, bool]]:
        if node.recursive:
            raise UntranslatableError(f"line {node.lineno}: the runtime has no recursive loops")
        iterated = self.expression(node.iter)
        outer, self.scope = self.scope, Scope(self.scope)
        targets = [str(name.name) for name in _names(node.target)]
        self._bind(targets)
        if self._shared & set(targets):
            self.changes.append("a loop's variable stays inside")
        names = ", ".join(self.scope.names[name] for name in targets)
        test = f" if {self.truth(node.test)}" if node.test else ""
        yield f"{{% for {names} in {iterated}{test} %}}", False
        yield from self._inner(node.body, outer, targets)
        self.scope = outer
        if node.else_:
            yield "{% else %}", False
            self.scope = Scope(outer)
            yield from self._inner(node.else_, outer, ())
            self.scope = outer
        yield "{% endfor %}", False

    def _inner(self, body: Sequence[nodes.Node], outer: Scope, bound: Sequence[str]) -> Iterator[tuple[str, bool]]:
        """A body with a scope of its own: what it sets begins, in each turn, as what is outside."""
        assigned = [name for name in _assigned(body) if name not in bound]
        if assigned:
            self.changes.append("what a loop, macro or block sets stays inside")
        for name in assigned:
            before = outer.find(name) or self.outside(name)
            self._bind([name])
            yield f"{{% set {self.scope.names[name]} = {before} %}}", False
        yield from self._body(body)

    def _macro(self, node: nodes.Macro) -> Iterator[tuple[str, bool]]:
        self.changes.append("calls of a macro share no parameters")
        outer, self.scope = self.scope, Scope(self.scope)
        parameters = [str(argument.name) for argument in node.args]
        self._bind(parameters)
        self.parameters[str(node.name)] = dict(self.scope.names)
        unset = self.fresh("undefined")
        defaults = [unset] * (len(parameters) - len(node.defaults)) + [self.expression(d) for d in node.defaults]
        written = ", ".join(
            f"{self.scope.names[name]}={default}" for name, default in zip(parameters, defaults, strict=True)
        )
        yield f"{{% macro {node.name}({written}) %}}", False
        yield from self._inner(node.body, outer, parameters)
        yield "{% endmacro %}", False
        self.scope = outer

    def _generation(self, node: nodes.CallBlock) -> Iterator[tuple[str, bool]]:
        self.changes.append("generation blocks are for training")
        outer, self.scope = self.scope, Scope(self.scope)
        yield from self._inner(node.body, outer, ())
        self.scope = outer

    def _target(self, node: nodes.Node) -> str:
        if isinstance(node, nodes.NSRef):
            return f"{self.scope.find(str(node.name)) or node.name}.{node.attr}"
        return ", ".join(self.scope.find(str(name.name)) or str(name.name) for name in _names(node))

    def _bind(self, names: Iterable[str]) -> None:
        for name in names:
            self.scope.names[name] = self.fresh(name)


def _joined(pieces: Iterable[tuple[str, bool]]) -> str:
    """Tags, and text; text that would be read as a tag, or whose last line break would be dropped, as a string."""
    merged: list[tuple[str, bool]] = []
    for text, is_data in pieces:
        if is_data and merged and merged[-1][1]:
            merged[-1] = (merged[-1][0] + text, True)
        elif text:
            merged.append((text, is_data))
    if merged and merged[-1][1] and merged[-1][0].endswith("\n"):
        merged.append(("{{ '' }}", False))
    return "".join(f"{{{{ {quoted(t)} }}}}" if data and _TAG_LIKE.search(t) else t for t, data in merged)


def _names(target: nodes.Node) -> Iterator[nodes.Name]:
    """Names that a loop or an assignment binds."""
    if isinstance(target, nodes.Name):
        yield target
    elif isinstance(target, nodes.Tuple) and all(isinstance(item, nodes.Name) for item in target.items):
        yield from (item for item in target.items if isinstance(item, nodes.Name))
    else:
        raise unknown(target)


def _assigned(body: Sequence[nodes.Node]) -> list[str]:
    """Names that a body sets for itself: those in its conditions count, those of loops and macros in it do not."""
    found: list[str] = []
    for node in body:
        if isinstance(node, nodes.Assign | nodes.AssignBlock) and not isinstance(node.target, nodes.NSRef):
            found += (str(name.name) for name in _names(node.target))
        if isinstance(node, nodes.If):
            for branch in (node.body, *(b.body for b in node.elif_), node.else_):
                found += _assigned(branch)
        elif isinstance(node, nodes.AssignBlock):
            found += _assigned(node.body)
    return list(dict.fromkeys(found))


def _shared_variables(parsed: nodes.Template) -> frozenset[str]:
    """Variables of loops whose names mean something else as well, outside of the loop or in one within it."""
    targets = {str(name.name) for loop in parsed.find_all(nodes.For) for name in _names(loop.target)}
    shared: set[str] = set()

    def walk(node: nodes.Node, bound: frozenset[str]) -> None:
        if isinstance(node, nodes.For):
            own = frozenset(str(name.name) for name in _names(node.target))
            shared.update(own & bound)
            for part in (node.iter, *node.else_):
                walk(part, bound)
            for part in (*([node.test] if node.test else []), *node.body):
                walk(part, bound | own)
            return
        if isinstance(node, nodes.Name | nodes.NSRef):
            loads = isinstance(node, nodes.Name) and node.ctx == "load"
            if not (loads and str(node.name) in bound):
                shared.add(str(node.name))
        for child in node.iter_child_nodes():
            walk(child, bound)

    walk(parsed, frozenset())
    return frozenset(shared & targets)


def _refuse_recursion(parsed: nodes.Template) -> None:
    """Refuse macros that call themselves, directly or through others: the runtime's stack has no bound.

    Raises:
        UntranslatableError: one does.
    """
    macros = {str(macro.name): macro for macro in parsed.find_all(nodes.Macro)}
    calls = {
        name: {str(found.name) for found in macro.find_all(nodes.Name) if found.name in macros}
        for name, macro in macros.items()
    }
    for name, macro in macros.items():
        reached, waiting = set[str](), list(calls[name])
        while waiting:
            called = waiting.pop()
            if called not in reached:
                reached.add(called)
                waiting += calls[called]
        if name in reached:
            raise UntranslatableError(f"line {macro.lineno}: the macro {name} calls itself, which nothing bounds there")


def _is_generation(node: nodes.CallBlock) -> bool:
    called = node.call.node
    return isinstance(called, nodes.ExtensionAttribute) and called.name == GENERATION
