"""`hf-clip-variants adapt`: adapters from a few images per class, compared with zero-shot CLIP."""

import json as json_module
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..registry import few_shot_entries
from . import options, run_file
from .adapt_results import print_results
from .arguments import (
    check_benchmark,
    check_data,
    check_device,
    check_model,
    check_name,
    check_out,
    check_templates,
    method_names,
    numbers,
    parse_overrides,
)
from .options import DATA, RUNNING, TRAINING
from .output import JsonOption, machine_output, prepare_libraries, say, use_all_cores


FAILED = 1  # exit code when a method failed
_FAST = [entry.name for entry in few_shot_entries().values() if entry.by_default]
_SLOW = [entry.name for entry in few_shot_entries().values() if not entry.by_default]


def adapt(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA",
            help=f"Images to learn from: {options.SOURCES}. Several are joined.",
            show_default=False,
            autocompletion=options.complete_source,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Any CLIP: folder or Hub id.", show_default="the embedded tiny one"),
    ] = None,
    shots: Annotated[str, typer.Option(metavar="LIST", help="Images per class, with commas.")] = "1,2,4,8,16",
    methods: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help=f"With commas, or all. {', '.join(_SLOW)} run an encoder at every step: minutes become hours.",
            show_default=", ".join(_FAST),
            autocompletion=options.several_of(options.few_shot_methods),
        ),
    ] = ",".join(_FAST),
    seeds: Annotated[
        str, typer.Option(metavar="LIST", help="Each draws other images; results are means over them.")
    ] = "1,2,3",
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="The run folder. The same command goes on after an interruption.")
    ] = "run",
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="The same as DATA; may be repeated.",
            autocompletion=options.complete_source,
            rich_help_panel=DATA,
        ),
    ] = None,
    test_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Images to test on, or NAME=SOURCE; may be repeated.",
            show_default="the data's test split, or images that are in no draw",
            autocompletion=options.complete_source,
            rich_help_panel=DATA,
        ),
    ] = None,
    common_classes: options.CommonClasses = False,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    templates: options.Templates = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A value instead of the recipe's, such as epochs=20; METHOD.epochs=20 for one method only. May be "
            "repeated.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    profile: options.Profile = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Use the values that are published for this data set: dtd, eurosat, oxford_pets, …",
            autocompletion=options.one_of(options.benchmark_sets),
            rich_help_panel=TRAINING,
        ),
    ] = None,
    no_cache_features: Annotated[
        bool,
        typer.Option(
            "--no-cache-features",
            help="Run the frozen image encoder at every step, as the official code does, instead of once an image.",
            rich_help_panel=TRAINING,
            **options.FLAG,
        ),
    ] = False,
    precision: options.Precision = "float32",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only say what would be done: images, runs, time, memory. Nothing is written.",
            rich_help_panel=RUNNING,
            **options.FLAG,
        ),
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Options from a YAML file, such as the run.yaml of a run folder. The command line wins.",
            is_eager=True,
            callback=run_file.use,
            rich_help_panel=RUNNING,
        ),
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Log to an installed tracker: tensorboard, wandb, trackio, …; may be repeated.",
            autocompletion=options.one_of(lambda: options.TRACKERS),
            rich_help_panel=RUNNING,
        ),
    ] = None,
    class_names: options.ClassNames = None,
    device: options.Device = None,
    json: JsonOption = False,
) -> None:
    """
    Adapt a CLIP to your classes with a few images of each, and report the gain.

    \b
    [bold]Example[/bold]
      hf-clip-variants adapt pets/ --shots 1,4,16 --out run

    Writes RUN/report.html, RUN/results.json, RUN/run.yaml and RUN/adapters/METHOD/K-shot/seed-S: folders for
    `predict --adapter`, `PeftModel.from_pretrained` and `push`. Nothing is chosen on test images. When a
    method fails the others go on, and the exit code is 1.

    A folder may hold videos in place of images (clip.mp4; needs the extra "video"): a video is then the mean of eight
    frames' features.

    \b
    [bold]More examples[/bold]
      hf-clip-variants adapt pets/ --model openai/clip-vit-base-patch32 --dry-run
      hf-clip-variants adapt emoji:fluentflat --test-data emoji:notov1 --shots 1
      hf-clip-variants adapt shoes/ --methods tip_adapter_f --set epochs=50 --json
      hf-clip-variants adapt --config run/run.yaml --out again
    """
    from_file = context.get_parameter_source("data").name == "DEFAULT_MAP"
    data = [*(sources or []), *([] if sources and from_file else data or [])]
    if not data:
        raise typer.BadParameter("got none; want DATA, such as a folder with one sub-folder per class", context)
    if no_cache_features and precision != "float32":
        raise ValueError(f"--precision: got {precision} with --no-cache-features; it is for features that are kept")
    arguments = check(data, model, out, methods, shots, seeds, test_data, templates, set, benchmark, device)
    arguments |= {
        "profile": profile,
        "cache_features": not no_cache_features,
        "precision": precision,
        "reading": options.reading(image_column, label_column, class_names),
        "device": device,
    }
    run(
        model,
        data if len(data) > 1 else data[0],
        out,
        json,
        common_classes=common_classes,
        dry_run=dry_run,
        report_to=report_to or [],
        written=run_file.options_of(context, data=data),
        **arguments,
    )


