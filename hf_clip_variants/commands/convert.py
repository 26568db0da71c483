"""`hf-clip-variants convert`: an official checkpoint as a folder that `from_pretrained` loads. Its options are those of the table's formats."""

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..conversion.options import OfferedOption, offered_options
from ..registry import checkpoint_entries
from .output import JsonOption, machine_output, prepare_libraries


SHOWN_DROPPED = 10

_PANELS = {"model": "Models", "adapter": "Adapters"}


def convert(
    file: str,
    out: str,
    method: str | None,
    compare: bool,
    expected: str | None,
    overwrite: bool,
    json: bool,
    **options: Any,
) -> None:
    """
    Convert an official checkpoint: OpenAI's and open_clip's CLIP, other models, and files of the adapters (--method lists all).

    Nothing in the file is run: tensors are read, all else is refused or dropped. Sizes follow from the shapes, names must fit exactly, and when anything
    fails nothing is written.

    \b
    [bold]Examples[/bold]
      hf-clip-variants convert ViT-B-32.pt clip-vit-b-32 --compare
      hf-clip-variants convert open_clip_model.safetensors laion-b-32 --activation gelu --dtype float16
      hf-clip-variants convert model.pth.tar-50 coop --base clip-vit-b-32 --classes "cat, dog" --position middle
    """
    prepare_libraries()
    from ..conversion.convert import convert_checkpoint

    # A flag that was not given is no option: most formats would refuse it.
    options = {name: value for name, value in options.items() if value is not False}
    options["class_names"] = _names(options["class_names"])
    with machine_output() as emit:
        result = convert_checkpoint(
            file, out, method, compare=compare, expected=expected, overwrite=overwrite, **options
        )
        if json:
            emit(result.as_dict())
    if not json:
        _print(result)


def _signature() -> inspect.Signature:
    """What typer reads: the arguments, and every option of the table's formats in the panel of its kind."""
    entries = [entry for _, entry in checkpoint_entries().values()]
    files = "".join(f" {entry.title}: {entry.files}." for entry in entries if entry.files)
    method = typer.Option(
        help=f"{', '.join(entry.name for entry in entries)}.", show_default="told from the names in the file"
    )
    compare = typer.Option("--compare", help="Load what was written and compare its outputs with those before.")
    expected = typer.Option(help="Also compare with official outputs: a safetensors file of inputs and outputs.")
    overwrite = typer.Option("--overwrite", help="Replace the model in the folder.")
    parameters = {
        "file": (typer.Argument(help=f"The official file: .pt, .pth.tar, .bin, .safetensors.{files}"), str),
        "out": (typer.Argument(help="The folder to write."), str),
        "method": (method, str | None),
        **{name: _typer_option(offered) for name, offered in offered_options().items()},
        "compare": (compare, bool),
        "expected": (expected, str | None),
        "overwrite": (overwrite, bool),
    }
    required = ("file", "out")
    return inspect.Signature(
        [
            _parameter(name, Annotated[kind, info], inspect.Parameter.empty if name in required else _default(kind))
            for name, (info, kind) in parameters.items()
        ]
        + [_parameter("json", JsonOption, False)]
    )


def _typer_option(offered: OfferedOption) -> tuple[Any, Any]:
    """typer's description of an option, and its type."""
    option = offered.option
    flag = option.flag or f"--{option.name.replace('_', '-')}"  # without its opposite, --no-…
    info = typer.Option(flag, help=offered.help, rich_help_panel=_PANELS[offered.kind])
    if option.type is bool:
        return info, bool
    info.show_default = option.default or True
    return info, (Literal[option.type] if isinstance(option.type, tuple) else option.type) | None


def _default(kind: Any) -> Any:
    return False if kind is bool else None


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


convert.__signature__ = _signature()


def _names(classes: str | None) -> str | list[str] | None:
    """A file's lines, because names can hold commas; else what was typed."""
    if classes is None or not classes.endswith(".txt") or not Path(classes).is_file():
        return classes
    return [line.strip() for line in Path(classes).read_text(encoding="utf-8").splitlines() if line.strip()]


def _print(result) -> None:
    from ..conversion.checkpoint_reader import printable  # the names are the file's own

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
