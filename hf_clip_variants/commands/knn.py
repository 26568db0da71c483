"""`hf-clip-variants knn`: nearest neighbours among frozen image features."""

from typing import Annotated

import typer

from . import probing
from .output import JsonOption, prepare_libraries
from .reading import ClassNames


def knn(
    model: probing.Model,
    train: probing.Train,
    test: probing.Test = None,
    train_split: probing.TrainSplit = None,
    test_split: probing.TestSplit = None,
    features: probing.Kind = "encoder",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Neighbours that vote.")] = 20,
    temperature: Annotated[float, typer.Option(help="Small: the nearest decides; large: all count the same.")] = 0.07,
    image_column: probing.ImageColumn = None,
    label_column: probing.LabelColumn = None,
    class_names: ClassNames = None,
    batch_size: probing.BatchSize = 64,
    device: probing.Device = None,
    dtype: probing.Dtype = "float32",
    cache: probing.Cache = None,
    out: probing.Out = None,
    json: JsonOption = False,
) -> None:
    """
    Measure frozen image features with k nearest neighbours: accuracy on test images, and its mean over classes.

    Each of the k training images of the highest cosine similarity s votes for its class with exp(s / temperature), as
    in DINO's paper. Nothing is trained and nothing is chosen. Images that cannot be read are listed and left out, and
    the exit code is 1.

    \b
    [bold]Examples[/bold]
      hf-clip-variants knn openai/clip-vit-base-patch32 --train pets/
      hf-clip-variants knn facebook/dinov2-small --train pets/ --test other-pets/ --k 10 --cache features --json
      hf-clip-variants knn my-slip --train emoji:fluentflat,emojione --test emoji:notov1 --k 1
    """
    prepare_libraries()

    def check(labels):
        from ..evaluation.probes import check_knn

        check_knn(labels, k, temperature)

    def probe(trained, tested, device):
        from ..evaluation.probes import knn_classify

        predicted = knn_classify(
            trained.features[0], trained.labels, tested.features[0], k=k, temperature=temperature, device=device
        )
        return predicted, {"k": k, "temperature": temperature}

    def remark(result) -> str:
        return f"{result['k']} neighbours, temperature {result['temperature']:g}."

    probing.run_probe(
        check,
        probe,
        remark,
        model=model,
        train=train,
        test=test,
        train_split=train_split,
        test_split=test_split,
        features=features,
        image_column=image_column,
        label_column=label_column,
        class_names=class_names,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        cache=cache,
        out=out,
        json=json,
    )
