"""`hf-clip-variants predict`: classes of images, one line per image."""

import csv
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, TextIO

import typer

from .output import JsonOption, console, machine_output, prepare_libraries
from .reading import HOW, classes_to_choose_from


UNREADABLE = 1  # exit code when an image could not be read


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files and folders of them. Without any, paths are read from standard input, a line each."
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="An adapter: folder or Hub id. It names its model and its classes."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A saved classifier, or any CLIP with --classes: folder or Hub id.")
    ] = None,
    classes: Annotated[str | None, typer.Option(metavar="FILE|LIST", help=f"Classes to choose from: {HOW}.")] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            help="Template, such as 'a photo of a {}.', a named set, or a file (JSON: also prompts of each class)."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each image.")] = 1,
    format: Annotated[Literal["csv", "json"], typer.Option(help="CSV with a header, or JSON lines.")] = "csv",
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one pass of the model.")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …", show_default="a GPU if there is one")] = None,
    json: JsonOption = False,
) -> None:
    """
    Classify images: one line per image with its path, the best class and its probability.

    For an image that cannot be read, the error is in its line and on standard error. The others are classified, and
    the exit code is 1.

    \b
    [bold]Examples[/bold]
      hf-clip-variants predict --adapter run/adapters/tip_adapter_f/4-shot/seed-1 photos/
      hf-clip-variants predict --model openai/clip-vit-base-patch32 --classes "cat, dog, fox" *.jpg --top 3
      find . -name '*.png' | hf-clip-variants predict --model my-classifier --json > predictions.jsonl
    """
    prepare_libraries()
    from ..evaluation.prediction import classify, find_images, load_for_prediction

    if not inputs and sys.stdin.isatty():
        raise ValueError("inputs: name files or folders, or pipe paths in, a line each")
    loaded = load_for_prediction(model, adapter, classes_to_choose_from(classes), templates, device)
    paths = find_images(inputs or _lines())
    err, broken, done = console(), 0, 0
    write_csv = None if json or format == "json" else _csv_writer(sys.stdout, min(top, len(loaded.class_names)))
    with machine_output() as emit:
        write = write_csv or emit
        for prediction in classify(loaded, paths, top, batch_size):
            done += 1
            if prediction.error is not None:
                broken += 1
                err.print(
                    f"{prediction.path}: {prediction.error}",
                    style="red",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
                write({"path": prediction.path, "error": prediction.error})
                continue
            best = [{"label": label, "score": round(score, 6)} for label, score in prediction.top]
            write({"path": prediction.path, **best[0], **({"top": best} if top > 1 else {})})
    if not done:
        raise ValueError(f"inputs: no image files in {', '.join(inputs or ['standard input'])}")
    if broken:
        err.print(f"{broken} of {done} images could not be read", style="red")
        raise typer.Exit(UNREADABLE)


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\r\n")


def _csv_writer(stream: TextIO, top: int) -> Callable[[dict], None]:
    more = [f"{name}_{place}" for place in range(2, top + 1) for name in ("label", "score")]
    header = ["path", "label", "score", *more, "error"]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)

    def write(row: dict) -> None:
        if "error" in row:
            writer.writerow([row["path"], *[""] * (len(header) - 2), row["error"]])
        else:
            best = row.get("top") or [row]
            writer.writerow([row["path"], *(cell for item in best for cell in (item["label"], item["score"])), ""])
        stream.flush()

    return write
