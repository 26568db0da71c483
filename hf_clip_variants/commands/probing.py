"""What `linear-probe` and `knn` share: options, features of two sets of images, the result and its output."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import options
from .adapt import keep_common_classes
from .arguments import check_data, check_device, check_model
from .evaluate import print_accuracy, report_unreadable
from .output import machine_output, progress_bar, say, use_all_cores


if TYPE_CHECKING:
    import torch

    from ..data.images.feature_cache import Features


# (training features, test features, device) -> predictions, and further fields of the result.
Probe = Callable[["Features", "Features", "torch.device"], tuple["torch.Tensor", dict[str, Any]]]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A dual encoder or an image model that AutoModel loads: folder or Hub id.",
        show_default=False,
    ),
]
Train = Annotated[
    list[str],
    typer.Option(
        metavar="SOURCE",
        help=f"Images to learn from: {options.SOURCES}; may be repeated.",
        autocompletion=options.complete_source,
    ),
]
Test = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Images to test on.",
        show_default="the training data's test split, or a share of it that is held out",
        autocompletion=options.complete_source,
    ),
]
TrainSplit = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of the training data.",
        show_default="train where there is one",
        rich_help_panel=options.DATA,
    ),
]
TestSplit = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Of the test data.", show_default="test where there is one", rich_help_panel=options.DATA
    ),
]
Kind = Annotated[
    Literal["encoder", "projected"],
    typer.Option(
        metavar="NAME",
        help="encoder: the image encoder's pooled output, before the projection; projected: the embedding that is "
        "compared with text.",
    ),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option(metavar="NAME", help="Of the model: float32, bfloat16, float16.", rich_help_panel=options.RUNNING),
]
Cache = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Keep the features here: the next probe of the same model and images reads them.",
        rich_help_panel=options.RUNNING,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Write the result here, too, as JSON.", rich_help_panel=options.RUNNING),
]


def check(model: str, train: list[str], test: str | None, device: str | None, out: str | None) -> None:
    """Refuse wrong arguments before libraries are loaded."""
    check_model("MODEL", model)
    check_data("--train", train)
    check_data("--test", [test] if test else [])
    check_device(device)
    if out is not None and Path(out).is_dir():
        raise ValueError(f"--out: {out} is a folder; want a file")


def run_probe(
    check: Callable[["torch.Tensor"], None],
    probe: Probe,
    remark: Callable[[dict[str, Any]], str],
    *,
    model: str,
    train: list[str],
    test: str | None,
    common_classes: bool,
    train_split: str | None,
    test_split: str | None,
    features: str,
    image_column: str | None,
    label_column: str | None,
    class_names: str | None,
    batch_size: int,
    device: str | None,
    dtype: str,
    cache: str | None,
    out: str | None,
    json: bool,
) -> None:
    """Measure, print, write, and exit with the command's exit code.

    `check` raises for unsuitable training labels before anything is encoded; `remark` gives a line about the result.
    """
    import torch

    from ..data.held_out import HELD_OUT, TEST_SHARE
    from ..evaluation.devices import choose_device
    from ..evaluation.image_encoder import load_image_encoder, load_probe_images
    from ..files.json_files import write_json
    from ..metrics.classification import accuracy, accuracy_by_class, mean_class_accuracy

    use_all_cores()
    choose_device(device)
    reading = options.reading(image_column, label_column, class_names)
    source = train if len(train) > 1 else train[0]
    if common_classes:
        reading = keep_common_classes(source, [test] if test else [], reading, (train_split, test_split))
    sets = load_probe_images(source, test, train_split, test_split, reading | {"progress": not json})
    if sets[1].split == HELD_OUT:
        say(
            f"{', '.join(train)}: no test split, so {len(sets[1])} of {sum(map(len, sets))} images are held out to "
            f"test on, {TEST_SHARE:.0%} of each class."
        )
    check(torch.from_numpy(sets[0].labels.copy()))
    encoder = load_image_encoder(model, features, device, getattr(torch, dtype))
    found = []
    for title, images in zip(("Training images", "Test images"), sets, strict=True):
        with progress_bar(title, len(images)) as advance:
            found.append(
                encoder.features_of(images, batch_size, cache, lambda done, total, advance=advance: advance(done))
            )
    predicted, numbers = probe(*found, encoder.device)
    trained, tested = sets
    names, labels = tested.class_names, found[1].labels
    result = {
        "model": model,
        "features": features,
        "pooling": encoder.pooling,
        "width": found[0].features.shape[2],
        "data": ", ".join(train) if test is None else test,
        "split": tested.split,
        "images": len(tested),
        "classes": len(names),
        "accuracy": accuracy(predicted, labels),
        "mean_per_class": mean_class_accuracy(predicted, labels, len(names)),
        "per_class": dict(zip(names, accuracy_by_class(predicted, labels, len(names)), strict=True)),
        **numbers,
        "unreadable": [name for name, _ in tested.skipped],
        "train": {
            "data": ", ".join(train),
            "split": trained.split,
            "images": len(trained),
            "unreadable": [name for name, _ in trained.skipped],
        },
    }
    if out is not None:
        write_json(Path(out), result)
    if json:
        with machine_output() as emit:
            emit(result)
    else:
        print_accuracy(result)
        typer.echo(
            f"Mean over classes {100 * result['mean_per_class']:.1f} %; {result['train']['images']} training "
            f"images, "
            f"{features} features of width {result['width']} ({encoder.pooling} pooling).\n{remark(result)}"
        )
    report_unreadable([*trained.skipped, *tested.skipped])
