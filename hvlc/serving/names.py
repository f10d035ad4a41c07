"""Names of models in requests: a package's own, and what the request chooses of it, as suffixes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hvlc.errors import UserError, nearest
from hvlc.manifest.manifest import Manifest

#: Suffix of the image at its full size, past the resolution compressor.
FULL = "full"
_SEPARATOR = ":"


@dataclass(frozen=True)
class Choice:
    """Choice of a request among what a package offers.

    Attributes:
        package: name of the package.
        encoder: name of a vision encoder, or "auto".
        compress: whether the resolution compressor chooses the scale of each image.
        max_visual_tokens: bound for each image. None: the package's.
    """

    package: str
    encoder: str = "auto"
    compress: bool = True
    max_visual_tokens: int | None = None


def parse_name(name: str, packages: Mapping[str, Manifest]) -> Choice:
    """Choice that a model's name in a request stands for.

    Suffixes follow the name of the package after colons, in any order: an encoder, `full`, and a bound of the visual
    tokens of an image, as in `receipts:base:256`.

    Raises:
        UserError: no such package, or it offers no such choice.
    """
    package, *suffixes = name.split(_SEPARATOR)
    if package not in packages:
        raise UserError("request.model", f"there is no model {name!r:.200}", nearest(package[:200], list(packages)))
    choice, manifest = Choice(package), packages[package]
    for suffix in suffixes:
        choice = _with_suffix(choice, suffix, name, manifest)
    return choice


def _with_suffix(choice: Choice, suffix: str, name: str, manifest: Manifest) -> Choice:
    offered = [*manifest.encoders, *([FULL] if _compresses(manifest) else [])]
    if suffix in manifest.encoders:
        return replace(choice, encoder=suffix)
    if suffix == FULL and _compresses(manifest):
        return replace(choice, compress=False)
    if suffix.isascii() and suffix.isdigit() and 0 < len(suffix) <= 8 and manifest.images is not None:
        return replace(choice, max_visual_tokens=int(suffix))
    cause = f"the suffix {suffix!r:.80} of model {name!r:.200} is not a choice of {choice.package}"
    raise UserError("request.model", cause, nearest(suffix[:80], offered) if offered else "name the package alone")


def names_of(package: str, manifest: Manifest) -> list[str]:
    """Names under which a package is listed: its own, and one for each encoder and for the full size."""
    chosen = list(manifest.encoders) if len(manifest.encoders) > 1 else []
    return [package, *(f"{package}{_SEPARATOR}{c}" for c in [*chosen, *([FULL] if _compresses(manifest) else [])])]


def _compresses(manifest: Manifest) -> bool:
    return manifest.images is not None and manifest.images.resolution_compressor
