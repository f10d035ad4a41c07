"""Imports point down only, heavy libraries stay where they belong, and only the CLI prints.

Every import counts: at the top of a file, inside a function, under TYPE_CHECKING, and
`importlib.import_module` with a literal name.
"""

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Storeys from top to bottom. A part may import the storeys below its own, never above, never its neighbours.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__", "__init__"),  # the command and `import hvlc`: doors
    ("cli",),
    ("workflows",),
    ("tracing", "report", "calibration", "package", "training", "serving"),
    ("export", "passes", "lint", "qnn", "runtime", "evaluation", "solvers"),
    ("models", "zoo"),
    ("opening",),
    ("recipes",),
    ("results",),
    ("manifest", "targets"),
    ("imaging",),
    ("graphs",),
    ("weights",),
    ("chat",),
    ("inputs",),
    ("files",),
    ("errors",),
)

#: Third-party packages and the parts that may import them.
CONFINED: dict[str, tuple[str, ...]] = {
    "torch": ("hvlc.export", "hvlc.models", "hvlc.training", "hvlc.solvers.neural_compressor"),
    "safetensors.torch": ("hvlc.export", "hvlc.models", "hvlc.training"),
    "torchao": (),
    "transformers": ("hvlc.export", "hvlc.models", "hvlc.training", "hvlc.solvers.neural_compressor"),
    "optimum": ("hvlc.export", "hvlc.models", "hvlc.training"),
    "neural_compressor": ("hvlc.solvers.neural_compressor",),
    "huggingface_hub": ("hvlc.weights.hub", "hvlc.models"),
    "numba": ("hvlc.solvers.kernels",),
    "gguf": ("hvlc.weights.gguf.file", "hvlc.weights.prequantized.gguf"),
    "pyarrow": ("hvlc.evaluation.benchmarks",),
    "psutil": ("hvlc.workflows.build.memory",),
    "starlette": ("hvlc.serving",),
    "uvicorn": ("hvlc.serving.listening",),
    "onnxruntime_qnn": ("hvlc.qnn.worker", "hvlc.runtime.providers"),
}

#: The modules that may open a session of onnxruntime; the second runs in a process of its own.
SESSIONS = ("hvlc.graphs.sessions", "hvlc.qnn.worker")

#: The parts that may call print.
PRINTERS = ("hvlc.cli", "hvlc.__main__")


@dataclass(frozen=True)
class Import:
    """One imported name, absolute, e.g. `hvlc.errors.UserError`."""

    module: str
    name: str
    line: int


def within(name: str, package: str) -> bool:
    """Whether `name` is `package` or inside it."""
    return name == package or name.startswith(f"{package}.")


def part(name: str) -> str:
    """The part of hvlc that a dotted name belongs to: its second component, or `__init__`."""
    return [*name.split("."), "__init__"][1]


def modules(root: Path) -> dict[str, ast.Module]:
    """The parsed sources of `root/hvlc`, by dotted name; a package's name ends in `__init__`."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"), str(path))
        for path in sorted((root / "hvlc").rglob("*.py"))
    }


def imports(module: str, tree: ast.Module, known: frozenset[str]) -> Iterator[Import]:
    """Every import of a module; `known` holds the parts of hvlc, to tell them from names in hvlc/__init__.py."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                base = ".".join([*package, base] if base else package)
            for alias in node.names:
                inside = base != "hvlc" or alias.name in known
                yield Import(module, f"{base}.{alias.name}" if inside else base, node.lineno)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(module, node.args[0].value, node.lineno)


def layering(found: Import) -> str | None:
    """What is wrong with an import of one part of hvlc by another."""
    above, below = part(found.module), part(found.name)
    if above == below:
        return None
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    unknown = [name for name in (above, below) if name not in level]
    if unknown:
        return f"hvlc.{unknown[0]} has no place in LAYERS"
    if level[above] < level[below]:
        return None
    return f"{above} must not import its {'sibling' if level[above] == level[below] else 'superior'} {below}"


