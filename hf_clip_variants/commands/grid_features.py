"""`hf-clip-variants grid-features`: the grid that an image encoder sees of each image, as a data set."""

import contextlib
import re
from typing import Annotated, Literal

import typer

from . import options
from .arguments import check_device, check_model, check_out
from .options import RUNNING
from .output import JsonOption, machine_output, prepare_libraries, progress_bar, say, use_all_cores


UNREADABLE = 1  # exit code when an image could not be read


def grid_features(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A dual encoder, or a model on its grid: folder or Hub id.")
    ],
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGES", help="Files, and folders at any depth.")],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="The data set; one that is there is replaced.")],
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="448: squashed to a square; 384x640: to this height and width; 600-1000: the shorter and at most the "
            "longer side, whose shape stays.",
            show_default="as the model's processor does",
        ),
    ] = None,
    numbers: Annotated[
        Literal["float16", "float32"],
        typer.Option(metavar="NAME", help="What is stored: float16 or float32.", rich_help_panel=RUNNING),
    ] = "float16",
    device: options.Device = None,
    json: JsonOption = False,
) -> None:
    """
    Store what an image encoder sees in each cell of an image, before it pools: a row an image, for training on stored
    features.

    \b
    [bold]Example[/bold]
      hf-clip-variants grid-features clip-vit-b32 photos/ --out grids

    A ResNet gives its last map, a cell for 32 x 32 pixels; a Vision Transformer its tokens, normalised, not projected,
    and its class token in a column of its own. Positions are resized to the grid of each image.

    datasets.load_from_disk reads the folder: path, rows, columns, grid (a vector a cell, row after row), class_token,
    and the height and width that the image was seen at. Images that cannot be read are listed and have no row, and
    the exit code is 1.

    \b
    [bold]More examples[/bold]
      hf-clip-variants grid-features rn50 photos/ --size 448 --out grids
      hf-clip-variants grid-features rn50 a.jpg --size 600-1000 --out grids
    """
    check_model("MODEL", model)
    check_device(device)
    check_out("--out", out)
    chosen = read_size(size)
    prepare_libraries(watched=not json)
    use_all_cores()
    from ..evaluation.grid_features import load_grid_encoder, write_grids
    from ..evaluation.prediction import find_images

    paths = list(find_images(inputs))
    if not paths:
        raise ValueError(f"IMAGES: no image files in {', '.join(inputs)}")
    encoder = load_grid_encoder(model, chosen, device)
    bar = contextlib.nullcontext(lambda done: None) if json else progress_bar("Encoding", len(paths))
    with machine_output() as emit:
        with bar as advance:
            count = write_grids(encoder, paths, out, numbers, {"model": model, "size": size}, advance)
        for path, error in encoder.errors:
            say(f"{path}: {error}", style="red")
        result = {"out": out, "images": count, "unreadable": [{"path": p, "error": e} for p, e in encoder.errors]}
        if json:
            emit(result)
        else:
            say(f"{out} holds the grids of {count} images (datasets.load_from_disk)")
    if encoder.errors:
        raise typer.Exit(UNREADABLE)


def read_size(text: str | None) -> dict[str, int] | None:
    """
    >>> read_size("448"), read_size("384x640"), read_size("600-1000")
    ({'height': 448, 'width': 448}, {'height': 384, 'width': 640}, {'shortest_edge': 600, 'longest_edge': 1000})
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,4})(?:([x-])(\d{1,4}))?", text.strip())
    first, kind, second = found.groups() if found else ("0", None, None)
    if not int(first) or (second is not None and (not int(second) or (kind == "-" and int(second) < int(first)))):
        raise ValueError(f"--size: got {text!r}; want 448, 384x640 (height, width) or 600-1000 (shorter, longer side)")
    if kind == "-":
        return {"shortest_edge": int(first), "longest_edge": int(second)}
    return {"height": int(first), "width": int(second or first)}


__all__ = ["grid_features", "read_size"]
