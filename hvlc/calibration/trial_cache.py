"""Results of sensitivity trials on disk: a killed measurement continues, and a finished one is not repeated."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from hvlc.calibration.sensitivity import Damage
from hvlc.errors import UserError
from hvlc.files.locks import locked_directory
from hvlc.files.reading import is_file
from hvlc.files.whole import write_files
from hvlc.files.writing import make_directory, writing
from hvlc.inputs.documents import read_json

_CODE = "sensitivity.cache"
_LARGEST = 200_000_000  # bytes of a file; a trial takes about 200
_PATIENCE = 10  # seconds for another measurement to enter what it found


@dataclass(frozen=True)
class TrialCache:
    """Damages that are known, in a file that grows with every one that is found.

    Attributes:
        path: of the file.
        fingerprint: of what they depend on.
        damages: "output_error" and "loss" by part and format.
    """

    path: Path
    fingerprint: Mapping[str, str]
    damages: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, directory: Path, fingerprint: Mapping[str, str]) -> "TrialCache":
        """Go on with a measurement, or begin one; what the file holds that is not a damage is found again.

        Args:
            directory: of all trial caches, made if it is not there.
            fingerprint: of all that the damages depend on besides part and format, by the name of each input.

        Raises:
            UserError: the directory cannot be made, or the file cannot be read.
        """
        name = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:24]
        with _in_cache():
            make_directory(directory, _CODE)
        path = directory / f"{name}.json"
        return cls(path, fingerprint, _read(path))

    def knows(self, key: str, *, loss: bool) -> bool:
        """Whether a trial needs no work any more.

        Args:
            key: of the trial.
            loss: whether its loss is wanted.
        """
        found = self.damages.get(key)
        return found is not None and (not loss or found["loss"] is not None)

    def put(self, key: str, damage: Damage) -> None:
        """Keep what was found, together with what other measurements have entered meanwhile.

        Raises:
            UserError: the file cannot be written, or another measurement does not let go of it.
        """
        found = {"output_error": damage.output_error, "loss": damage.loss}
        held = locked_directory(self.path.parent, seconds=_PATIENCE)
        with _in_cache(), writing(self.path, _CODE), held:
            for entered, values in (*_read(self.path).items(), (key, found)):
                if not self.knows(entered, loss=True):
                    self.damages[entered] = values
            content = {"fingerprint": dict(self.fingerprint), "damages": self.damages}
            write_files({self.path: [json.dumps(content, indent=1).encode(), b"\n"]}, _CODE)


@contextlib.contextmanager
def _in_cache() -> Iterator[None]:
    """Errors of a cache with the way out that only a cache has."""
    try:
        yield
    except UserError as error:
        raise UserError(error.code, error.cause, f"{error.fix}; --cache names another directory") from error


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The damages of a file; none where there is no file."""
    known = read_json(path, _CODE, limit=_LARGEST) if is_file(path) else None
    damages = known.get("damages") if isinstance(known, dict) else None
    found = damages if isinstance(damages, dict) else {}
    return {key: damage for key, damage in found.items() if _is_damage(damage)}


def _is_damage(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"output_error", "loss"}:
        return False
    numbers = [value["output_error"], *([] if value["loss"] is None else [value["loss"]])]
    return all(isinstance(n, float | int) and isfinite(n) and n >= 0 for n in numbers)
