"""Checkpoints by their id on the Hugging Face hub, `ORGANIZATION/NAME` or `ORGANIZATION/NAME@REVISION`.

A file or directory of that name wins. huggingface_hub keeps what it fetches in its cache; it is asked for the files
that a build reads and for nothing else: never for code (.py) or pickles (.bin). With a network the hub says which
commit a branch or tag is at; without one, or with HF_HUB_OFFLINE=1, the commit that the cache knows is taken.
"""

import glob
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hvlc.errors import UserError
from hvlc.files.reading import is_file, state_of
from hvlc.inputs.documents import read_json
from hvlc.weights.checkpoint_files import INDEX, SETTINGS, SINGLE

#: huggingface_hub's rule (`validate_repo_id`), less what is more likely a path: names that begin with a dot.
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_ID = re.compile(rf"({_PART}/{_PART})(?:@([^\s@]{{1,200}}))?", re.ASCII)
_SNAPSHOT = re.compile(r"[0-9a-f]{40}")
_SHOWN = 300  # characters of a message of the hub


@dataclass(frozen=True)
class HubId:
    """A model on the hub.

    Attributes:
        repository: "organization/name".
        revision: branch, tag or commit.
    """

    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"


def hub_id(given: Path) -> HubId | None:
    """The model that a name stands for; None where a file or directory has this name, or the hub has no such names."""
    found = _ID.fullmatch(str(given))
    if found is None or "--" in found[1] or ".." in found[1] or found[1].lower().endswith((".gguf", ".git")):
        return None
    return None if state_of(given) is not None else HubId(found[1], found[2] or "main")


def located(given: Path) -> Path:
    """The directory of a checkpoint that may be named by its id: its snapshot, fetched where the cache lacks a part.

    Args:
        given: a path, or an id.

    Returns:
        The path as it is where it is not an id, or huggingface_hub is not installed.

    Raises:
        UserError: the hub does not know the model, does not give it to this user, or cannot be reached; or the model is
            not stored as safetensors.
    """
    named = hub_id(given)
    return given if named is None else _snapshot(named) or given


def origin_of(directory: Path) -> str | None:
    """Id and commit, `organization/name@commit`, of a snapshot in the hub's cache; None for other directories."""
    parts = directory.absolute().parts[-3:]
    if len(parts) != 3 or parts[1] != "snapshots" or not _SNAPSHOT.fullmatch(parts[2]):
        return None
    kind, *names = parts[0].split("--")
    return f"{'/'.join(names)}@{parts[2]}" if kind == "models" and len(names) == 2 else None


def name_of(directory: Path) -> str:
    """Name of a checkpoint for people: its directory's, or that of its model on the hub."""
    origin = origin_of(directory)
    return origin.partition("@")[0].rpartition("/")[2] if origin else directory.resolve().name


@cache
def _snapshot(named: HubId) -> Path | None:
    """The snapshot of a model, whole: the same one for the time of a command, whatever the hub does meanwhile.

    Raises:
        UserError: see `located`.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    with _told(named), _bars_on_a_terminal():
        found = Path(snapshot_download(named.repository, revision=named.revision, allow_patterns=[*SETTINGS, INDEX]))
        weights = _weights(found)
        patterns = [glob.escape(name) for name in weights]
        snapshot_download(named.repository, revision=found.name, allow_patterns=patterns)
    missing = [name for name in ("config.json", *weights) if not is_file(found / name)]
    if missing and _offline():
        cause = f"HF_HUB_OFFLINE is set, and the cache lacks {', '.join(missing[:3])} of {named}"
        raise UserError("hub.offline", cause, _fetch_first(named))
    if missing:
        cause = f"{named} is on the hub and holds no {', '.join(missing[:3])}"
        fix = "name a model that is stored as safetensors; of a GGUF model fetch the file and name that"
        raise UserError("hub.files", cause, fix)
    return found


def _weights(snapshot: Path) -> list[str]:
    """Names of the weight files; one that leads elsewhere is left out here, and refused when the index is read."""
    if not is_file(snapshot / INDEX):
        return [SINGLE]
    content: Any = read_json(snapshot / INDEX, "checkpoint.config")
    names = content.get("weight_map") if isinstance(content, dict) else None
    found = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    return [name for name in found if Path(name).name == name and name.endswith(".safetensors")]


@contextmanager
def _bars_on_a_terminal() -> Iterator[None]:
    """Show what is fetched on a terminal, and nothing elsewhere."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if silent:
        disable_progress_bars()
    try:
        yield
    finally:
        if silent:
            enable_progress_bars()


@contextmanager
def _told(named: HubId) -> Iterator[None]:
    """Tell what went wrong at the hub, and the way out.

    Raises:
        UserError: something did.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        fix = f"accept its terms on its page and log in with `hf auth login`, or set HF_TOKEN; then {_fetch(named)}"
        raise UserError("hub.gated", f"the hub does not give {named} to everybody", fix) from error
    except RepositoryNotFoundError as error:
        cause = f"{named} is not a directory here, and the hub does not know or does not show it"
        raise UserError(
            "hub.unknown", cause, "correct the name; for a private model log in: `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        cause = f"{named.repository} has no branch, tag or commit {named.revision}"
        raise UserError("hub.revision", cause, "name one that it has after the @") from error
    except HFValidationError as error:
        raise UserError("hub.unknown", f"{named}: {str(error)[:_SHOWN]}", "correct the name") from error
    except LocalEntryNotFoundError as error:
        if _offline():
            cause = (
                f"{named} is not a directory here, HF_HUB_OFFLINE is set, and the hub's cache does not hold all of it"
            )
            raise UserError("hub.offline", cause, _fetch_first(named)) from error
        raise _unreachable(named, error) from error
    except HfHubHTTPError.__bases__ as error:  # OSError, and every error of the HTTP library, whichever it is
        raise _unreachable(named, error) from error


def _unreachable(named: HubId, error: BaseException) -> UserError:
    said = next((str(e) for e in (error.__cause__, error) if e is not None and str(e)), type(error).__name__)
    cause = f"{named} is not a directory here, and could not be fetched: {' '.join(said.split())[:_SHOWN]}"
    return UserError("hub.network", cause, f"check network, proxy and room on the disk; or {_fetch_first(named)}")


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _fetch_first(named: HubId) -> str:
    return f"where there is a network, {_fetch(named)}; or name a directory"


def _fetch(named: HubId) -> str:
    revision = "" if named.revision == "main" else f" --revision {named.revision}"
    return f"run `hf download {named.repository}{revision}`"
