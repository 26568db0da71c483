"""`hf-clip-variants linear-probe`: a linear classifier on frozen image features."""

from typing import Annotated

import typer

from . import options, probing
from .options import TRAINING
from .output import JsonOption, prepare_libraries, say


def linear_probe(
    model: probing.Model,
    train: probing.Train,
    test: probing.Test = None,
    common_classes: options.CommonClasses = False,
    train_split: probing.TrainSplit = None,
    test_split: probing.TestSplit = None,
    features: probing.Kind = "encoder",
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="L2 strength λ, which is 1/C of scikit-learn.",
            show_default="searched on held-out training images",
        ),
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(
            "--hold-out",
            metavar="SHARE",
            help="Share of each class on which the strength is searched.",
            rich_help_panel=TRAINING,
        ),
    ] = 0.2,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Of the draw of the held-out images.", rich_help_panel=TRAINING)
    ] = 0,
    max_iterations: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of L-BFGS.", rich_help_panel=TRAINING)
    ] = 1000,
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
    Measure frozen image features with a linear classifier: accuracy on test images, and its mean over classes.

    \b
    [bold]Example[/bold]
      hf-clip-variants linear-probe openai/clip-vit-base-patch32 --train pets/

    Logistic regression as in CLIP's paper: L-BFGS on the features as they are, its strength searched between 10^-6 and
    10^6 on a part of the training images, then fitted on all. Needs scikit-learn: pip install
    "hf-clip-variants\\[probe]". Images that cannot be read are listed and left out, and the exit code is 1.

    \b
    [bold]More examples[/bold]
      hf-clip-variants linear-probe my-slip --train pets/ --cache features --json
      hf-clip-variants linear-probe my-slip --train cifar10 --strength 3.16
    """
    probing.check(model, train, test, device, out)
    prepare_libraries(watched=not json)
    from ..optional_dependencies import require

    require("sklearn", "linear-probe")  # an error now, not after all images are decoded

    def check(labels):
        from ..evaluation.probes import check_linear_probe

        check_linear_probe(labels, strength, held_out, max_iterations)

    def probe(trained, tested, device):
        from ..evaluation.probes import linear_probe as fit

        options = {"strength": strength, "held_out": held_out, "seed": seed, "max_iterations": max_iterations}
        found = fit(trained.features[0], trained.labels, tested.features[0], **options)
        if not found.converged:
            text = f"L-BFGS did not converge in {found.iterations} iterations; raise --max-iterations or --strength"
            say(text, style="yellow")
        searched = [{"strength": s, "accuracy": a} for s, a in found.validation.items()]
        return found.predicted, {
            "strength": found.strength,
            "converged": found.converged,
            "iterations": found.iterations,
            "held_out": found.validation_size,
            "searched": searched,
        }

    def remark(result) -> str:
        how = f"found on {result['held_out']} held-out images" if result["searched"] else "given"
        return f"L2 strength {result['strength']:.3g} ({how}), {result['iterations']} iterations of L-BFGS."

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
