"""`hf-clip-variants evaluate`: accuracy on labelled images."""

from collections.abc import Sequence
from typing import Annotated

import typer

from .output import JsonOption, console, machine_output, prepare_libraries, progress_bar
from .predict import UNREADABLE
from .reading import HOW, ClassNames, classes_to_choose_from, names_of_labels


SHOWN_CLASSES = 10


def evaluate(
    data: Annotated[
        str, typer.Option(help="Folder with one sub-folder per class, Parquet, CSV, Hub data set or emoji:<style>.")
    ],
    adapter: Annotated[str | None, typer.Option(help="An adapter: folder or Hub id.")] = None,
    model: Annotated[str | None, typer.Option(help="A classifier or any CLIP: folder or Hub id.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the data.", show_default="test where there is one")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|LIST", help=f"Classes to choose from: {HOW}.", show_default="the model's, or the data's"
        ),
    ] = None,
    class_names: ClassNames = None,
    templates: Annotated[
        str | None, typer.Option(help="Prompt template, named set or file, for a model without its own.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column of the images.", show_default="found by its type")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the labels.", show_default="found by its type")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one pass of the model.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …", show_default="a GPU if there is one")] = None,
    json: JsonOption = False,
) -> None:
    """
    Measure a model, with or without an adapter, on labelled images: overall accuracy, and accuracy per class.

    Classes are matched by name. Images that cannot be read are listed and left out, and the exit code is 1.

    \b
    [bold]Examples[/bold]
      hf-clip-variants evaluate --adapter run/adapters/coop/16-shot/seed-1 --data pets/ --split test
      hf-clip-variants evaluate --model openai/clip-vit-base-patch32 --templates pets --data pets/ --json
    """
    prepare_libraries()
    from ..data.images.labelled_images import LiveImages
    from ..data.images.labelled_sets import align_classes
    from ..data.images.sources import UnnamedLabels, load_images
    from ..evaluation.image_prediction import predict
    from ..evaluation.prediction import load_for_prediction
    from ..metrics.classification import accuracy, accuracy_by_class

    reading = {"image_column": image_column, "label_column": label_column, "class_names": names_of_labels(class_names)}
    options = {"on_error": "skip", "empty_classes": "warn", "progress": not json, **reading}
    about_model = (model, adapter, classes_to_choose_from(classes), templates, device)
    loaded = None
    try:
        images = load_images(data, split, **options)
    except UnnamedLabels:  # the model's classes name them
        loaded = load_for_prediction(*about_model)
        images = load_images(data, split, **options | {"class_names": loaded.class_names})
    if split is None and images.split == "train" and "test" in images.available_splits:
        images = images.load_split(split="test")
    loaded = loaded or load_for_prediction(*about_model, default_class_names=images.class_names)
    images = align_classes(images, loaded.class_names, data)
    base = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    labelled = LiveImages(base, images, loaded.processor)
    with progress_bar("Classifying", len(labelled)) as advance:
        predicted, _ = predict(loaded.model, labelled, batch_size, advance)
    per_class = accuracy_by_class(predicted, labelled.labels, len(loaded.class_names))
    result = {
        "data": data,
        "split": images.split,
        "images": len(images),
        "classes": len(loaded.class_names),
        "accuracy": accuracy(predicted, labelled.labels),
        "per_class": dict(zip(loaded.class_names, per_class, strict=True)),
        "unreadable": [name for name, _ in images.skipped],
    }
    if json:
        with machine_output() as emit:
            emit(result)
    else:
        print_accuracy(result)
    report_unreadable(images.skipped)


def report_unreadable(skipped: Sequence[tuple[str, str]]) -> None:
    """List the images that were left out; if there are any, exit with the command's exit code for them."""
    for name, reason in skipped:
        console().print(f"{name}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    if skipped:
        raise typer.Exit(UNREADABLE)


def print_accuracy(result: dict) -> None:
    """The accuracy and the hardest classes."""
    from rich.console import Console
    from rich.table import Table

    out = Console(highlight=False)
    split = f", split {result['split']}" if result["split"] else ""
    out.print(
        f"[bold]{100 * result['accuracy']:.1f} %[/bold] of {result['images']} images in {result['classes']} classes "
        f"({result['data']}{split})"
    )
    measured = sorted((a, name) for name, a in result["per_class"].items() if a is not None)
    table = Table(
        "class", "accuracy, %", title=f"The {min(SHOWN_CLASSES, len(measured))} hardest classes", title_justify="left"
    )
    for value, name in measured[:SHOWN_CLASSES]:
        table.add_row(name, f"{100 * value:.1f}")
    out.print(table)
