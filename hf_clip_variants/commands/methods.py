"""`hf-clip-variants methods`: the table of methods."""

from typing import Annotated, Literal

import typer

from ..registry import Method, unknown_name
from ..registry import methods as all_methods
from . import options
from .output import JsonOption, machine_output, screen


def methods(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAMES",
            help="Only these methods.",
            show_default="all",
            autocompletion=options.one_of(lambda: _rows_by_name()),
        ),
    ] = None,
    kind: Annotated[
        Literal["model", "adapter"] | None,
        typer.Option(metavar="NAME", help="model: only whole models; adapter: only adapters on a frozen CLIP."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """
    List the methods: when to use each, its paper, the official code and its licence.

    \b
    [bold]Example[/bold]
      hf-clip-variants methods

    Adapters show the names that `adapt --methods` takes, models and adapters the names for `convert --method`.

    \b
    [bold]More examples[/bold]
      hf-clip-variants methods tip_adapter_f coop
      hf-clip-variants methods --kind adapter --json
    """
    rows = list(dict.fromkeys(map(_row_called, names))) if names else all_methods()
    rows = [row for row in rows if kind in (None, row.kind)]
    if json:
        with machine_output() as emit:
            emit([row.as_dict() for row in rows])
        return

    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        code = f"{row.code.url}  {row.code.licence or 'no licence stated'}"
        about = f"\n{row.paper.title} ({row.paper.year})\n{row.paper.url}\n{code}"
        about += "".join(f"\n{command} {', '.join(names)}" for command, names in _used_in(row).items())
        table.add_row(Text(row.name, style="bold"), row.kind, Text.assemble(row.summary, (about, "dim"), "\n"))
    screen().print(table)


def _used_in(row: Method) -> dict[str, list[str]]:
    """Options that take the method, and its names there."""
    found = {
        "adapt --methods": [entry.name for entry in row.few_shot],
        "convert --method": [entry.name for entry in row.checkpoints],
    }
    return {command: names for command, names in found.items() if names}


def _rows_by_name() -> dict[str, Method]:
    """By the names of methods, and by those that `adapt` knows."""
    rows = {row.name: row for row in all_methods()}
    return rows | {entry.name: row for row in all_methods() for entry in row.few_shot}


def _row_called(name: str) -> Method:
    rows = _rows_by_name()
    if name not in rows:
        raise ValueError(f"NAMES: {unknown_name(name, rows)}")
    return rows[name]
