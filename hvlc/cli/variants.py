"""`--variant name=value`: what a request chooses of what a package offers.

`--encoder` and `--no-vrc` are short forms of the two that exist.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click

from hvlc.cli.options import WORDS
from hvlc.errors import UserError, nearest
from hvlc.files.reading import is_file

_ENCODER, _COMPRESSOR = "encoder", "vrc"
_SWITCH = ("on", "off")
_CODE = "request.variant"


def variant_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--variant` to a command that has `--encoder` and `--no-vrc`."""

    @click.option(
        "--variant",
        "variants",
        type=WORDS,
        multiple=True,
        help="NAME=VALUE of what the package offers (hvlc inspect); repeatable.",
    )
    @wraps(command)
    def chosen(*arguments: Any, variants: tuple[str, ...], **options: Any) -> None:
        pairs = [_pair(variant) for variant in variants]
        places = [options["directory"]] if "directory" in options else options.get("models", ())
        for place in places if pairs else ():
            _check_offered(pairs, place)
        command(*arguments, **merged(pairs, options))

    return chosen


def _pair(variant: str) -> tuple[str, str]:
    """Name and value of `NAME=VALUE`.

    Raises:
        UserError: it is of another form.
    """
    name, _, value = variant.partition("=")
    if not name or not value:
        raise UserError(_CODE, f"--variant is {variant!r:.80}", "give NAME=VALUE")
    return name, value


def merged(variants: Sequence[tuple[str, str]], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command with its variants in them.

    Args:
        variants: names and values.
        options: with `encoder` or `encoders`, and `no_vrc`.

    Raises:
        UserError: a name or a value of the compressor is not known, a variant is chosen twice, or a short form says
            otherwise.
    """
    unknown = next((name for name, _ in variants if name not in (_ENCODER, _COMPRESSOR)), None)
    if unknown is not None:
        cause = f"there is no variant {unknown!r}"
        raise UserError(_CODE, cause, nearest(unknown, [_ENCODER, _COMPRESSOR]))
    encoders = tuple(value for name, value in variants if name == _ENCODER)
    switches = {value for name, value in variants if name == _COMPRESSOR}
    if switches - set(_SWITCH):
        wrong = min(switches - set(_SWITCH))
        raise UserError(_CODE, f"{_COMPRESSOR} is {wrong!r}", f"use {' or '.join(_SWITCH)}")
    if len(switches) > 1 or ("on" in switches and options["no_vrc"]):
        raise UserError(_CODE, f"{_COMPRESSOR} is both on and off", "choose one")
    found = {**options, "no_vrc": options["no_vrc"] or "off" in switches}
    if "encoders" in options:
        found["encoders"] = tuple(dict.fromkeys((*options["encoders"], *encoders)))
    elif encoders:
        given = {*encoders, *([options["encoder"]] if options["encoder"] != "auto" else [])}
        if len(given) > 1:
            raise UserError(_CODE, f"the encoder is {' and '.join(sorted(given))}", "choose one")
        found["encoder"] = encoders[0]
    return found


def _check_offered(variants: Sequence[tuple[str, str]], directory: Path) -> None:
    """Hold variants against what a package lists; a checkpoint's are looked at when it is opened.

    Raises:
        UserError: the package does not offer one.
    """
    from hvlc.manifest.manifest import MANIFEST, Manifest

    if not is_file(directory / MANIFEST):
        return
    offered = Manifest.load(directory).variants
    for name, value in variants:
        values = [*offered.get(name, ()), *(["auto"] if name == _ENCODER and name in offered else [])]
        if value not in values:
            told = f"it offers {', '.join(values)}" if values else f"it offers no choice of {name}"
            cause = f"{directory} has no variant {name}={value}: {told}"
            raise UserError(_CODE, cause, nearest(value, values) if values else "leave it out")
