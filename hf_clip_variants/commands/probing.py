"""What `linear-probe` and `knn` share: options, features of two sets of images, the result and its output."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .evaluate import print_accuracy, report_unreadable
from .output import console, machine_output, progress_bar
from .reading import names_of_labels


if TYPE_CHECKING:
    import torch

    from ..data.images.feature_cache import Features


# (training features, test features, device) -> predictions, and further fields of the result.
Probe = Callable[["Features", "Features", "torch.device"], tuple["torch.Tensor", dict[str, Any]]]

Model = Annotated[
    str,
    typer.Argument(
        help="A dual encoder or an image model that AutoModel loads: folder or Hub id.", show_default=False
    ),
]
Train = Annotated[
    str, typer.Option(help="Folder with one sub-folder per class, Parquet, CSV, Hub data set or emoji:<style>.")
]
Test = Annotated[
    str | None,
    typer.Option(help="Likewise.", show_default="the training data's test split, or a share of it that is held out"),
]
TrainSplit = Annotated[str | None, typer.Option(help="Of the training data.", show_default="train where there is one")]
TestSplit = Annotated[str | None, typer.Option(help="Of the test data.", show_default="test where there is one")]
Kind = Annotated[
    Literal["encoder", "projected"],
    typer.Option(
        help="The image encoder's pooled output, before the projection; or the embedding that is compared with text.",
    ),
]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the images.", show_default="found by its type")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels.", show_default="found by its type")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in one pass of the model.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …", show_default="a GPU if there is one")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the model.")]
Cache = Annotated[
    str | None,
    typer.Option(help="Keep the features in this folder: the next probe of the same model and images reads them."),
]
Out = Annotated[str | None, typer.Option(help="Write the result to this file, as JSON.")]


def run_probe(
    check: Callable[["torch.Tensor"], None],
    probe: Probe,
    remark: Callable[[dict[str, Any]], str],
    *,
    model: str,
    train: str,
    test: str | None,
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
    from pathlib import Path

    import torch

    from ..data.held_out import HELD_OUT, TEST_SHARE
    from ..evaluation.image_encoder import load_image_encoder, load_probe_images
    from ..files.json_files import write_json
    from ..metrics.classification import accuracy, accuracy_by_class, mean_class_accuracy

    if out is not None and Path(out).is_dir():
        raise ValueError(f"out: {out} is a folder; want a file")
    reading = {"image_column": image_column, "label_column": label_column, "progress": not json}
    reading["class_names"] = names_of_labels(class_names)
    sets = load_probe_images(train, test, train_split, test_split, reading)
    if sets[1].split == HELD_OUT:
        count = sum(map(len, sets))
        console().print(
            f"{train} has no test split, so {len(sets[1])} of its {count} images are held out to test on, "
            f"{TEST_SHARE:.0%} of each class.",
            markup=False,
            highlight=False,
            soft_wrap=True,
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
        "data": train if test is None else test,
        "split": tested.split,
        "images": len(tested),
        "classes": len(names),
        "accuracy": accuracy(predicted, labels),
        "mean_per_class": mean_class_accuracy(predicted, labels, len(names)),
        "per_class": dict(zip(names, accuracy_by_class(predicted, labels, len(names)), strict=True)),
        **numbers,
        "unreadable": [name for name, _ in tested.skipped],
        "train": {
            "data": train,
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
