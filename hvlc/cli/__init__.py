"""The command line. Nothing heavy is imported before a command needs it."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hvlc import __version__
from hvlc.cli import bisect, calibration, compare, compilation, diff, evaluation, lint, sensitivity, targets
from hvlc.cli.common import console, json_option, progress, show
from hvlc.cli.options import BOUNDED, EXAMPLES, PLACE, ROWS, SAMPLES, SEED, SIZE, THREADS, WORDS, tokens
from hvlc.cli.streams import STDOUT, ReaderGoneError, say, say_json, standard_streams
from hvlc.errors import HvlcError, UserError
from hvlc.files.writing import make_directory, refused

_INTERRUPTED = 130
_LESS_MEMORY = "close other programs, use fewer --threads, or bound it with --max-memory where a command has it"
_BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells report it
_MODEL = click.argument("directory", type=PLACE)


def main(arguments: list[str] | None = None) -> None:
    """Run the CLI and exit with its code; errors have a code, a cause and the way out, and no traceback."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) != signal.SIG_IGN:  # which nohup does to SIGHUP
            signal.signal(stop, _interrupt)
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    try:
        with standard_streams():
            code = _run(arguments, debug="--debug" in arguments, as_json=as_json)
    except UserError as error:  # there is no standard output
        code = error.exit_code
        _report(error, as_json)
    if code:
        sys.exit(code)


def _check_working_directory() -> None:
    """Refuse to run in a directory that was deleted: libraries below end the process there, without an error.

    Raises:
        UserError: it was deleted, or cannot be entered.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise UserError("usage", "the working directory was deleted", "change to another") from error


def _run(arguments: list[str], *, debug: bool, as_json: bool) -> int:
    """Run a command; returns its exit code."""
    try:
        _check_working_directory()
        cli.main(arguments, prog_name="hvlc", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except HvlcError as error:
        if debug:
            raise
        return _report(error, as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return 2
    except click.ClickException as error:
        return _report(UserError("usage", error.format_message(), "see hvlc --help"), as_json)
    except ReaderGoneError:  # the reader of our output has gone, as `| head` does
        return _BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        _report(
            UserError("interrupted", "stopped before the end", "run it again; nothing half-written was left"), as_json
        )
        return _INTERRUPTED
    except OSError as error:
        if debug:
            raise
        return _report(refused(error), as_json)
    except MemoryError:
        if debug:
            raise
        return _report(UserError("memory.exhausted", "there is not enough memory", _LESS_MEMORY), as_json)
    except Exception as error:
        if debug:
            raise
        cause, fix = f"internal error: {type(error).__name__}: {error}", "run again with --debug and report it"
        return _report(HvlcError("bug", cause, fix), as_json)
    return 0


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _report(error: HvlcError, as_json: bool) -> int:
    """Print an error; JSON has every problem of one that stands for several, the text the first ones.

    JSON goes to standard error where standard output is what failed.

    Returns:
        The exit code.
    """
    if not as_json:
        say(f"error [{error.code}] {error.cause}\n  try: {error.fix}", error=True)
        return error.exit_code
    record: dict[str, Any] = {"code": error.code, "cause": error.cause, "fix": error.fix}
    if error.problems:
        record["problems"] = [{"code": p.code, "cause": p.cause, "fix": p.fix} for p in error.problems]
    try:
        say_json({"error": record}, error=error.code == STDOUT)
    except (UserError, ReaderGoneError):
        say_json({"error": record}, error=True)
    return error.exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hvlc")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Compile small vision-language models into onnxruntime-genai packages for phones."""


cli.add_command(bisect.bisect)
cli.add_command(calibration.calibration)
cli.add_command(evaluation.evaluate)
cli.add_command(diff.diff)
cli.add_command(compare.compare)
cli.add_command(compilation.compile_command)
cli.add_command(lint.lint)
cli.add_command(targets.targets)
cli.add_command(sensitivity.sensitivity)
cli.add_command(sensitivity.pareto)