def violations(root: Path) -> list[str]:
    """Every broken rule under `root/hvlc`, one line each, with file and line."""
    sources = modules(root)
    known = frozenset(part(name) for name in sources)
    found: list[str] = []
    for module, tree in sources.items():
        own = module.removesuffix(".__init__")
        where = f"{module.replace('.', '/')}.py"
        if part(module) not in {name for layer in LAYERS for name in layer}:
            found.append(f"{where}: hvlc.{part(module)} has no place in LAYERS")
        for imported in imports(module, tree, known):
            wrong = layering(imported) if within(imported.name, "hvlc") else None
            if wrong:
                found.append(f"{where}:{imported.line}: {wrong}")
            for package, allowed in CONFINED.items():
                if within(imported.name, package) and not any(within(own, place) for place in allowed):
                    found.append(f"{where}:{imported.line}: {package} is for {', '.join(allowed) or 'nobody'}")
        if not any(within(own, place) for place in PRINTERS):
            calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
            found += [f"{where}:{call.lineno}: print is for the CLI" for call in calls if _is_print(call.func)]
        if own not in SESSIONS:
            calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
            opened = (call for call in calls if _called(call.func) in ("InferenceSession", "SessionOptions"))
            found += [f"{where}:{call.lineno}: sessions are opened by {SESSIONS[0]}" for call in opened]
    return list(dict.fromkeys(found))


def circles(root: Path) -> list[str]:
    """Modules that import each other, directly or over others: each group on a line."""
    sources = modules(root)
    known = frozenset(part(name) for name in sources)
    below = {
        module: {
            name
            for found in imports(module, tree, known)
            if found.name != "hvlc" and (name := _module_of(found.name, sources))
        }
        - {module}
        for module, tree in sources.items()
    }
    reached: dict[str, set[str]] = {}
    for module, direct in below.items():
        seen, waiting = set[str](), list(direct)
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                waiting += below[name]
        reached[module] = seen
    groups = {frozenset(n for n in reached[m] if m in reached[n]) for m in below if m in reached[m]}
    return sorted(" <> ".join(sorted(group)) for group in groups)


def _module_of(name: str, sources: dict[str, ast.Module]) -> str | None:
    """The module that an imported name is, or is in."""
    pieces = name.split(".")
    for count in (len(pieces), len(pieces) - 1):
        found = ".".join(pieces[:count])
        for module in (found, f"{found}.__init__"):
            if module in sources:
                return module
    return None


