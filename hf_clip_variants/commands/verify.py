"""`hf-clip-variants verify`: are these still the weights that were published?"""

from dataclasses import asdict
from typing import Annotated

import typer

from .arguments import check_model
from .output import JsonOption, machine_output, prepare_libraries


def verify(
    source: Annotated[str, typer.Argument(metavar="FOLDER", help="A saved adapter or model: folder or Hub id.")],
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="Of a Hub repository.")] = None,
    json: JsonOption = False,
) -> None:
    """
    Compare weight files with the hashes in their model card, and look for NaN and infinity.

    \b
    [bold]Example[/bold]
      hf-clip-variants verify clip-demo/adapters/tip_adapter/2-shot/seed-1

    A file with a flipped bit loads without an error; this command finds it. The exit code is 1 unless every file is as
    it was written.

    \b
    [bold]More examples[/bold]
      hf-clip-variants verify me/pets-tip-adapter --revision main --json
    """
    check_model("FOLDER", source)
    prepare_libraries(watched=not json)
    from ..hub.verification import verify as check_files

    with machine_output() as emit:
        checks = check_files(source, revision)
        if json:
            emit([asdict(check) for check in checks])
    if not json:
        for check in checks:
            typer.echo(f"{check.file}: {check.status}" + (f" ({check.detail})" if check.detail else ""))
    if any(check.status != "ok" for check in checks):
        raise typer.Exit(1)
