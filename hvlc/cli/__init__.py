"""The command line. Nothing heavy is imported before a command needs it."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from hvlc.cli import (
    assemble,
    bisect,
    build,
    calibration,
    compare,
    compilation,
    demo,
    diff,
    evaluation,
    inspect,
    lint,
    recipes,
    run,
    sensitivity,
    serve,
    targets,
    tasks,
    train,
    tune,
    verify,
)
from hvlc.cli.streams import STDOUT, ReaderGoneError, say, say_json, standard_streams
from hvlc.errors import HvlcError, UserError
from hvlc.files.writing import refused

_INTERRUPTED = 130
_LESS_MEMORY = "close other programs, use fewer --threads, or bound it with --max-memory where a command has it"
_BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells report it


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
@click.version_option(package_name="hvlc", prog_name="hvlc")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Compile small vision-language models into onnxruntime-genai packages for phones."""


for command in (
    assemble.assemble,
    bisect.bisect,
    build.build,
    build.plan,
    calibration.calibration,
    compare.compare,
    compilation.compile_command,
    demo.demo,
    diff.diff,
    evaluation.evaluate,
    inspect.inspect,
    lint.lint,
    recipes.recipes,
    run.run,
    serve.serve,
    sensitivity.pareto,
    sensitivity.sensitivity,
    targets.targets,
    tasks.tasks,
    train.train,
    tune.tune,
    verify.verify,
):
    cli.add_command(command)
