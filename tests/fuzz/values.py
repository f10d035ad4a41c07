"""Values that nobody means, and putting them into a document."""

import copy
import random
from collections.abc import Sequence
from typing import Any

#: Of every type that JSON, YAML and TOML know.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**39,
    -(10**39),
    0.0,
    -0.5,
    1e308,
    1e-320,
    "",
    " ",
    "x" * 3000,
    "../../x",
    "\0",
    "\x1b[31m",
    "\u202e",
    "%s{}{0}",
    "nan",
    [],
    [[]],
    [1, "a", None],
    ["x"] * 2000,
    {},
    {"a": {"b": {}}},
)


def replaced(content: Any, source: random.Random, values: Sequence[Any] = VALUES) -> Any:
    """A document of objects and lists with one to three values or keys of it changed, removed or added."""
    changed = copy.deepcopy(content)
    for _ in range(source.randint(1, 3)):
        holder = _holder(changed, source)
        if isinstance(holder, dict) and holder:
            key = source.choice(list(holder))
            match source.randrange(5):
                case 0:
                    del holder[key]
                case 1:
                    holder[f"{key}{source.choice(('_', 's', 'x'))}"] = holder[key]
                case _:
                    holder[key] = copy.deepcopy(source.choice(values))
        elif isinstance(holder, list) and holder:
            holder[source.randrange(len(holder))] = copy.deepcopy(source.choice(values))
    return changed


def _holder(content: Any, source: random.Random) -> Any:
    """An object or list somewhere in a document."""
    while True:
        below = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
        inner = [part for part in below if isinstance(part, dict | list) and part]
        if not inner or source.random() < 0.3:
            return content
        content = source.choice(inner)
