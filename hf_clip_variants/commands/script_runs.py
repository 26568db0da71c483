"""How a program of `scripts/` ends: as the commands of `hf-clip-variants` do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ..cli import in_words_of
from ..files.printable import printable
from .interruption import exit_code, listening
from .output import prepare_libraries


def run_script(parser: argparse.ArgumentParser, work: Callable[[], object], interrupted: str) -> int:
    """Runs `work` and returns the exit code.

    Args:
        parser: whose options stand for the library's arguments in messages.
        work: what the program does. A whole number that it returns is the exit code, anything else is 0.
        interrupted: the sentence after Ctrl-C or SIGTERM: where what is done is, and how to go on.

    Returns:
        2 after a ValueError or OSError, which becomes one sentence; 128 + the signal after an interruption.
    """
    try:
        with listening():
            prepare_libraries()
            found = work()
    except (ValueError, OSError) as error:
        options = [action for action in parser._actions if action.option_strings]
        flags = {action.dest: action.option_strings[0] for action in reversed(options)}
        sys.stderr.write(printable(f"error: {in_words_of(flags, str(error))}\n"))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(printable(f"\nInterrupted. {interrupted}\n"))
        return exit_code()
    return found if isinstance(found, int) else 0


__all__ = ["run_script"]
