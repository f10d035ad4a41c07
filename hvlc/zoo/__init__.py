"""The small trained reference checkpoint and the documents it reads; no torch."""

from pathlib import Path

from hvlc.errors import HvlcError


def nano_checkpoint() -> Path:
    """Directory of the shipped hypervl-nano checkpoint.

    Raises:
        HvlcError: the installation lacks it.
    """
    directory = Path(__file__).parent / "hypervl-nano"
    if not (directory / "config.json").is_file():
        raise HvlcError("zoo.missing", f"{directory} holds no checkpoint", "install hvlc again, or hvlc train nano")
    return directory
