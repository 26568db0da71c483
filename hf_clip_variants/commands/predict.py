"""`hf-clip-variants predict`: classes of images, one line per image."""

import contextlib
import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, TextIO

import typer

from . import options
from .arguments import check_device, check_model, check_templates
from .options import RUNNING
from .output import JsonOption, machine_output, prepare_libraries, progress_bar, say


UNREADABLE = 1  # exit code when an image could not be read


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES",
            help="Files and folders. Without any, paths are read from standard input, a line each.",
            show_default=False,
        ),
    ] = None,
    adapter: options.Adapter = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A saved classifier, or any CLIP with --classes: folder or Hub id."),
    ] = None,
    classes: options.Classes = None,
    templates: options.Templates = None,
    base: options.Base = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="How many classes to print for each image.", show_default="1, or all present"
        ),
    ] = None,
    format: Annotated[
        Literal["csv", "json"],
        typer.Option(metavar="NAME", help="csv with a header, or json lines.", rich_help_panel=RUNNING),
    ] = "csv",
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write here, once all is done, instead of printing.", rich_help_panel=RUNNING
        ),
    ] = None,
    batch_size: options.BatchSize = 32,
    device: options.Device = None,
    json: JsonOption = False,
) -> None:
    """
    Classify images: one line per image with its path, the best class and its probability.

    \b
    [bold]Example[/bold]
      hf-clip-variants predict photos/ --adapter run/adapters/coop/4-shot/seed-1

    A model for several labels an image gives all classes that reach their thresholds, with | between them.

    For an image that cannot be read, the error is in its line and on standard error. The others are classified, and
    the exit code is 1.

    \b
    [bold]More examples[/bold]
      hf-clip-variants predict *.jpg --model openai/clip-vit-base-patch32 \\
        --classes "cat, dog, fox" --top 3
      find . -name '*.png' | hf-clip-variants predict --model pets --out a.csv
    """
    for option, source in (("--adapter", adapter), ("--model", model), ("--base", base)):
        check_model(option, source)
    check_templates(templates)
    check_device(device)
    if not inputs and sys.stdin.isatty():
        raise ValueError("IMAGES: name files or folders, or pipe paths in, a line each")
    if out is not None and os.path.isdir(out):
        raise IsADirectoryError(f"--out: {out} is a folder; want a file")
    prepare_libraries(watched=not json)
    from ..evaluation.prediction import classify, find_images, load_for_prediction

    loaded = load_for_prediction(model, adapter, classes, templates, device, base=base)
    several = loaded.several_labels
    top = top or (len(loaded.class_names) if several else 1)
    paths = list(find_images(inputs)) if inputs else find_images(_lines())
    broken, done = 0, 0
    as_json = json or format == "json"
    with _opened(out) as stream, machine_output(stream) as emit, _counting(out, inputs, paths) as advance:
        write = emit if as_json else _csv_writer(stream, 1 if several else min(top, len(loaded.class_names)))
        for prediction in classify(loaded, paths, top, batch_size):
            done += 1
            advance(done)
            if prediction.error is not None:
                broken += 1
                say(f"{prediction.path}: {prediction.error}", style="red")
                write({"path": prediction.path, "error": prediction.error})
                continue
            best = [{"label": label, "score": round(score, 6)} for label, score in prediction.top]
            if several:
                write({"path": prediction.path, "labels": best} if as_json else _in_one_cell(prediction.path, best))
                continue
            write({"path": prediction.path, **best[0], **({"top": best} if top > 1 else {})})
        if not done:
            raise ValueError(f"IMAGES: no image files in {', '.join(inputs or ['standard input'])}")
    if broken:
        say(f"{broken} of {done} images could not be read", style="red")
        raise typer.Exit(UNREADABLE)


def _in_one_cell(path: str, found: list[dict]) -> dict:
    """As `evaluate` reads several labels from a table."""
    return {"path": path} | {name: "|".join(str(one[name]) for one in found) for name in ("label", "score")}


@contextlib.contextmanager
def _opened(out: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that is there when all is written, and not before."""
    if out is None:
        yield sys.stdout
        return
    from ..files.atomic_writes import replacing

    with replacing(out) as aside, open(aside, "w", encoding="utf-8", newline="") as stream:
        yield stream


def _counting(out: str | None, inputs: list[str] | None, paths: Iterable[str]) -> Any:
    """A bar where results are not printed. How many paths will come from standard input, nobody knows."""
    if out is None:
        return contextlib.nullcontext(lambda done: None)
    return progress_bar("Classifying", len(paths) if inputs else None)


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
