"""What trials have found, kept so that a killed measurement goes on and a finished one is not done again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from hvlc.calibration.sensitivity import Damage
from hvlc.errors import UserError
from hvlc.inputs.documents import read_json
from hvlc.results import write_whole


@dataclass(frozen=True)
class Ledger:
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
    def open(cls, directory: Path, fingerprint: Mapping[str, str]) -> "Ledger":
        """Go on with a measurement, or begin one; what the file holds that is no damage is found again.

        Args:
            directory: of all ledgers, made if it is not there.
            fingerprint: of all that the damages depend on besides part and format, by the name of each input.

        Raises:
            UserError: the directory cannot be made, or the file cannot be read.
        """
        name = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:24]
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            cause = f"cannot make {directory}: {error.strerror or error}"
            raise UserError("sensitivity.cache", cause, "name another directory with --cache") from error
        path = directory / f"{name}.json"
        known = read_json(path, "sensitivity.cache") if path.is_file() else None
        damages = known.get("damages") if isinstance(known, dict) else None
        found = damages if isinstance(damages, dict) else {}
        return cls(path, fingerprint, {key: damage for key, damage in found.items() if _is_damage(damage)})

    def knows(self, key: str, *, loss: bool) -> bool:
        """Whether a trial needs no work any more.

        Args:
            key: of the trial.
            loss: whether its loss is wanted.
        """
        found = self.damages.get(key)
        return found is not None and (not loss or found["loss"] is not None)

    def put(self, key: str, damage: Damage) -> None:
        """Keep what was found."""
        self.damages[key] = {"output_error": damage.output_error, "loss": damage.loss}
        content = {"fingerprint": dict(self.fingerprint), "damages": self.damages}
        write_whole(self.path, [json.dumps(content, indent=1), "\n"])


def _is_damage(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"output_error", "loss"}:
        return False
    numbers = [value["output_error"], *([] if value["loss"] is None else [value["loss"]])]
    return all(isinstance(n, float | int) and isfinite(n) and n >= 0 for n in numbers)
