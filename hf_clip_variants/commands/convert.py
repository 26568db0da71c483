"""`hf-clip-variants convert`: an official checkpoint as a folder that `from_pretrained` loads."""

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..conversion.options import OfferedOption, check_official, offered_options
from ..registry import checkpoint_entries
from . import options
from .arguments import check_model, check_name
from .options import FLAG
from .output import JsonOption, machine_output, prepare_libraries, use_all_cores


SHOWN_DROPPED = 10

_METAVARS = {bool: "", int: "N", float: "X", str: "TEXT"}

_PANELS = {"model": "Models", "adapter": "Adapters"}
_FILES = "".join(f" {entry.title}: {entry.files}." for _, entry in checkpoint_entries().values() if entry.files)


def convert(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help=f"The official file: .pt, .pth.tar, .bin, .safetensors.{_FILES}")
    ],
    out: Annotated[str, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"{', '.join(checkpoint_entries())}.",
            show_default="recognised by the names in the file",
            autocompletion=options.one_of(checkpoint_entries),
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Load the written folder and compare its outputs with those before saving.", **FLAG
        ),
    ] = False,
    expected: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Also compare with official outputs: a safetensors file of inputs and outputs."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in the folder.", **FLAG)] = False,
    json: JsonOption = False,
    **given: Any,
) -> None:
    """
    Convert an official checkpoint: OpenAI's and open_clip's CLIP, other models, files of the adapters (see --method).

    \b
    [bold]Example[/bold]
      hf-clip-variants convert ViT-B-32.pt clip-vit-b-32 --compare

    Nothing in the file is run: tensors are read, everything else is refused or dropped. Sizes follow from the shapes,
    names must fit exactly, and nothing is written when anything fails.

    \b
    [bold]More examples[/bold]
      hf-clip-variants convert open_clip_model.safetensors laion-b-32 \\
        --activation gelu --dtype float16
      hf-clip-variants convert model.pth.tar-50 coop --base clip-vit-b-32 \\
        --classes "cat, dog" --position middle
    """
    if not Path(file).exists():
        raise FileNotFoundError(f"FILE: no such file {file}")
    check_official(Path(file))
    if method is not None:
        check_name("--method", method, checkpoint_entries())
    check_model("--base", given["base"])
    prepare_libraries(watched=not json)
    use_all_cores()
    from ..conversion.convert import convert_checkpoint

    # Leave out flags that were not given: most formats refuse options that are not theirs.
    given = {name: value for name, value in given.items() if value is not False}
    given["class_names"] = options.classes_to_choose_from(given["class_names"])
    with machine_output() as emit:
        result = convert_checkpoint(
            file, out, method, compare=compare, expected=expected, overwrite=overwrite, **given
        )
        if json:
            emit(result.as_dict())
    if not json:
        _print(result)


def _parameter(offered: OfferedOption) -> inspect.Parameter:
    """A typer option for an option in the table of methods."""
    option = offered.option
    flag = option.flag or f"--{option.name.replace('_', '-')}"
    kind = Literal[option.type] if isinstance(option.type, tuple) else option.type
    info = typer.Option(
        flag,
        metavar=_METAVARS.get(option.type, "NAME"),
        help=offered.help + (f" One of {', '.join(option.type)}." if isinstance(option.type, tuple) else ""),
        show_default=option.default or True,
        rich_help_panel=_PANELS[offered.kind],
    )
    default = False if kind is bool else None
    annotation = Annotated[kind if kind is bool else kind | None, info]
    return inspect.Parameter(
        option.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation
    )


# typer reads the signature: here `**given` is replaced by the options of all formats in the table.
*_own, _ = inspect.signature(convert).parameters.values()
convert.__signature__ = inspect.Signature([*_own, *map(_parameter, offered_options().values())])


def _print(result) -> None:
    from ..conversion.checkpoint_reader import printable  # names come from the file

    typer.echo(f"{result.kind}: {result.parameters:,} numbers, {result.dtype}, in {result.folder}")
    for name, size in result.sizes.items():
        typer.echo(f"  {name}: {size}")
    if result.dropped:
        more = f" and {len(result.dropped) - SHOWN_DROPPED} more" if len(result.dropped) > SHOWN_DROPPED else ""
        names = ", ".join(map(printable, result.dropped[:SHOWN_DROPPED]))
        typer.echo(f"Not needed: {names}{more}")
    for note in result.notes:
        typer.echo(f"Note: {note}")
    if result.difference is not None:
        typer.echo(f"Before and after saving: outputs differ by {result.difference:.3g}")
    for name, difference in (result.expected_differences or {}).items():
        typer.echo(f"Expected {name}: differs by {difference:.3g}")
