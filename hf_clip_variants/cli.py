"""`hf-clip-variants`: the command line. The module of a command is imported only when the command runs."""

import errno
import importlib
import inspect
import os
import re
import select
import sys
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from .commands.arguments import in_words_of
from .commands.interruption import exit_code, listening
from .files.printable import printable
from .registry import did_you_mean


PROGRAM = "hf-clip-variants"

# Name -> one line in the list of commands. The command is the function <name> in hf_clip_variants/commands/<name>.py,
# with _ for -.
COMMANDS = {
    "demo": "Teach the embedded tiny CLIP new classes. Offline, two minutes.",
    "methods": "List the methods: when to use each, its paper, its licence.",
    "adapt": "Teach a CLIP your classes from a few images of each.",
    "evaluate": "Measure a model or an adapter on labelled images.",
    "linear-probe": "Measure image features with a linear classifier.",
    "knn": "Measure image features with nearest neighbours.",
    "grid-features": "Store what an image encoder sees in each cell of images.",
    "predict": "Classify or segment files and folders; CSV or JSON lines.",
    "index": "Make an index of pictures, videos and sounds.",
    "search": "Find pictures, moments and sounds in an index.",
    "paint": "Paint a text, or change a picture by one.",
    "draw": "Draw a text with coloured strokes: SVG and a page.",
    "sketch": "Sketch photographs with few strokes: SVG and a page.",
    "convert": "Turn an official checkpoint into a folder to load.",
    "push": "Put an adapter or a model on the Hub, with its results.",
    "export": "Write a model folder that loads without this package.",
    "verify": "Check weights against the hashes in their card.",
    "env": "Versions and devices, to copy into a bug report.",
}

# Errors that a user can fix; they are printed in one line. Any other is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, NotImplementedError)
_WrongUsage = typer.BadParameter.__base__  # of all errors of the parser; typer does not export it

_WRONG_USAGE, _BROKEN_PIPE = 2, 141  # the last one as a shell reports it: 128 + signal


class LazyCommands(TyperGroup):
    """Lists the commands of `COMMANDS` and imports only the one that is run."""

    running: TyperCommand | None = None

    def __init__(self, **attributes):
        super().__init__(**attributes)
        for name, summary in COMMANDS.items():
            self.add_command(TyperCommand(name=name, help=summary))

    def resolve_command(self, ctx, args):
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = self.running = load_command(name)
        return name, command, rest

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            _print_interrupt(error)
            raise typer.Exit(exit_code()) from error
        except BrokenPipeError as error:
            if any(map(_is_unread, (sys.__stdout__, sys.__stderr__))):
                raise
            # The pipe of a socket or a worker, not of our output: typer would exit without a message.
            raise ConnectionError(*error.args[1:]) from error


def load_command(name: str) -> TyperCommand:
    module = name.replace("-", "_")
    function = getattr(importlib.import_module(f"hf_clip_variants.commands.{module}"), module)
    application = typer.Typer(add_completion=False, rich_markup_mode="rich")
    application.command(name, help=_help_of(function))(function)
    return typer.main.get_command(application)


def _help_of(function) -> str:
    """The docstring, each paragraph in one line: help pages are as wide as the terminal. Those behind \\b stay."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(text if text.startswith("\b") else " ".join(text.split()) for text in paragraphs)


def _print_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, metavar="", help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", metavar="", help="Show the traceback of an error. May be anywhere on the line."),
    ] = False,
) -> None:
    """
    CLIP and the methods built on it: name your classes, give a few images of each, share the result.

    \b
    [bold]A first session[/bold]
      hf-clip-variants demo
      hf-clip-variants adapt images/ --shots 4 --out run
      hf-clip-variants predict --help

    Data is a folder with one sub-folder per class, a Hub data set or Parquet files. Every command takes --json.
    """


def make_command() -> TyperGroup:
    application = typer.Typer(cls=LazyCommands, rich_markup_mode="rich")
    names = {"help_option_names": ["-h", "--help"]}
    application.callback(context_settings=names, help=_help_of(_options))(_options)
    return typer.main.get_command(application)


def main(arguments: list[str] | None = None) -> None:
    """
    The entry point. It always raises `SystemExit`.

    Exit codes: 0 for success, 1 for an error that was printed in one line, 2 for wrong usage, 130 for Ctrl-C, 143 for
    SIGTERM, 141 if the reader of our output was closed. A command may add others.
    """
    with listening():
        sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int | str | None:
    """Runs a command, prints what is to be said about an error, and returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = _take_debug(arguments)
    group = None
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        group = make_command()
        code = group.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except SystemExit as exit:
        code = exit.code
        # typer exits with 1 here; a shell expects 141.
        if isinstance(exit.__context__, OSError) and exit.__context__.errno == errno.EPIPE:
            code = _BROKEN_PIPE
    except KeyboardInterrupt as error:
        _print_interrupt(error)
        code = exit_code()
    except _WrongUsage as error:
        _print_usage_error(error)
        code = _WRONG_USAGE
    except USER_ERRORS as error:
        if debug:
            raise
        _print_error(error, group and group.running)
        code = 1
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _BROKEN_PIPE
    if code == _BROKEN_PIPE:
        _drop_output()
    return code


def _take_debug(arguments: list[str]) -> bool:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = "--debug" in arguments[:end]
    arguments[:end] = [argument for argument in arguments[:end] if argument != "--debug"]
    return found


# ---- messages


def _print_interrupt(error: KeyboardInterrupt) -> None:
    """`error` may say what is kept and how to go on."""
    typer.echo(f"\n{printable(str(error))}" if str(error) else "\nInterrupted.", err=True)


def _print_usage_error(error) -> None:
    message, context = error.format_message(), error.ctx
    unknown = getattr(error, "option_name", None)
    if unknown and message.startswith("No such option"):
        known = [flag for parameter in context.command.params for flag in parameter.opts if flag.startswith("--")]
        near = did_you_mean(unknown.lstrip("-"), [flag.lstrip("-") for flag in known])
        message = f"No such option {unknown}" + re.sub(r"'([\w-]+)'", r"--\1", near)
    typer.secho(f"Error: {printable(' '.join(message.split()))}", fg="red", err=True)
    if context is not None:
        typer.echo(f"Try '{context.command_path} --help'.", err=True)


def _print_error(error: BaseException, command: TyperCommand | None) -> None:
    message = " ".join(str(error).split()) or type(error).__name__
    # transformers' lecture on tokens and pull requests.
    if unknown := re.match(r"(\S+) is not a local folder and is not a valid model identifier", message):
        message = (
            f"no such folder {unknown[1]}, and no such repository on the Hub (a private one needs `hf auth login`)"
        )
    if command is not None:
        message = in_words_of({parameter.name: _flag_of(parameter) for parameter in command.params}, message)
    typer.secho(f"Error: {printable(message)}", fg="red", err=True)


def _flag_of(parameter) -> str:
    return next((flag for flag in parameter.opts if flag.startswith("--")), parameter.name.upper())


def _is_unread(stream) -> bool:
    """Whether the other end of a pipe was closed, as in `hf-clip-variants methods | head -1`."""
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _drop_output() -> None:
    """Redirect closed outputs to the null device, or the interpreter reports an error when it flushes at exit."""
    for stream in filter(_is_unread, (sys.__stdout__, sys.__stderr__)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
