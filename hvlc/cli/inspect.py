"""Contents of a package, on the command line."""

from pathlib import Path

import click

from hvlc.cli import compilation
from hvlc.cli.common import json_option, show
from hvlc.cli.options import PLACE, ROWS


@click.command(short_help="Show a package: components, files, bytes.")
@click.argument("directory", type=PLACE)
@click.option("--top", type=ROWS, default=10, show_default=True, help="How many weights to list.")
@json_option
def inspect(directory: Path, top: int, as_json: bool) -> None:
    """Show the components, files and sources of the package in DIRECTORY, and where every byte goes."""
    from hvlc.opening.package import open_package
    from hvlc.package.activations import encoder_caps
    from hvlc.package.contents import contents_of
    from hvlc.report.builds import manifest_tables
    from hvlc.report.contents import contents_record, contents_tables
    from hvlc.report.placement import placed_components, placement_table
    from hvlc.results.compilation import read_compilation

    manifest = open_package(directory).manifest
    contents = contents_of(directory, manifest)
    compiled, tables = compilation.of_package(directory)
    placed = placed_components(manifest, read_compilation(directory))
    data = manifest.model_dump(mode="json") | {"contents": contents_record(contents, top)} | compiled
    caps = encoder_caps(directory, manifest)
    data["activation_bytes"] = caps
    data["placement"] = [one.model_dump(mode="json") for one in placed]
    parts = (manifest_tables(manifest, caps), placement_table(placed), *tables, contents_tables(contents, top))
    show(data, as_json, lambda console: console.print(*parts))
