"""How all commands print: results and JSON on standard output, progress and remarks on standard error."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from rich.console import Console

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print JSON and nothing else on standard output; progress goes to standard error."),
]


def prepare_libraries() -> None:
    """Call before heavy imports: OpenMP threads that sleep while they wait, libraries without progress bars."""
    # By default, OpenMP's threads use the processor while they wait for each other. On a machine that is busy
    # otherwise, that is several times slower (measured: 197 s instead of 30 s for half of the demo); sleeping costs a
    # few microseconds. torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import warnings

    from transformers.utils import logging

    # A progress bar for a hundred small tensors is of no use.
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def console() -> "Console":
    """For progress bars and remarks: standard error, so that standard output can be piped."""
    from rich.console import Console

    return Console(stderr=True)


@contextlib.contextmanager
def machine_output() -> Iterator[Callable[[Any], None]]:
    """
    Keep standard output free of anything but JSON.

    Inside, `print` and libraries write to standard error; the yielded function writes one value as one line of JSON to
    the real standard output, at once.

    Example:

    ```python
    >>> from hf_clip_variants.commands.output import machine_output

    >>> with machine_output() as emit:
    ...     print("loading")  # seen on standard error
    ...     emit({"label": "cat", "score": 0.9})
    {"label": "cat", "score": 0.9}
    ```
    """
    stdout = sys.stdout

    def emit(value: Any) -> None:
        stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        stdout.flush()

    with contextlib.redirect_stdout(sys.stderr):
        yield emit


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; the yielded function says how many of `total` are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console(), transient=True) as bars:
        bar = bars.add_task(title, total=total)
        yield lambda done: bars.update(bar, completed=done)
