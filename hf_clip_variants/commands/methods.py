"""`hf-clip-variants methods`: the table of methods."""

from typing import Annotated, Literal

import typer

from ..registry import method as method_called
from ..registry import methods as all_methods
from .output import JsonOption, machine_output


def methods(
    names: Annotated[list[str] | None, typer.Argument(help="Only these methods.", show_default="all")] = None,
    kind: Annotated[
        Literal["model", "adapter"] | None, typer.Option(help="Only whole models, or only adapters on a frozen CLIP.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """
    List the methods: when to use each, its paper, the official code and its licence.

    \b
    [bold]Examples[/bold]
      hf-clip-variants methods
      hf-clip-variants methods tip_adapter coop
      hf-clip-variants methods --kind adapter --json
    """
    rows = [method_called(name) for name in names] if names else all_methods()
    rows = [row for row in rows if kind in (None, row.kind)]
    if json:
        with machine_output() as emit:
            emit([row.as_dict() for row in rows])
        return

    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        code = f"{row.code.url}  {row.code.licence or 'no licence stated'}"
        about = f"{row.summary}\n[dim]{row.paper.title} ({row.paper.year})\n{row.paper.url}\n{code}[/dim]"
        table.add_row(f"[bold]{row.name}[/bold]", row.kind, f"{about}\n")
    Console(highlight=False).print(table)
