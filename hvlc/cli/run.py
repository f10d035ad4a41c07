"""Questions to a package, on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hvlc.cli.common import console, json_option
from hvlc.cli.options import BOUNDED, PLACE, WORDS, Real
from hvlc.cli.streams import say, say_json
from hvlc.cli.variants import variant_option
from hvlc.cli.vision import vision_options

if TYPE_CHECKING:
    from hvlc.results import Answered
    from hvlc.runtime.generation import Generation, LanguageModel
    from hvlc.runtime.settings import VisionSettings


@click.command(short_help="Ask a package a question.")
@click.argument("directory", type=PLACE)
@click.option("--image", "images", type=PLACE, multiple=True, help="Image file; repeat for several.")
@click.option("--prompt", type=WORDS, required=True, help="The question.")
@click.option("--then", "later", type=WORDS, multiple=True, help="A question after the answer; repeat for several.")
@click.option("--encoder", type=WORDS, default="auto", show_default=True, help="Name of a vision encoder, or auto.")
@click.option("--task-tag", type=WORDS, help="Kind of task, for the package's policy.")
@click.option("--device-class", type=WORDS, help="Kind of device, for the package's policy.")
@click.option("--latency-ms", type=Real(0, 1e9), help="Time for the encoder, for the package's policy.")
@click.option("--max-visual-tokens", type=BOUNDED, help="Bound of visual tokens per image.")
@click.option("--max-new-tokens", type=BOUNDED, default=128, show_default=True, help="Bound of the answer.")
@click.option("--no-vrc", is_flag=True, help="Keep the full resolution.")
@click.option("-v", "--verbose", is_flag=True, help="Show scale, tiles, tokens and times.")
@json_option
@variant_option
@vision_options
def run(
    directory: Path,
    images: tuple[Path, ...],
    prompt: str,
    later: tuple[str, ...],
    encoder: str,
    task_tag: str | None,
    device_class: str | None,
    latency_ms: float | None,
    max_visual_tokens: int | None,
    max_new_tokens: int,
    no_vrc: bool,
    verbose: bool,
    as_json: bool,
    vision: "VisionSettings | None",
) -> None:
    """Ask the package in DIRECTORY a question; the answer streams.

    Questions of --then go on in the same chat: images are not encoded again. With --json and --then, a list of answers.
    """
    from hvlc.inputs.images import load_images
    from hvlc.manifest.policy import Circumstances
    from hvlc.runtime.generation import open_model
    from hvlc.runtime.settings import USUAL

    loaded = load_images(images)
    model = open_model(directory, vision=vision or USUAL)
    memory = _Memory(model) if verbose and not as_json else None
    room = model.room_for(prompt, later, images=len(loaded), max_new_tokens=max_new_tokens)
    generation = model.start(
        prompt,
        loaded,
        encoder=encoder,
        vrc=not no_vrc,
        max_visual_tokens=max_visual_tokens,
        stated=Circumstances(task_tag, device_class, latency_ms),
        max_new_tokens=max_new_tokens,
        room=room,
    )
    answers = [_told(generation, as_json=as_json, verbose=verbose, memory=memory)]
    for question in later:
        generation = model.follow(generation, question, max_new_tokens=max_new_tokens)
        answers.append(_told(generation, as_json=as_json, verbose=verbose))
    if as_json:
        found = [answered.model_dump(mode="json") for answered in answers]
        say_json(found if later else found[0])


class _Memory:
    """Memory of an answer above that of the opened model."""

    def __init__(self, model: "LanguageModel") -> None:
        from hvlc.evaluation.memory import memory_bytes, reset_peak_memory

        self._model = model
        self._before = memory_bytes() if reset_peak_memory() else None

    def cap(self, generation: "Generation") -> int | None:
        """Stated bytes of the encoder's activations. None: nothing was encoded, or its graph does not say."""
        from hvlc.package.activations import request_cap

        parts = [part.shape for image in generation.images for part in image.parts]
        if not parts or not generation.encoder:
            return None
        model = self._model
        return request_cap(model.directory, model.manifest, generation.encoder, parts, model.tile_batch)

    def taken(self) -> int | None:
        """Measured bytes. None: the system cannot tell."""
        from hvlc.evaluation.memory import peak_memory_bytes

        peak = peak_memory_bytes()
        return None if peak is None or self._before is None else max(0, peak - self._before)


def _told(generation: "Generation", *, as_json: bool, verbose: bool, memory: _Memory | None = None) -> "Answered":
    """The record of an answer, which streams to the terminal unless it is told as JSON."""
    for piece in generation:
        if not as_json:
            say(piece, end="")
    answered = generation.answered
    if not as_json:
        say()
        if verbose:
            from hvlc.report.builds import answer_table

            figures = (memory.cap(generation), memory.taken()) if memory else ()
            console(stderr=True).print(answer_table(answered, *figures))
    return answered
