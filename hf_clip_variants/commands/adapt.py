"""`hf-clip-variants adapt`: adapters from a few images per class, compared with zero-shot CLIP."""

import json as json_module
import os
from typing import Annotated, Any

import typer

from ..registry import few_shot_entries
from .adapt_results import print_results
from .output import JsonOption, console, machine_output, prepare_libraries


FAILED = 1  # exit code when a method failed
_FAST = [entry.name for entry in few_shot_entries().values() if entry.by_default]
_SLOW = [entry.name for entry in few_shot_entries().values() if not entry.by_default]


def adapt(
    data: Annotated[
        str,
        typer.Option(
            help="Images to learn from: a folder with one sub-folder per class, Parquet, CSV, a Hub data set, "
            "coop:<folder> (a benchmark set as CoOp lays it out) or emoji:<style>."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Any CLIP: folder or Hub id.", show_default="the embedded tiny one")
    ] = None,
    out: Annotated[
        str, typer.Option(help="The run folder. Repeat a command with the same one to go on after an interruption.")
    ] = "run",
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, with commas, or all. "
            f"{', '.join(_SLOW)} run an encoder at every step: minutes become hours."
        ),
    ] = ",".join(_FAST),
    shots: Annotated[str, typer.Option(help="Images per class, with commas.")] = "1,2,4,8,16",
    seeds: Annotated[str, typer.Option(help="Each seed draws other images; results are means over them.")] = "1,2,3",
    test_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SOURCE",
            help="Images to test on; may be repeated.",
            show_default="the data's test split, or all images that are in no draw",
        ),
    ] = None,
    templates: Annotated[
        str | None, typer.Option(help="Prompt template, a named set, or a file.", show_default="a photo of a {}.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[METHOD.]NAME=VALUE",
            help="A value instead of the recipe's, such as epochs=20; METHOD.epochs=20 for one method only.",
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="published or tiny recipes.", show_default="by the size of the model")
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="Use the values that are published for this data set (dtd, eurosat, oxford_pets, …)."),
    ] = None,
    cache_features: Annotated[
        bool,
        typer.Option(
            help="Run the frozen image encoder once for each image, or at every step as the official code does."
        ),
    ] = True,
    image_column: Annotated[
        str | None, typer.Option(help="Column of the images.", show_default="found by its type")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the labels.", show_default="found by its type")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …", show_default="a GPU if there is one")] = None,
    json: JsonOption = False,
) -> None:
    """
    Adapt a CLIP to your classes with a few images of each, and report the gain.

    Writes RUN/report.html, RUN/results.json, and RUN/adapters/METHOD/K-shot/seed-S: folders for
    `predict --adapter`, `PeftModel.from_pretrained` and `push`. Nothing is chosen on test images. When a
    method fails the others go on, and the exit code is 1.

    \b
    [bold]Examples[/bold]
      hf-clip-variants adapt --model openai/clip-vit-base-patch32 --data pets/ --shots 1,4,16 --templates pets
      hf-clip-variants adapt --data emoji:fluentflat,emojione --test-data emoji:notov1 --shots 1,2 --out run
      hf-clip-variants adapt --data shoes/ --methods tip_adapter_f --shots 4 --seeds 1 --set epochs=50 --json
    """
    from ..few_shot.splits import parse_test_data

    arguments = {
        "methods": method_names(methods),
        "shots": numbers("shots", shots),
        "seeds": numbers("seeds", seeds),
        "test_data": parse_test_data(test_data or []),
        "templates": templates,
        "overrides": parse_overrides(set or []),
        "profile": profile,
        "benchmark": benchmark,
        "cache_features": cache_features,
        "reading": {
            k: v for k, v in (("image_column", image_column), ("label_column", label_column)) if v is not None
        },
        "device": device,
    }
    run(model, data, out, json, **arguments)


def run(model: str | None, data: str, out: str, json: bool, **arguments: Any) -> None:
    """Adapt, print the results, and exit as the command does."""
    prepare_libraries()
    use_all_cores()
    from ..data.images.emoji import embedded_model
    from ..few_shot.adapt import adapt

    with machine_output() as emit:
        results = adapt(model or embedded_model(), data, out, **arguments)
        if json:
            emit(results)
    if not json:
        print_results(results, out)
    failed = [record for record in results["runs"] if record["error"]]
    for record in failed:
        where = f"{record['method']}, {record['shots']} shots, seed {record['seed']}"
        console().print(
            f"{where} failed: {record['error']}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    if failed:
        raise typer.Exit(FAILED)


def use_all_cores() -> None:
    """Use one thread per core of this process, unless OMP_NUM_THREADS is set: PyTorch may count fewer cores."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def method_names(text: str) -> list[str]:
    """`"all"`, or names with commas."""
    return list(few_shot_entries()) if text.strip() == "all" else words(text)


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(argument: str, text: str) -> list[int]:
    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise ValueError(f"{argument}: got {text!r}; want whole numbers with commas, such as 1,2,4") from None


def parse_overrides(
    arguments: list[str], option: str = "set", wanted: str = "NAME=VALUE or METHOD.NAME=VALUE"
) -> dict[str, Any]:
    """`["coop.epochs=20", "augmentation=none"]` -> `{"coop.epochs": 20, "augmentation": "none"}`: JSON, else text."""
    overrides = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"{option}: got {argument!r}; want {wanted}")
        try:
            overrides[name.strip()] = json_module.loads(value)
        except ValueError:
            overrides[name.strip()] = value
    return overrides
