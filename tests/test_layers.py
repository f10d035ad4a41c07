"""Imports point down only, heavy libraries stay where they belong, and only the CLI prints.

Every import counts: at the top of a file, inside a function, under TYPE_CHECKING, and
`importlib.import_module` with a literal name.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: From top to bottom. A part may import the layers below its own, never above, never its siblings.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("pipeline",),
    ("recipes",),
    (
        "export",
        "passes",
        "lint",
        "calibration",
        "compilation",
        "package",
        "runtime",
        "evaluation",
        "report",
        "training",
    ),
    ("models", "zoo"),
    ("built", "sensitivity", "shapes"),
    ("graph",),
    ("prequantized",),
    ("balance", "bundle", "linears", "rotation", "manifest", "lock", "target", "plan", "quantized", "results"),
    ("lazy", "placement", "stages"),
    ("checkpoint",),
    ("gguf",),
    ("inputs",),
    ("files",),
    ("errors",),
    ("__init__",),  # hvlc itself: the version
)

#: Sibling imports that are meant: (module, imported part) and why. Unused entries fail the test.
SIBLINGS: dict[tuple[str, str], str] = {
    ("hvlc.manifest.lock", "manifest"): "a lock lists files as the manifest does",
    ("hvlc.graphs.plan", "bundle"): "a plan assigns the weights of a bundle",
    ("hvlc.weights.quantized", "plan"): "the format of a weight is what a plan assigned",
}

#: Third-party packages and the parts that may import them.
CONFINED: dict[str, tuple[str, ...]] = {
    "torch": ("hvlc.export", "hvlc.models", "hvlc.training", "hvlc.solvers.neural_compressor"),
    "safetensors.torch": ("hvlc.export", "hvlc.models", "hvlc.training"),
    "torchao": (),
    "transformers": ("hvlc.export", "hvlc.models", "hvlc.training", "hvlc.solvers.neural_compressor"),
    "optimum": ("hvlc.export", "hvlc.models", "hvlc.training"),
    "neural_compressor": ("hvlc.solvers.neural_compressor",),
    "numba": ("hvlc.solvers.kernels",),
    "gguf": ("hvlc.weights.gguf.file", "hvlc.weights.prequantized.gguf"),
    "psutil": ("hvlc.workflows.build.memory",),
    "onnxruntime_qnn": ("hvlc.qnn.worker", "hvlc.runtime.providers"),
}

#: Confined packages used elsewhere: (module, package) and why. Unused entries fail the test.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("hvlc.training.tokenizer", "transformers"): "makes a transformers tokenizer; training alone imports it",
}

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


def layering(found: Import, siblings: Mapping[tuple[str, str], str]) -> str | None:
    """What is wrong with an import of one part of hvlc by another."""
    above, below = part(found.module), part(found.name)
    if above == below:
        return None
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    unknown = [name for name in (above, below) if name not in level]
    if unknown:
        return f"hvlc.{unknown[0]} has no place in LAYERS"
    if level[above] < level[below] or (found.module, below) in siblings:
        return None
    return f"{above} must not import its {'sibling' if level[above] == level[below] else 'superior'} {below}"


def violations(
    root: Path,
    siblings: Mapping[tuple[str, str], str] = SIBLINGS,
    exceptions: Mapping[tuple[str, str], str] = EXCEPTIONS,
) -> list[str]:
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
            wrong = layering(imported, siblings) if within(imported.name, "hvlc") else None
            if wrong:
                found.append(f"{where}:{imported.line}: {wrong}")
            for package, allowed in CONFINED.items():
                if not within(imported.name, package) or (own, package) in exceptions:
                    continue
                if not any(within(own, place) for place in allowed):
                    found.append(f"{where}:{imported.line}: {package} is for {', '.join(allowed) or 'nobody'}")
        if not any(within(own, place) for place in PRINTERS):
            calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
            found += [f"{where}:{call.lineno}: print is for the CLI" for call in calls if _is_print(call.func)]
    return list(dict.fromkeys(found))


def _is_print(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id == "print"


def test_layers_hold() -> None:
    assert violations(ROOT) == []


def test_exceptions_are_in_use() -> None:
    sources = modules(ROOT)
    known = frozenset(part(name) for name in sources)
    every = [found for module, tree in sources.items() for found in imports(module, tree, known)]
    for module, below in SIBLINGS:
        assert any(i.module == module and within(i.name, f"hvlc.{below}") for i in every), (module, below)
    for module, package in EXCEPTIONS:
        assert any(i.module == module and within(i.name, package) for i in every), (module, package)


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("target.py", "from hvlc.workflows import build", "target must not import its superior pipeline"),
        ("passes/a.py", "from hvlc import pipeline", "passes must not import its superior pipeline"),
        ("passes/a.py", "def f():\n    import hvlc.package.manifest", "passes must not import its sibling package"),
        ("passes/a.py", "from ..runtime import x", "passes must not import its sibling runtime"),
        ("models/__init__.py", "from ..zoo import x", "models must not import its sibling zoo"),
        ("plan.py", "import importlib\nimportlib.import_module('hvlc.recipes')", "plan must not import its superior"),
        ("errors.py", "from hvlc.novelty import x", "hvlc.novelty has no place in LAYERS"),
        ("novelty.py", "", "hvlc.novelty has no place in LAYERS"),
        ("pipeline.py", "def f():\n    import torch.nn", "torch is for hvlc.export"),
        ("runtime/a.py", "from torch import nn", "torch is for hvlc.export"),
        ("zoo/a.py", "from transformers import AutoModel", "transformers is for hvlc.export"),
        ("checkpoint.py", "from safetensors.torch import load_file", "safetensors.torch is for hvlc.export"),
        ("export/a.py", "import neural_compressor", "neural_compressor is for hvlc.solvers.neural_compressor"),
        ("report/a.py", "def f():\n    print('x')", "print is for the CLI"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, source: str, message: str) -> None:
    _plant(tmp_path, {"pipeline.py": "", "recipes/__init__.py": ""} | {path: source})
    assert [message in line for line in violations(tmp_path)] == [True]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli.py", "def f():\n    from hvlc import pipeline\n    print('x')"),
        ("recipes/a.py", "from hvlc import __version__\nfrom hvlc.passes import x"),
        ("training/a.py", "import torch\nfrom hvlc.models import hypervl\nfrom hvlc.zoo import documents"),
        ("passes/a.py", "from .b import x\nfrom hvlc.passes import c\nfrom hvlc.inputs.documents import y"),
        ("runtime/a.py", "import torchlight\nfrom safetensors.numpy import load_file"),
        ("report/a.py", "console.print('x')"),
    ],
)
def test_a_downward_import_passes(tmp_path: Path, path: str, source: str) -> None:
    _plant(tmp_path, {"__init__.py": "", "pipeline.py": "", path: source})
    assert violations(tmp_path) == []


def test_an_exception_covers_its_module_alone(tmp_path: Path) -> None:
    _plant(tmp_path, {"plan.py": "from hvlc.graphs.bundle import x", "results.py": "from hvlc.graphs.bundle import x"})
    assert violations(tmp_path, siblings={("hvlc.graphs.plan", "bundle"): "a plan is made for a bundle"}) == [
        "hvlc/results.py:1: results must not import its sibling bundle"
    ]


def _plant(root: Path, sources: dict[str, str]) -> None:
    for path, source in sources.items():
        file = root / "hvlc" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
