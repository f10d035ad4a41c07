"""The one door to a package: its manifest, its files, its configuration and its graphs, looked at before they are used.

Weights are not read, unless digests are asked for: opening takes as long as parsing the graphs without them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from hvlc.errors import UserError
from hvlc.files.reading import reason, shown, state_of
from hvlc.graphs.facts import Kind
from hvlc.graphs.placement import Phase
from hvlc.manifest.manifest import MANIFEST, ComponentEntry, Manifest
from hvlc.opening.configuration import Configuration, read_configuration
from hvlc.opening.graphs import check_graph
from hvlc.opening.options import COMPILED_NAME, COMPILED_PROVIDER, check_options
from hvlc.opening.signatures import check_signature

#: Files that onnxruntime, onnxruntime-genai or hvlc look for by name.
_READ_BY_NAME = re.compile(
    r"tokenizer.*|chat_template.*|added_tokens.*|special_tokens_map.*|vocab.*|merges.*|.*\.(onnx|ort|data|bin|so|dll|dylib|jinja)"
    r"|onnx_.*data.*|.*\.onnx[_.].*|.*\.model|genai_config.*|hvlc\..*json|(pre|image_|video_)?processor_config.*"
    r"|generation_config\.json|adapter.*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Package:
    """A package that was looked at.

    Attributes:
        directory: where it is.
        manifest: of it.
    """

    directory: Path
    manifest: Manifest

    @cached_property
    def configuration(self) -> Configuration:
        """Configuration of onnxruntime-genai.

        Raises:
            UserError: the package has no decoder, or see `read_configuration`.
        """
        return read_configuration(self.directory, self.manifest)

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file that the manifest lists and that is there."""
        states = {name: state_of(self.directory / name) for name in self.manifest.files}
        return {name: state.st_size for name, state in states.items() if state is not None}

    @cached_property
    def ignored(self) -> tuple[str, ...]:
        """Names of what lies in the directory, is not part of the package, and is read by nothing."""
        return tuple(name for name in _names(self.directory) if name not in (*self.manifest.files, MANIFEST))

    def check(self) -> Self:
        """Hold what libraries would read against what this version writes.

        Raises:
            UserError: see `open_package`.
        """
        _check_unlisted(self)
        _check_stages(self.manifest)
        for name, entry in self.manifest.components.items():
            _check_providers(name, entry)
        vocabulary = 0 if self.manifest.kind is Kind.VISION else self.configuration.model.vocab_size
        for file, entries in _by_file(self.manifest).items():
            compiled = next((entry.compiled for entry in entries.values() if entry.compiled), None)
            model = check_graph(self.directory / file, self.sizes, compiled.binary if compiled else None)
            for name, entry in entries.items():
                check_signature(name, entry, model, self.manifest, vocabulary)
        return self


def open_package(directory: Path, *, verify: bool = False) -> Package:
    """Look at a package before anything of it is used.

    Args:
        directory: what `hvlc build` wrote, or a copy of it, also in the hub's cache (`hvlc.files.links`).
        verify: hold every file against its digest too.

    Raises:
        UserError: no package is there; a file is missing, was changed, lies outside, or is not listed though something
            would read it; or its manifest, configuration or graphs say what this version does not write.
    """
    manifest = Manifest.load(directory)
    if verify:
        _check_unlisted(Package(directory, manifest))
        manifest.verify(directory)
    else:
        manifest.check_places(directory)
    return Package(directory, manifest).check()


def _check_unlisted(package: Package) -> None:
    """Refuse files that the manifest does not list and that something reads by their name.

    What else lies there does no harm: a hub adds README.md, LICENSE and .gitattributes to what it hosts.
    """
    read = [name for name in package.ignored if _READ_BY_NAME.fullmatch(name)]
    if read:
        more = f" and {len(read) - 4} more" if len(read) > 4 else ""
        cause = f"{', '.join(map(shown, read[:4]))}{more} would be read, and the manifest does not list them"
        raise UserError("package.unlisted", f"{shown(package.directory)}: {cause}", "remove what hvlc did not write")


def _names(directory: Path) -> list[str]:
    """Names right inside a directory."""
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError as error:
        cause = f"cannot list {shown(directory)}: {reason(error)}"
        raise UserError("package.missing", cause, "check the permissions") from error


def _check_providers(name: str, entry: ComponentEntry) -> None:
    if entry.compiled:
        if entry.compiled.provider != COMPILED_PROVIDER:
            cause = (
                f"{name} is compiled for {entry.compiled.provider[:80]!r}, and hvlc compiles for {COMPILED_PROVIDER}"
            )
            raise UserError("package.configuration", cause, "do not trust this package, or build it again")
        check_options(name, COMPILED_NAME, entry.compiled.provider_options)
    if entry.provider:
        check_options(name, entry.provider.name, entry.provider.options)


def _check_stages(manifest: Manifest) -> None:
    """A decoder in stages has an embedding, and for every graph that takes a prompt one that takes a token."""
    if not manifest.is_staged:
        return
    phases = {name: entry.phase for name, entry in manifest.components.items() if entry.phase is not Phase.ALWAYS}
    needed = {f"{_stem(name)}{phase}": phase for name in phases for phase in (Phase.PROMPT, Phase.TOKEN)}
    if needed != phases or "embedding" not in manifest.components:
        cause = f"the graphs {', '.join(sorted(phases))} are not a decoder in stages"
        raise UserError("package.manifest", cause, "build the package again")


def _stem(name: str) -> str:
    return name.removesuffix(Phase.PROMPT).removesuffix(Phase.TOKEN)


def _by_file(manifest: Manifest) -> dict[str, dict[str, ComponentEntry]]:
    """Components by the file that they share."""
    found: dict[str, dict[str, ComponentEntry]] = {}
    for name, entry in manifest.components.items():
        found.setdefault(entry.file, {})[name] = entry
    return found
