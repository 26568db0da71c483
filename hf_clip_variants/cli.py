"""`hf-clip-variants`: the command line. The module of a command is imported only when the command runs."""

import errno
import importlib
import os
import select
import sys
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup


PROGRAM = "hf-clip-variants"

# Name -> one line in the list of commands. The command is the function <name> in hf_clip_variants/commands/<name>.py,
# with _ for -.
COMMANDS = {
    "demo": "Teach the embedded tiny CLIP classes that it has never seen. Offline, about a minute.",
    "methods": "List the methods: when to use each, its paper, its licence.",
    "adapt": "Teach a CLIP your classes from a few images of each, and report the gain.",
    "evaluate": "Measure a model, with or without an adapter, on labelled images.",
    "linear-probe": "Measure frozen image features: a linear classifier on them, as in CLIP's paper.",
    "knn": "Measure frozen image features: a vote of the nearest neighbours. Nothing is trained.",
    "predict": "Classify files, folders or standard input; CSV or JSON lines.",
    "convert": "Turn an official checkpoint into a folder for from_pretrained; nothing in it is run.",
    "push": "Put an adapter or a model on the Hub, with a card that holds its measured results.",
    "export": "Write a model folder that loads without this package (trust_remote_code).",
    "verify": "Check weights against the hashes in their card.",
}

# Errors that a user can fix; they are printed in one line. Any other is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, NotImplementedError)

_INTERRUPTED, _BROKEN_PIPE = 130, 141  # 128 + SIGINT, 128 + SIGPIPE, as a shell reports them


class LazyCommands(TyperGroup):
    """Lists the commands of `COMMANDS` and imports only the one that is run."""

    def __init__(self, **attributes):
        super().__init__(**attributes)
        for name, summary in COMMANDS.items():
            self.add_command(TyperCommand(name=name, help=summary))

    def resolve_command(self, ctx, args):
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else command, rest

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if any(map(_is_unread, (sys.__stdout__, sys.__stderr__))):
                raise
            # The pipe of a socket or a worker, not of our output: typer would exit without a message.
            raise ConnectionError(*error.args[1:]) from error


def load_command(name: str) -> TyperCommand:
    module = name.replace("-", "_")
    function = getattr(importlib.import_module(f"hf_clip_variants.commands.{module}"), module)
    application = typer.Typer(add_completion=False, rich_markup_mode="rich")
    application.command(name)(function)
    return typer.main.get_command(application)


def _print_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. May be anywhere on the line.")
    ] = False,
) -> None:
    """
    CLIP and the methods built on it: name your classes, give a few images of each, share the result.

    \b
    [bold]A first session[/bold]
      hf-clip-variants demo
      hf-clip-variants adapt --data images/ --shots 4 --out run
      hf-clip-variants predict --help

    Data is a folder with one sub-folder per class, a Hub data set or Parquet files. Every command takes --json.
    """


def make_command() -> TyperGroup:
    application = typer.Typer(cls=LazyCommands, rich_markup_mode="rich", no_args_is_help=True)
    application.callback(context_settings={"help_option_names": ["-h", "--help"]})(_options)
    return typer.main.get_command(application)


def main(arguments: list[str] | None = None) -> None:
    """
    The entry point. It always raises `SystemExit`.

    Exit codes: 0 for success, 1 for an error that was printed in one line, 2 for wrong usage, 130 for Ctrl-C, 141 if
    the reader of our output was closed. A command may add others.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = _take_debug(arguments)
    try:
        make_command().main(arguments, prog_name=PROGRAM)
    except SystemExit as exit:
        code = exit.code
        # typer exits with 1 here; a shell expects 141.
        if isinstance(exit.__context__, OSError) and exit.__context__.errno == errno.EPIPE:
            code = _BROKEN_PIPE
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except USER_ERRORS as error:
        if debug:
            raise
        _print_error(error)
        code = 1
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _BROKEN_PIPE
    if code == _BROKEN_PIPE:
        _drop_output()
    sys.exit(code)


def _take_debug(arguments: list[str]) -> bool:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = "--debug" in arguments[:end]
    arguments[:end] = [argument for argument in arguments[:end] if argument != "--debug"]
    return found


def _print_error(error: BaseException) -> None:
    message = " ".join(str(error).split()) or type(error).__name__
    typer.secho(f"Error: {message}", fg="red", err=True)


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