def check(
    data: list[str],
    model: str | None,
    out: str,
    methods: str,
    shots: str,
    seeds: str,
    test_data: list[str] | None,
    templates: str | None,
    overrides: list[str] | None,
    benchmark: str | None,
    device: str | None,
) -> dict[str, Any]:
    """The arguments of `few_shot.adapt` that are given as text; wrong ones are refused before libraries are loaded."""
    from ..few_shot.named_sources import parse_test_data

    arguments = {
        "methods": method_names(methods),
        "shots": numbers("--shots", shots, least=1),
        "seeds": numbers("--seeds", seeds),
        "test_data": parse_test_data(test_data or [], "--test-data"),
        "templates": templates,
        "overrides": parse_overrides(overrides or []),
        "benchmark": benchmark,
    }
    for name in arguments["overrides"]:
        if "." in name:
            check_name(f"--set {name}", name.partition(".")[0], arguments["methods"])
    check_data("--data", data)
    check_data("--test-data", arguments["test_data"].values())
    check_model("--model", model)
    check_out("--out", out)
    check_templates(templates)
    check_benchmark(benchmark)
    check_device(device)
    return arguments


def run(
    model: str | None,
    data: str | list[str],
    out: str,
    json: bool,
    *,
    common_classes: bool = False,
    dry_run: bool = False,
    report_to: list[str] | None = None,
    written: dict[str, Any] | None = None,
    **arguments: Any,
) -> None:
    """Adapt, print the results, and exit as the command does."""
    prepare_libraries(watched=not json)
    use_all_cores()
    from ..data.images.emoji import embedded_model
    from ..evaluation.devices import choose_device
    from ..few_shot.adapt import adapt
    from ..few_shot.trackers import track

    choose_device(arguments.get("device"))
    model = model or str(embedded_model())
    if common_classes:
        arguments["reading"] = keep_common_classes(data, list(arguments["test_data"].values()), arguments["reading"])
    if dry_run:
        print_plan(model, data, out, json, **arguments)
        return
    wanted = len(arguments["methods"]) * len(arguments["shots"]) * len(arguments["seeds"])
    done = finished_runs(out)
    if done and not json:
        say(f"{out} holds {done} finished runs already; those of them that this command asks for are not repeated.")
    with machine_output() as emit, track(report_to or [], out, written or {}) as on_result:
        try:
            results = adapt(model, data, out, on_result=on_result, **arguments)
        except KeyboardInterrupt:
            run_file.write(out, written)
            done = finished_runs(out)
            kept = f"{done} of {wanted} runs are kept in {out}; repeat the command to go on." if done else ""
            raise KeyboardInterrupt(f"Interrupted. {kept or 'No run is finished yet.'}") from None
        run_file.write(out, written)
        if json:
            emit(results)
    if not json:
        print_results(results, out)
    failed = [record for record in results["runs"] if record["error"]]
    if failed:  # each was named when it failed
        say(
            f"{len(failed)} of {wanted} runs failed; their errors are in {os.path.join(out, 'results.json')}",
            style="red",
        )
        raise typer.Exit(FAILED)


def finished_runs(out: str) -> int:
    """How many runs the folder's results.json has."""
    try:
        runs = json_module.loads((Path(out) / "results.json").read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError):
        return 0
    return sum(not record.get("error") for record in runs)


def keep_common_classes(
    train: str | list[str], tests: list[str], reading: dict[str, Any], splits: tuple = (None, None)
) -> dict[str, Any]:
    """`reading` with the classes that training and test data share; says which ones are left out."""
    from ..data.images.image_set import name_some
    from ..data.images.labelled_sets import shared_classes

    kept, others = shared_classes(train, tests, reading, splits)
    if others:
        say(
            f"{len(kept)} classes are in training and test data; {len(others)} others are left out: "
            f"{name_some(others)}"
        )
    return reading | {"only_classes": kept}


def print_plan(model: str, data: str | list[str], out: str, json: bool, **arguments: Any) -> None:
    """What `adapt` would do, as a table or as JSON."""
    from ..few_shot.dry_run import describe, plan

    with machine_output() as emit:
        found = plan(model, data, **arguments)
        if json:
            emit(found)
    if not json:
        for name, text in describe(found).items():
            typer.echo(f"{name + ':':<13}{text}")
        typer.echo(f"Nothing was written. Without --dry-run, results go to {out}.")
