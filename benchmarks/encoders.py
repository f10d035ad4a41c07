"""Memory of a package with several encoders: before an answer, after one encoder, and after a switch to another.

Every sequence of encoders runs in a process of its own. The ratio compares a process that switched with one that only
ever had the last encoder, both above the opened package: 1 where an encoder that no longer answers takes nothing.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measuring import memory

_MIB = 2**20


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--side", type=int, default=256, help="pixels of the square image")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sequence", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.sequence is not None:
        print(json.dumps(in_this_process(asked.package, asked.sequence, asked.side)))
        return
    found = measured(asked.package, asked.side)
    print(json.dumps(found) if asked.json else table(found))


def in_this_process(package: Path, encoders: Sequence[str], side: int) -> list[tuple[int, int]]:
    """Resident and unshared bytes with the package open, then after an answer by each of the encoders."""
    import numpy as np
    from PIL import Image

    from hvlc.runtime.generation import open_model
    from hvlc.runtime.settings import VisionSettings

    model = open_model(package, vision=VisionSettings(feature_cache=0))
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    found = [memory(os.getpid())]
    for encoder in encoders:
        model.answer("What?", [Image.fromarray(pixels)], encoder=encoder, vrc=False, max_new_tokens=1)
        found.append(memory(os.getpid()))
    return found


def measured(package: Path, side: int) -> list[dict[str, object]]:
    """A record for every pair of encoders: bytes above the opened package, and ratios to the last encoder alone."""
    from hvlc.manifest.manifest import Manifest

    encoders = Manifest.load(package).encoders
    alone = {name: _above(package, [name], side)[-1] for name in encoders}
    records: list[dict[str, object]] = []
    for first, last in itertools.permutations(encoders, 2):
        before, after = _above(package, [first, last], side)
        kinds = ("resident", "unshared")
        records.append(
            {"first": first, "last": last}
            | {f"{kind}_first": before[i] for i, kind in enumerate(kinds)}
            | {f"{kind}_after_switch": after[i] for i, kind in enumerate(kinds)}
            | {f"{kind}_last_alone": alone[last][i] for i, kind in enumerate(kinds)}
            | {f"{kind}_ratio": after[i] / alone[last][i] for i, kind in enumerate(kinds) if alone[last][i] > 0}
        )
    return records


def _above(package: Path, encoders: Sequence[str], side: int) -> list[tuple[int, int]]:
    command = [sys.executable, __file__, str(package), "--side", str(side), "--sequence", *encoders]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    opened, *later = json.loads(made.stdout)
    return [(resident - opened[0], unshared - opened[1]) for resident, unshared in later]


def table(records: Sequence[dict[str, object]]) -> str:
    """Lines of text, bytes in MiB."""
    lines = []
    for record in records:
        figures = (
            f"{name} {value / _MIB:.1f} MiB" if isinstance(value, int) else f"{name} {value:.2f}"
            for name, value in record.items()
            if isinstance(value, int | float)
        )
        lines.append(f"{record['first']} then {record['last']}: {', '.join(figures)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
