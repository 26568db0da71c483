"""`hf-clip-variants knn`: nearest neighbours among frozen image features."""

from typing import Annotated

import typer

from . import options, probing
from .output import JsonOption, prepare_libraries


def knn(
    model: probing.Model,
    train: probing.Train,
    test: probing.Test = None,
    common_classes: options.CommonClasses = False,
    train_split: probing.TrainSplit = None,
    test_split: probing.TestSplit = None,
    features: probing.Kind = "encoder",
    k: Annotated[int, typer.Option("--k", "-k", min=1, metavar="N", help="Neighbours that vote.")] = 20,
    temperature: Annotated[
        float, typer.Option(metavar="X", help="Small: the nearest decides; large: all count the same.")
    ] = 0.07,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    batch_size: options.BatchSize = 64,
    device: options.Device = None,
    dtype: probing.Dtype = "float32",
    cache: probing.Cache = None,
    out: probing.Out = None,
    json: JsonOption = False,
) -> None:
    """
    Measure frozen image features with k nearest neighbours: accuracy on test images, and its mean over classes.

    \b
    [bold]Example[/bold]
      hf-clip-variants knn facebook/dinov2-small --train pets/

    Each of the k training images of the highest cosine similarity s votes for its class with exp(s / temperature), as
    in DINO's paper. Nothing is trained and nothing is chosen. Images that cannot be read are listed and left out, and
    the exit code is 1.

    \b
    [bold]More examples[/bold]
      hf-clip-variants knn my-slip --train pets/ --test more-pets/ --k 10
      hf-clip-variants knn my-slip --train emoji:emojione --test emoji:notov1
    """
    probing.check(model, train, test, device, out)
    prepare_libraries(watched=not json)

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
        common_classes=common_classes,
        train_split=train_split,
        test_split=test_split,
        features=features,
        image_column=image_column,
        label_column=label_column,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        cache=cache,
        out=out,
        json=json,
    )
