"""`hf-clip-variants convert`: an official checkpoint as a folder that `from_pretrained` loads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .output import JsonOption, machine_output, prepare_libraries


SHOWN_DROPPED = 10

_MODEL, _ADAPTER = "Models", "Adapters"


def convert(
    file: Annotated[
        str,
        typer.Argument(
            help="The official file: .pt, .pth.tar, .bin, .safetensors. Tip-Adapter: keys_*.pt or best_F_*.pt."
        ),
    ],
    out: Annotated[str, typer.Argument(help="The folder to write.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="clip, clip_resnet, slip, chinese_clip, audioclip, coop, cocoop, maple, vpt, ivlp, clip_adapter or tip_adapter.",
            show_default="told from the names in the file",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder, Hub id or vocabulary file; none writes none.",
            show_default="the official one",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Of the weights that are written.", show_default="float32", rich_help_panel=_MODEL),
    ] = None,
    activation: Annotated[
        Literal["quick_gelu", "gelu"] | None,
        typer.Option(
            help="No weights tell: quick_gelu for OpenAI's, gelu for most of open_clip's.",
            show_default="open_clip_config.json beside the file, else quick_gelu",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    open_clip_config: Annotated[
        str | None, typer.Option(help="open_clip's configuration of the model, a JSON file.", rich_help_panel=_MODEL)
    ] = None,
    vision_heads: Annotated[
        int | None, typer.Option(help="Attention heads.", show_default="width / 64", rich_help_panel=_MODEL)
    ] = None,
    text_heads: Annotated[
        int | None, typer.Option(help="Attention heads.", show_default="width / 64", rich_help_panel=_MODEL)
    ] = None,
    keep_head: Annotated[
        bool,
        typer.Option(
            "--keep-head",
            help="SLIP: with its self-supervised head, to go on with the training.",
            rich_help_panel=_MODEL,
        ),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="The CLIP that the adapter was trained on: folder or Hub id.", rich_help_panel=_ADAPTER),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Classes of the training in label order, with commas, or a .txt file with a name a line.",
            show_default="the base's",
            rich_help_panel=_ADAPTER,
        ),
    ] = None,
    templates: Annotated[
        str | None, typer.Option(help="Prompt template, a named set, or a file.", rich_help_panel=_ADAPTER)
    ] = None,
    position: Annotated[
        Literal["end", "middle", "front"] | None,
        typer.Option(help="CoOp: where the class name stands.", show_default="end", rich_help_panel=_ADAPTER),
    ] = None,
    context_init: Annotated[
        str | None,
        typer.Option(
            help="MaPLe, IVLP: the words that the training began with; '' for none.", rich_help_panel=_ADAPTER
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            help="CLIP-Adapter: weight of the adapted feature.", show_default="0.2", rich_help_panel=_ADAPTER
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Tip-Adapter: weight of the cache.", show_default="1.0", rich_help_panel=_ADAPTER),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Tip-Adapter: sharpness.", show_default="5.5", rich_help_panel=_ADAPTER)
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            help="Tip-Adapter: the labels.", show_default="values_*.pt beside the file", rich_help_panel=_ADAPTER
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Load what was written and compare its outputs with those before.")
    ] = False,
    expected: Annotated[
        str | None,
        typer.Option(help="Also compare with official outputs: a safetensors file of inputs and outputs."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in the folder.")] = False,
    json: JsonOption = False,
) -> None:
    """
    Convert an official checkpoint: OpenAI's and open_clip's CLIP, SLIP, AudioCLIP, Chinese-CLIP, and files of the adapters.

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

    with machine_output() as emit:
        result = convert_checkpoint(
            file, out, method, compare=compare, expected=expected, overwrite=overwrite, tokenizer=tokenizer, dtype=dtype, activation=activation,
            open_clip_config=open_clip_config, vision_heads=vision_heads, text_heads=text_heads, keep_head=keep_head or None, base=base, class_names=_names(classes), templates=templates,
            class_token_position=position, context_init=context_init, ratio=ratio, alpha=alpha, beta=beta, values=values,
        )  # fmt: skip
        if json:
            emit(result.as_dict())
    if not json:
        _print(result)


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
