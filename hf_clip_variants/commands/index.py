"""`hf-clip-variants index`: vectors of pictures, videos and sounds, to be searched."""

import contextlib
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options
from .arguments import check_data, check_device, check_model, check_out
from .options import DATA, RUNNING
from .output import JsonOption, machine_output, prepare_libraries, progress_bar, say, use_all_cores


UNREADABLE = 1  # exit code when a file could not be read
VIDEO = "Videos"


def index(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of pictures, videos and sounds at any depth, Parquet, or a Hub data set.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="INDEX", help="Folder of the index. One that is there is brought up to date.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Any dual encoder: folder or Hub id.",
            show_default="that of the index",
        ),
    ] = None,
    videos: Annotated[
        Literal["frames", "clips"] | None,
        typer.Option(
            metavar="NAME",
            help="A vector for each of some frames, or for each clip.",
            show_default="clips if the model looks at clips as a whole",
            rich_help_panel=VIDEO,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Frames a second that are looked at.",
            show_default="1",
            rich_help_panel=VIDEO,
        ),
    ] = None,
    clip_seconds: Annotated[
        float | None,
        typer.Option(metavar="X", help="Length of a clip.", show_default="10", rich_help_panel=VIDEO),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column of pictures, videos, sounds or their bytes.",
            show_default="found by its type",
            rich_help_panel=DATA,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a data set.", show_default="all", rich_help_panel=DATA),
    ] = None,
    faiss: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Also an approximate index for millions of vectors, as FAISS writes it: IVF1024,Flat or HNSW32.",
            show_default=False,
            rich_help_panel=RUNNING,
        ),
    ] = None,
    batch_size: options.BatchSize = 32,
    device: options.Device = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(metavar="NAME", help="Of the model: float32, bfloat16, float16.", rich_help_panel=RUNNING),
    ] = "float32",
    json: JsonOption = False,
) -> None:
    """
    Make an index of pictures, videos and sounds for `search`, or bring one up to date.

    \b
    [bold]Example[/bold]
      hf-clip-variants index holiday/ --model openai/clip-vit-base-patch32 \\
        --out holiday-index

    Pictures, frames or clips of videos and windows of sounds become vectors of the model, as far as it has encoders
    for them. The same command again encodes only files that are new or have changed, and drops those that are gone.
    After an interruption, it goes on where it stopped. torchrun divides the work among processes. Files that cannot be
    read are listed and left out, and the exit code is 1.

    \b
    [bold]More examples[/bold]
      hf-clip-variants index holiday/ --out holiday-index        # what is new
      hf-clip-variants index films/ --model my-clip4clip --out films-index \\
        --videos clips --clip-seconds 5
      hf-clip-variants index photos.parquet --model my-slip --out photos \\
        --faiss IVF1024,Flat
      torchrun --nproc-per-node 4 -m hf_clip_variants.cli index …
    """
    check_data("SOURCE", [source])
    check_out("--out", out)
    check_device(device)
    check_model("--model", model)
    model = _model(model, out)
    first = os.environ.get("RANK", "0") == "0"
    prepare_libraries(watched=first and not json)
    use_all_cores()
    import torch

    with contextlib.ExitStack() as stack:
        advance = None

        def progress(done: int, total: int) -> None:
            nonlocal advance
            if advance is None and first and total:
                advance = stack.enter_context(progress_bar("Indexing", total))
            if advance is not None:
                advance(done)

        emit = stack.enter_context(machine_output()) if json else None
        made = _build(
            source,
            model,
            out,
            videos=videos,
            fps=fps,
            clip_seconds=clip_seconds,
            column=column,
            split=split,
            batch_size=batch_size,
            device=device,
            dtype=getattr(torch, dtype),
            faiss=faiss,
            progress=progress,
        )
        stack.pop_all().close() if emit is None else None
        if not first:
            return
        if emit is not None:
            unreadable = [{"path": path, "error": why} for path, why in made.unreadable]
            emit({"index": out, "files": made.counts(), "vectors": len(made), "unreadable": unreadable})
    _say_what_is_there(made, out, quiet=json)


def _build(source: str, model: str, out: str, **settings):
    """`build_index`; an interruption says what is kept."""
    from ..search.building import WORK, build_index

    try:
        return build_index(source, model, out, **settings)
    except KeyboardInterrupt:
        parts = len(list(Path(out, WORK).glob("part-*.arrow")))
        kept = f"{parts} parts are kept in {out}" if parts else "Nothing is kept yet"
        raise KeyboardInterrupt(f"Interrupted. {kept}; the same command goes on from there.") from None


def _model(model: str | None, out: str) -> str:
    """What was named, or else the model of the index."""
    from ..files.index_folders import model_of_index

    found = model if model is not None else model_of_index(out)
    if found is None:
        raise ValueError(f"--model: missing, and {out} is no index that has one; want a folder or Hub id")
    return found


def _say_what_is_there(made, out: str, quiet: bool) -> None:
    for path, why in made.unreadable:
        say(f"{made.place_of(path)}: {why}", style="red")
    counts = made.counts()
    if not quiet:
        held = ", ".join(f"{count} {kind} file{'s' if count != 1 else ''}" for kind, count in counts.items())
        typer.echo(f'{out}: {held}; {len(made)} vectors. hf-clip-variants search {out} "a red car"')
    if made.unreadable:
        say(f"{len(made.unreadable)} of {sum(counts.values()) + len(made.unreadable)} files could not be read", "red")
        raise typer.Exit(UNREADABLE)
