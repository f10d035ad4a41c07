"""Questions to a package, on the command line."""

from pathlib import Path

import click

from hvlc.cli.common import console, json_option
from hvlc.cli.options import BOUNDED, PLACE, WORDS
from hvlc.cli.streams import say, say_json
from hvlc.cli.variants import variant_option


@click.command(short_help="Ask a package a question.")
@click.argument("directory", type=PLACE)
@click.option("--image", "images", type=PLACE, multiple=True, help="Image file; repeat for several.")
@click.option("--prompt", type=WORDS, required=True, help="The question.")
@click.option("--encoder", type=WORDS, default="auto", show_default=True, help="Name of a vision encoder, or auto.")
@click.option("--max-visual-tokens", type=BOUNDED, help="Bound of visual tokens per image.")
@click.option("--max-new-tokens", type=BOUNDED, default=128, show_default=True, help="Bound of the answer.")
@click.option("--no-vrc", is_flag=True, help="Keep the full resolution.")
@click.option("--tile-batch", type=click.IntRange(1, 4096), default=4, show_default=True, help="Tiles per encoder run.")
@click.option("-v", "--verbose", is_flag=True, help="Show scale, tiles, tokens and times.")
@json_option
@variant_option
def run(
    directory: Path,
    images: tuple[Path, ...],
    prompt: str,
    encoder: str,
    max_visual_tokens: int | None,
    max_new_tokens: int,
    no_vrc: bool,
    tile_batch: int,
    verbose: bool,
    as_json: bool,
) -> None:
    """Ask the package in DIRECTORY a question; the answer streams."""
    from hvlc.inputs.images import load_images
    from hvlc.runtime.generation import open_model

    loaded = load_images(images)
    model = open_model(directory, tile_batch=tile_batch)
    generation = model.start(
        prompt,
        loaded,
        encoder=encoder,
        vrc=not no_vrc,
        max_visual_tokens=max_visual_tokens,
        max_new_tokens=max_new_tokens,
    )
    for piece in generation:
        if not as_json:
            say(piece, end="")
    answered = generation.answered
    if as_json:
        say_json(answered.model_dump(mode="json"))
        return
    say()
    if verbose:
        from hvlc.report.builds import answer_table

        console(stderr=True).print(answer_table(answered))
