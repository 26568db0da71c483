"""How all commands print: results and JSON on standard output, progress and remarks on standard error.

Whatever is printed is text: names of files and classes may hold `[bold]`, which rich would take for a style.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ..files.printable import printable
from .options import FLAG, RUNNING


if TYPE_CHECKING:
    from rich.console import Console

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print JSON only; progress goes to standard error.", rich_help_panel=RUNNING, **FLAG),
]


def prepare_libraries(watched: bool = False) -> None:
    """Call before heavy imports: OpenMP threads that sleep while they wait, libraries without progress bars.

    With `watched`, a person at a terminal reads at once that libraries and models are being loaded.
    """
    if watched and sys.stderr.isatty():
        typer.secho("Loading …", dim=True, err=True)
    # By default, OpenMP's threads use the processor while they wait for each other. On a machine that is busy
    # otherwise, that is several times slower (measured: 197 s instead of 30 s for half of the demo); sleeping costs a
    # few microseconds. torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # ours have names
    import warnings

    from transformers.utils.logging import disable_progress_bar

    logging.lastResort.setFormatter(_PrintableLines())
    disable_progress_bar()  # a progress bar for a hundred small tensors is of no use
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def use_all_cores() -> None:
    """Use one thread per core of this process, unless OMP_NUM_THREADS is set: PyTorch may count fewer cores."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class _PrintableLines(logging.Formatter):
    """For warnings, which name files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def screen() -> "Console":
    """For results that people read: standard output."""
    return _console(stderr=False)


def console() -> "Console":
    """For progress bars and remarks: standard error, so that standard output can be piped."""
    return _console(stderr=True)


def _console(stderr: bool) -> "Console":
    """Takes no text for a style, and prints no character that a terminal obeys."""
    from rich.console import Console

    class Plain(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*map(_printable, objects), **options)

    return Plain(stderr=stderr, highlight=False, markup=False, emoji=False)


def _printable(part: Any) -> Any:
    """Strings, texts and tables (whose cells `title_and_rows` made) with what `printable` leaves of them."""
    from rich.text import Text

    if isinstance(part, str):
        return printable(part)
    if isinstance(part, Text) and printable(part.plain) != part.plain:
        return Text(printable(part.plain), part.style)  # without the styles of its parts
    return part


def say(text: str, style: str = "dim") -> None:
    """A line on standard error."""
    console().print(text, style=style, soft_wrap=True)


def title_and_rows(title: str, columns: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> Any:
    """A table whose cells are text; numbers are on the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(Text(printable(name)), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


@contextlib.contextmanager
def machine_output(stream: TextIO | None = None) -> Iterator[Callable[[Any], None]]:
    """
    Keep standard output free of anything but JSON.

    Inside, `print` and libraries write to standard error; the yielded function writes one value as one line of JSON to
    `stream`, by default the real standard output, at once.

    Example:

    ```python
    >>> from hf_clip_variants.commands.output import machine_output

    >>> with machine_output() as emit:
    ...     print("loading")  # seen on standard error
    ...     emit({"label": "cat", "score": 0.9})
    {"label": "cat", "score": 0.9}
    ```
    """
    written = stream or sys.stdout

    def emit(value: Any) -> None:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
        # A file name need not be UTF-8; in JSON its bytes are escapes. Other encodings have no all characters.
        is_utf = (getattr(written, "encoding", None) or "utf-8").lower().startswith("utf")
        line = line.encode("utf-8", "backslashreplace").decode() if is_utf else json.dumps(value, allow_nan=False)
        written.write(line + "\n")
        written.flush()

    with contextlib.redirect_stdout(sys.stderr):
        yield emit


@contextlib.contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; the yielded function says how many of `total` are done (None: nobody knows)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console(), transient=True) as bars:
        bar = bars.add_task(title, total=total)
        yield lambda done: bars.update(bar, completed=done)