def _build_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `build` and `plan` share."""
    options = (
        click.argument("checkpoint", type=PLACE, required=False),
        click.option(
            "--target", type=WORDS, default="cpu", show_default=True, help="Name of a target, or a TOML file."
        ),
        click.option(
            "--recipe", type=WORDS, default="w4a16", show_default=True, help="Name of a recipe, or a YAML file."
        ),
        click.option("--force", is_flag=True, help="Replace an existing package."),
        click.option("--threads", type=THREADS, help="Threads that evaluate weights (default: every processor)."),
        click.option("--max-memory", type=SIZE, help="Memory the build may take, e.g. 2GB; refused when too little."),
        click.option(
            "--calibration", type=WORDS, help='What to calibrate on: "text", "documents", a file or a directory.'
        ),
        click.option("--samples", type=SAMPLES, help="Calibration samples (default: the recipe's number)."),
        click.option(
            "--calibration-state",
            "state",
            type=PLACE,
            help="Keeps what a calibration found until the build is done (default: beside the output).",
        ),
        click.option(
            "--budget", type=WORDS, help="Choose formats within this size, e.g. 4.5bpw (bits per weight) or 40MB."
        ),
        click.option("--cache", type=PLACE, help="Keeps measurements of sensitivity (default: the user's cache)."),
        click.option("--context", type=tokens(1), help="Tokens of a KV cache of fixed shapes (NPU targets)."),
        click.option("--aot/--no-aot", default=True, help="Compile for the device here, where its compiler can."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@cli.command(short_help="Turn a checkpoint into a package.")
@_build_options
@click.option("-o", "--output", type=PLACE, required=True, help="Directory to write.")
@json_option
def build(output: Path, as_json: bool, **options: Any) -> None:
    """Turn CHECKPOINT (a directory or a GGUF file; default: the shipped hypervl-nano) into a package."""
    from hvlc.report.builds import build_record, build_tables
    from hvlc.workflows.build.build import build as run_build
    from hvlc.workflows.build.steps import STEPS

    with progress("build", len(STEPS)) as step:
        result = run_build(_build_request(output, **options), step)
    data, tables = compilation.of_package(output)
    show(build_record(result) | data, as_json, lambda console: console.print(build_tables(result), *tables))


def _build_request(output: Path, checkpoint: Path | None, **options: Any) -> Any:
    from hvlc.workflows.build.request import BuildRequest

    return BuildRequest(_checkpoint(checkpoint), output=output, **options)


def _checkpoint(given: Path | None) -> Path:
    if given is not None:
        return given
    from hvlc.zoo import nano_checkpoint

    return nano_checkpoint()


@cli.command(short_help="Show what a build would do and take.")
@_build_options
@click.option("-o", "--output", type=PLACE, help="Directory that a build would write.")
@click.option("--weights", "each", is_flag=True, help="List every weight, not one line for each kind.")
@json_option
def plan(output: Path | None, each: bool, as_json: bool, **options: Any) -> None:
    """Show what a build would do to every weight and what it would take, without building."""
    from hvlc.report.builds import plan_record, plan_table
    from hvlc.workflows.build.build import plan_build

    planned = plan_build(_build_request(output or Path("package"), **options), anywhere=output is None)
    plan, estimate = planned.plan, planned.estimate
    show(plan_record(plan, estimate), as_json, lambda console: console.print(plan_table(plan, estimate, each=each)))


@cli.command(short_help="Ask a package a question.")
@_MODEL
@click.option("--image", "images", type=PLACE, multiple=True, help="Image file; repeat for several.")
@click.option("--prompt", type=WORDS, required=True, help="The question.")
@click.option("--encoder", type=WORDS, default="auto", show_default=True, help="Vision encoder: base, large or auto.")
@click.option("--max-visual-tokens", type=BOUNDED, help="Bound of visual tokens per image.")
@click.option("--max-new-tokens", type=BOUNDED, default=128, show_default=True, help="Bound of the answer.")
@click.option("--no-vrc", is_flag=True, help="Keep the full resolution.")
@click.option("--tile-batch", type=click.IntRange(1, 4096), default=4, show_default=True, help="Tiles per encoder run.")
@click.option("-v", "--verbose", is_flag=True, help="Show scale, tiles, tokens and times.")
@json_option
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


@cli.command(short_help="Build, ask and compare the shipped model.")
@click.option("-o", "--output", type=PLACE, default=Path("build/demo"), show_default=True, help="Directory to write.")
@click.option("-n", "--count", type=EXAMPLES, default=256, show_default=True, help="Held-out documents.")
@json_option
def demo(output: Path, count: int, as_json: bool) -> None:
    """Build the shipped checkpoint by three recipes, ask it questions, and compare."""
    from hvlc.report.comparison import summary_tables
    from hvlc.report.terminal import comparison_table
    from hvlc.workflows import demo as demonstration
    from hvlc.workflows.build.steps import STEPS

    make_directory(output, "output.write")
    quiet = console(stderr=True)
    with progress("build", len(STEPS)) as step:
        packages = demonstration.build_packages(output, lambda recipe: lambda what, *at: step(f"{recipe} {what}", *at))
    for asked in demonstration.ask(packages["w4a16"], 3):
        quiet.print(f"  {asked.question}  {asked.answer}  (expected {asked.expected})")
    with progress("eval", count) as step:
        resolutions = demonstration.measure_resolutions(output, packages["float32"], count, step)
    with progress("compare", count) as step:
        compared = demonstration.compare_recipes(output, packages, count, step)
    pages = [str(output / name) for name in ("comparison.html", "report.html")]
    data = {
        "pages": pages,
        "resolutions": [e.model_dump(mode="json", exclude={"examples"}) for e in resolutions],
        "comparison": compared.comparison.model_dump(mode="json"),
    }

    def human(console: Any) -> None:
        console.print(comparison_table(resolutions), summary_tables(compared.comparison, compared.evaluations))
        console.print(f"pages: {' '.join(pages)}", soft_wrap=True)

    show(data, as_json, human)


@cli.command(short_help="Show a package: components, files, bytes.")
@_MODEL
@click.option("--top", type=ROWS, default=10, show_default=True, help="How many weights to list.")
@json_option
def inspect(directory: Path, top: int, as_json: bool) -> None:
    """Show the components, files and sources of the package in DIRECTORY, and where every byte goes."""
    from hvlc.opening.package import open_package
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
    data["placement"] = [one.model_dump(mode="json") for one in placed]
    parts = (manifest_tables(manifest), placement_table(placed), *tables, contents_tables(contents, top))
    show(data, as_json, lambda console: console.print(*parts))


@cli.command(short_help="Compare a package's files with their digests.")
@_MODEL
@click.option("--rebuild", "checkpoint", type=PLACE, help="Build again from this CHECKPOINT and compare every byte.")
@click.option(
    "--calibration", type=WORDS, help="With --rebuild: the package's calibration set, where it does not come with hvlc."
)
@click.option("--threads", type=THREADS, help="Threads of the new build (default: every processor).")
@json_option
def verify(
    directory: Path, checkpoint: Path | None, calibration: str | None, threads: int | None, as_json: bool
) -> None:
    """Hold every file of the package in DIRECTORY against its digest, or against a new build."""
    from hvlc.opening.package import open_package
    from hvlc.opening.tokenizer import check_tokenizer

    if checkpoint is not None:
        _verify_rebuilt(directory, checkpoint, calibration, threads, as_json)
        return
    package = open_package(directory, verify=True)
    check_tokenizer(directory)
    files, ignored = len(package.manifest.files), list(package.ignored)
    text = f"{files} files are as they were built"
    if ignored:
        text += f"; not part of the package, and read by nothing: {', '.join(ignored)}"
    data = {"files": files, "valid": True, "ignored": ignored}
    show(data, as_json, lambda console: console.print(text, soft_wrap=True))


def _verify_rebuilt(
    directory: Path, checkpoint: Path, calibration: str | None, threads: int | None, as_json: bool
) -> None:
    from hvlc.workflows.build.rebuild import rebuild
    from hvlc.workflows.build.steps import STEPS

    with progress("rebuild", len(STEPS)) as step:
        made = rebuild(directory, checkpoint, calibration=calibration, threads=threads, progress=step)
    chance = made.left_to_chance
    data = {"files": made.files, "bytes": made.bytes, "identical": not chance, "changed_tools": made.changed_tools}
    data["left_to_chance"] = chance
    lines = [f"{made.files} files ({made.bytes / 1e6:.2f} MB) of a new build are identical to the last byte"]
    lines += [
        f"{name} differs in {count} bytes, which the compiler leaves to chance, and computes the same in emulation"
        for name, count in chance.items()
    ]
    lines += ["what the package says of its check in emulation was not measured again"] * made.checked_before
    lines += [f"although {name} was {then} and is {now}" for name, (then, now) in made.changed_tools.items()]
    show(data, as_json, lambda console: console.print("\n".join(lines)))


@cli.group(short_help="List, show and check recipes.")
def recipes() -> None:
    """The shipped quantization recipes."""


@recipes.command(name="list", short_help="List the shipped recipes.")
@json_option
def list_recipes(as_json: bool) -> None:
    """Names and descriptions."""
    from hvlc.recipes.loading import load_recipe, shipped_recipes
    from hvlc.report.builds import named_table

    rows = {name: load_recipe(name).description for name in shipped_recipes()}
    show(rows, as_json, lambda console: console.print(named_table(rows)))


@recipes.command(name="show", short_help="Print a recipe with what it extends.")
@click.argument("name", type=WORDS)
@json_option
def show_recipe(name: str, as_json: bool) -> None:
    """The recipe NAME (or a YAML file), checked, with what it extends."""
    from hvlc.recipes.loading import load_recipe, recipe_text

    recipe, text = load_recipe(name), recipe_text(name)
    show(recipe.model_dump(mode="json"), as_json, lambda _: say(text, end=""))


@recipes.command(name="check", short_help="Check a recipe, alone or on a checkpoint.")
@click.argument("name", type=WORDS)
@click.option("--checkpoint", type=PLACE, help="Hold every rule against this checkpoint too.")
@click.option("--target", type=WORDS, default="cpu", show_default=True, help="Name of a target, or a TOML file.")
@json_option
def check_recipe(name: str, checkpoint: Path | None, target: str, as_json: bool) -> None:
    """Check the recipe NAME (or a YAML file): its form, and with --checkpoint every rule, solver and format."""
    from hvlc.recipes.loading import load_recipe
    from hvlc.report.builds import plan_table
    from hvlc.workflows.build.build import plan_build
    from hvlc.workflows.build.request import BuildRequest

    recipe = load_recipe(name)
    if checkpoint is None:
        show({"recipe": recipe.name, "rules": len(recipe.rules)}, as_json, lambda c: c.print(f"{recipe.name}: valid"))
        return
    planned = plan_build(BuildRequest(checkpoint, target, name, Path("package")), anywhere=True)
    quantized = planned.plan.bits_per_weight(None)
    data = {"recipe": recipe.name, "rules": len(recipe.rules), "bits_per_weight": quantized}
    show(data, as_json, lambda c: c.print(plan_table(planned.plan, planned.estimate, each=False)))


@cli.group(short_help="Train the shipped checkpoint.")
def train() -> None:
    """Train the project's own reference checkpoint."""


