"""The argument `--target` visits few modules; docs/design.md names every one."""

import ast
from pathlib import Path

import hvlc
from tests.test_layers import imports, modules

ROOT = Path(hvlc.__file__).parents[1]
#: Where a build's target is a name, is loaded, or travels.
BUILD = frozenset(
    """
    __init__ cli.build workflows.build.request targets.loading targets.schema workflows.build.prepare
    workflows.build.limits passes.lists recipes.resolve workflows.build.lowering workflows.sensitivity.sensitivity
    workflows.build.build lint.engine qnn.compiler
    """.split()
)
#: Other commands: `lint`, `compile`, `targets`, `recipes check`, `pareto`, `demo`, `eval`, `verify --rebuild`,
#: `train vrc`.
OTHERS = frozenset(
    """
    cli.lint workflows.lint.lint workflows.lint.probing cli.compilation cli.targets report.lint cli.recipes
    workflows.sensitivity.pareto workflows.demo workflows.evaluate.model workflows.build.rebuild workflows.train.vrc
    """.split()
)
_NAMES = ("hvlc.targets.Target", "hvlc.targets.load_target", "hvlc.targets.schema.Target")
_OPENS = "hvlc.workflows.build.request.open_request"


def visited(sources: dict[str, ast.Module]) -> set[str]:
    """Modules that import a target's class or what loads one, or read the target of a request."""
    known = frozenset({"targets", "workflows"})
    found = set()
    for name, tree in sources.items():
        taken = {one.name for one in imports(name, tree, known)}
        attributes = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        if taken & {*_NAMES, _OPENS} or "request.target" in attributes:
            found.add(name.removeprefix("hvlc."))
    return found


def test_a_builds_target_visits_these_modules_alone() -> None:
    found = visited(modules(ROOT)) - {"targets.__init__"} | {"targets.schema"}
    assert found - OTHERS == BUILD
    assert len(BUILD) <= 14


def test_a_planted_visitor_is_found() -> None:
    asks = "from hvlc.targets import Target\ndef f(target: Target): ..."
    reads = "def f(request):\n    return request.target"
    planted = {"hvlc.passes.a": asks, "hvlc.passes.b": "from hvlc.targets import Severity", "hvlc.runtime.c": reads}
    assert visited({name: ast.parse(source) for name, source in planted.items()}) == {"passes.a", "runtime.c"}


def test_design_names_every_module() -> None:
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    told = text[text.index("**The argument `--target`.**") :]
    assert [name for name in BUILD if f"`{name.replace('.', '/')}.py`" not in told] == []