def _called(function: ast.expr) -> str:
    """The name of what is called, without the module that it is taken from."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_print(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id == "print"


def test_layers_hold() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/design.md"])
def test_the_documents_show_the_storeys(document: str) -> None:
    lines = (ROOT / document).read_text("utf-8").splitlines()
    first = next(at for at, line in enumerate(lines) if re.fullmatch(r" {4}cli( > .*)?", line))
    shown = "\n".join(itertools.takewhile(lambda line: line.startswith("    "), lines[first:]))
    shown = re.sub(r"(?<=workflows) {2}.*", "", shown)  # what CONTRIBUTING says of it
    storeys = tuple(tuple(re.findall(r"\w+", storey)) for storey in re.split(r"\n(?! *>)| > ", shown))
    assert storeys == LAYERS[1:]


def test_no_module_imports_itself_over_others() -> None:
    assert circles(ROOT) == []


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    sources = {"passes/a.py": "from hvlc.passes.b import x", "passes/b.py": "def f():\n    from hvlc.passes import c"}
    _plant(tmp_path, sources | {"passes/c.py": "import hvlc.passes.a", "passes/d.py": "from hvlc.passes.a import y"})
    assert circles(tmp_path) == ["hvlc.passes.a <> hvlc.passes.b <> hvlc.passes.c"]


def test_the_root_imports_nothing_before_a_function_is_called() -> None:
    tree = modules(ROOT)["hvlc.__init__"]
    assert not [i for i in imports("hvlc.__init__", _top(tree), frozenset()) if within(i.name, "hvlc")]


def _top(tree: ast.Module) -> ast.Module:
    """The statements that run on import: neither functions nor what type checkers alone read."""
    return ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.If)], [])


def test_the_root_holds_rooms_alone() -> None:
    assert sorted(path.name for path in (ROOT / "hvlc").glob("*.py")) == ["__init__.py", "__main__.py", "errors.py"]


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("targets/a.py", "from hvlc.workflows import build", "targets must not import its superior workflows"),
        ("passes/a.py", "from hvlc import workflows", "passes must not import its superior workflows"),
        ("report/a.py", "from hvlc import __version__", "report must not import its superior __init__"),
        ("passes/a.py", "def f():\n    import hvlc.package.manifest", "passes must not import its superior package"),
        ("passes/a.py", "from ..runtime import x", "passes must not import its sibling runtime"),
        ("models/__init__.py", "from ..zoo import x", "models must not import its sibling zoo"),
        (
            "graphs/a.py",
            "import importlib\nimportlib.import_module('hvlc.recipes')",
            "graphs must not import its superior",
        ),
        ("recipes/a.py", "from hvlc.passes import x", "recipes must not import its superior passes"),
        ("weights/a.py", "from hvlc.graphs.plan import x", "weights must not import its superior graphs"),
        ("errors.py", "from hvlc.novelty import x", "hvlc.novelty has no place in LAYERS"),
        ("novelty.py", "", "hvlc.novelty has no place in LAYERS"),
        ("workflows/a.py", "def f():\n    import torch.nn", "torch is for hvlc.export"),
        ("runtime/a.py", "from torch import nn", "torch is for hvlc.export"),
        ("zoo/a.py", "from transformers import AutoModel", "transformers is for hvlc.export"),
        ("weights/a.py", "from safetensors.torch import load_file", "safetensors.torch is for hvlc.export"),
        ("export/a.py", "import neural_compressor", "neural_compressor is for hvlc.solvers.neural_compressor"),
        ("report/a.py", "def f():\n    print('x')", "print is for the CLI"),
        ("runtime/a.py", "import onnxruntime as ort\nort.InferenceSession('x')", "sessions are opened by hvlc.graphs"),
        ("lint/a.py", "from onnxruntime import SessionOptions\no = SessionOptions()", "sessions are opened by"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, source: str, message: str) -> None:
    _plant(tmp_path, {"workflows/__init__.py": "", "recipes/__init__.py": ""} | {path: source})
    assert [message in line for line in violations(tmp_path)] == [True]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/a.py", "def f():\n    from hvlc import workflows\n    print('x')"),
        ("recipes/a.py", "from importlib.metadata import version\nfrom hvlc.results import x"),
        ("training/a.py", "import torch\nfrom hvlc.models import hypervl\nfrom hvlc.zoo import documents"),
        ("passes/a.py", "from .b import x\nfrom hvlc.passes import c\nfrom hvlc.inputs.documents import y"),
        ("runtime/a.py", "import torchlight\nfrom safetensors.numpy import load_file"),
        ("report/a.py", "console.print('x')"),
        ("graphs/sessions.py", "import onnxruntime as ort\nort.InferenceSession('x', ort.SessionOptions())"),
        ("runtime/a.py", "def f(options: ort.SessionOptions) -> ort.InferenceSession: ..."),
    ],
)
def test_a_downward_import_passes(tmp_path: Path, path: str, source: str) -> None:
    _plant(tmp_path, {"__init__.py": "", "workflows/__init__.py": "", path: source})
    assert violations(tmp_path) == []


def _plant(root: Path, sources: dict[str, str]) -> None:
    for path, source in sources.items():
        file = root / "hvlc" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