@train.command(short_help="Train hypervl-nano from scratch.")
@click.option("-o", "--output", type=PLACE, required=True, help="Directory for the checkpoint.")
@click.option("--work", type=PLACE, required=True, help="Directory for resumable state.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@json_option
def nano(output: Path, work: Path, seed: int, as_json: bool) -> None:
    """Train hypervl-nano from scratch (one to three hours on two cores); resumes from WORK."""
    from hvlc.workflows.build.requirements import require_compile

    require_compile("training")
    from hvlc.training.nano import MINUTES
    from hvlc.training.nano import train as train_nano

    if output.exists():
        raise UserError("output.exists", f"{output} exists", "choose another output")
    stages = list(MINUTES)

    def report(update: Any) -> None:
        left = (1 - update.over) * MINUTES[update.stage] + sum(
            MINUTES[s] for s in stages[stages.index(update.stage) + 1 :]
        )
        values = " ".join(f"{name} {value:.3f}" for name, value in update.values.items())
        say(f"{update.stage} {update.over:4.0%} {values} | about {left:.0f} min left", error=True)

    scores = train_nano(output, work, seed=seed, progress=report)
    data = {"checkpoint": str(output), "scores": scores}
    show(data, as_json, lambda console: console.print(f"checkpoint: {output} (scores in its README.md)"))
