"""`hf-clip-variants evaluate`: accuracy on labelled images and videos."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from . import options
from .arguments import check_data, check_device, check_model, check_templates
from .options import DATA, FLAG, MODEL, RUNNING
from .output import (
    JsonOption,
    machine_output,
    prepare_libraries,
    progress_bar,
    say,
    screen,
    title_and_rows,
    use_all_cores,
)
from .predict import UNREADABLE
from .video_classification import is_video_model
from .video_quality import TABLES, evaluate_video_texts


SHOWN_CLASSES = 10
SEGMENTATION = "Segmentation"  # panel of --help
TASKS = ("classification", "segmentation", *TABLES)


def evaluate(
    data: Annotated[
        list[str],
        typer.Option(
            metavar="SOURCE",
            help=f"Labelled images or videos: {options.SOURCES}; may be repeated.",
            autocompletion=options.complete_source,
        ),
    ],
    adapter: options.Adapter = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A classifier, any CLIP or a model of videos: folder or Hub id."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of the data.", show_default="test where there is one", rich_help_panel=DATA
        ),
    ] = None,
    common_classes: options.CommonClasses = False,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|LIST",
            help=f"Classes to choose from: {options.NAMES}.",
            show_default="the model's, or the data's",
            rich_help_panel=MODEL,
        ),
    ] = None,
    class_names: options.ClassNames = None,
    templates: options.Templates = None,
    base: options.Base = None,
    multi_label: Annotated[
        bool,
        typer.Option(
            "--multi-label",
            help="Images have several labels: lists, cells such as cat|dog, or a column of 0 and 1 for each class. "
            "Lists are recognised.",
            rich_help_panel=DATA,
            **FLAG,
        ),
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT",
            help="Several labels: first fit probabilities and thresholds to this split, or to a source of its own. "
            "Segmentation: thresholds of the background.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="With --calibrate: save what was calibrated, for predict.", rich_help_panel=RUNNING
        ),
    ] = None,
    task: Annotated[
        Literal[TASKS],
        typer.Option(
            metavar="NAME",
            help="segmentation: images with label maps (a folder with images/ and annotations/, Parquet, a Hub data "
            f"set), and mean IoU. {', '.join(TABLES)}: a table of videos with texts.",
        ),
    ] = "classification",
    oracle: Annotated[
        bool,
        typer.Option(
            "--oracle",
            help="Also what limits a model that groups pixels: the groups or their names.",
            rich_help_panel=SEGMENTATION,
            **FLAG,
        ),
    ] = False,
    background: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|TEXT",
            help="What is none of the classes: a threshold, or a text that is one more of them.",
            show_default="the model's",
            rich_help_panel=SEGMENTATION,
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="Side of windows that the resized image is cut into.",
            show_default="the whole image",
            rich_help_panel=SEGMENTATION,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="From one window to the next.",
            show_default="two thirds of the window",
            rich_help_panel=SEGMENTATION,
        ),
    ] = None,
    scales: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Factors of the image's size whose scores are averaged, such as 0.75,1,1.5.",
            rich_help_panel=SEGMENTATION,
        ),
    ] = "1",
    flip: Annotated[
        bool,
        typer.Option("--flip", help="Add the mirrored image's scores.", rich_help_panel=SEGMENTATION, **FLAG),
    ] = False,
    batch_size: options.BatchSize = 64,
    precision: options.Precision = "float32",
    device: options.Device = None,
    json: JsonOption = False,
) -> None:
    """
    Measure a model, with or without an adapter, on labelled images or videos: overall accuracy, and accuracy per
    class.

    \b
    [bold]Example[/bold]
      hf-clip-variants evaluate --data pets/ --model run/base --split test

    Classes are matched by name. Images that cannot be read are listed and left out, and the exit code is 1.
    A model of images sees a video (clip.mp4) as the mean of eight frames; one of videos has a top-5 accuracy, too.
    Where images have several labels, it prints mAP and F1. With --task segmentation, mean IoU. With --task video-…,
    figures on a table (CSV, TSV, JSON lines): video and caption for retrieval, also start and end (seconds) for
    video-steps, video-segmentation and video-moments, candidates (a|b|c) for video-question-answering.

    \b
    [bold]More examples[/bold]
      hf-clip-variants evaluate --data pets/ --model openai/clip-vit-base-patch32
      hf-clip-variants evaluate --data more.csv --model run/base --common-classes
      hf-clip-variants evaluate --data clips/ --model my-actionclip
      hf-clip-variants evaluate --data photos/ --model run/base --multi-label \\
        --calibrate train --save tagger
      hf-clip-variants evaluate --task segmentation --data scenes/ \\
        --model groups --background 0.9 --oracle
      hf-clip-variants evaluate --task video-retrieval --data captions.csv \\
        --model my-clip4clip
    """
    check_data("--data", data)
    for option, source in (("--adapter", adapter), ("--model", model), ("--base", base)):
        check_model(option, source)
    check_templates(templates)
    check_device(device)
    if calibrate is None and save is not None:
        raise ValueError(f"--save: got {save} without --calibrate; want both")
    segmentation = {
        "--oracle": oracle,
        "--background": background,
        "--window": window,
        "--stride": stride,
        "--scales": None if scales == "1" else scales,
        "--flip": flip,
    }
    if task == "segmentation":
        others = {"--adapter": adapter, "--base": base, "--multi-label": multi_label}
        others |= {"--common-classes": common_classes, "--precision": None if precision == "float32" else precision}
        _refuse(others, "is not for --task segmentation")
        windows = {"window": window, "stride": stride, "scales": _factors(scales), "flip": flip}
        if len(data) > 1:
            raise ValueError(f"--data: got {len(data)} sources; want one for --task segmentation")
        if model is None:
            raise ValueError("--model: missing; want a model that segments")
        prepare_libraries(watched=not json)
        use_all_cores()
        from .segmentation_quality import evaluate_segmentation

        loading = {"model": model, "labels": options.classes_to_choose_from(classes), "templates": templates}
        loading |= {"background": _number_or_text(background), "device": device}
        reading = options.reading(image_column, label_column, class_names)
        evaluate_segmentation(data[0], split, reading, loading, windows, oracle, calibrate, save, json)
        return
    if task in TABLES:
        others = {"--adapter": adapter, "--base": base, "--multi-label": multi_label, "--split": split}
        others |= {"--common-classes": common_classes, "--classes": classes, "--calibrate": calibrate}
        others |= {"--image-column": image_column, "--label-column": label_column, "--class-names": class_names}
        others |= {"--precision": None if precision == "float32" else precision}
        _refuse(others | segmentation | {"--background": None}, f"is not for --task {task}")
        if len(data) > 1 or model is None:
            got = f"--data: got {len(data)} tables" if len(data) > 1 else "--model: missing"
            raise ValueError(f"{got}; want one for --task {task}")
        threshold = _number_or_text(background)
        arguments = (task, data[0], model, templates, threshold, batch_size, device, json)
        report_unreadable(evaluate_video_texts(*arguments), "video")
        return
    _refuse(segmentation, "is for --task segmentation")
    if model is not None and adapter is None and is_video_model(model):
        others = {"--base": base, "--multi-label": multi_label, "--calibrate": calibrate}
        others |= {"--precision": None if precision == "float32" else precision}
        _refuse(others, "is for models of images")
        from .video_classification import evaluate_videos

        reading = options.reading(image_column, label_column, class_names)
        loading = {"model": model, "templates": templates, "device": device}
        loading["class_names"] = options.classes_to_choose_from(classes)
        result, skipped = evaluate_videos(data, split, reading, loading, common_classes, batch_size, json)
        _print_result(result, json)
        report_unreadable(skipped, "video")
        return
    prepare_libraries(watched=not json)
    use_all_cores()
    from ..data.images.class_labels import UnnamedLabels
    from ..data.images.labelled_images import LiveImages
    from ..data.images.labelled_sets import WITH_VIDEOS, align_classes
    from ..data.images.sources import SeveralLabels, load_images
    from ..evaluation.image_prediction import predict
    from ..evaluation.precision import use_precision
    from ..evaluation.prediction import load_for_prediction, was_made_for_several_labels
    from ..evaluation.video_features import with_mean_of_frames
    from ..metrics.classification import accuracy, accuracy_by_class

    if save is not None and precision != "float32":
        raise ValueError(f"--precision: got {precision} with --save; the saved model is that of float32")
    reading = {"on_error": "skip", "empty_classes": "warn", "progress": not json}
    reading |= options.reading(image_column, label_column, class_names)
    source, shown = data if len(data) > 1 else data[0], ", ".join(data)
    loading = {
        "model": model,
        "adapter": adapter,
        "class_names": options.classes_to_choose_from(classes),
        "templates": templates,
        "device": device,
        "base": base,
    }
    several = multi_label or calibrate is not None or was_made_for_several_labels(model, adapter)
    images = loaded = None
    try:
        images = None if several else load_images(source, split, **reading | WITH_VIDEOS)
    except SeveralLabels:
        several = True
    except UnnamedLabels:  # the model's classes name them
        loaded = load_for_prediction(**loading)
        images = load_images(source, split, **reading | WITH_VIDEOS | {"class_names": loaded.class_names})
    if several:
        from .multi_label import evaluate_labels

        del reading["empty_classes"]
        reading |= {"label_columns": reading.pop("label_column", None)}
        arguments = (common_classes, calibrate, save, batch_size, precision, json)
        report_unreadable(evaluate_labels(source, split, reading, loading, *arguments))
        return
    if split is None and images.split == "train" and "test" in images.available_splits:
        images = images.load_split(split="test")
    loaded = loaded or load_for_prediction(**loading, default_class_names=images.class_names)
    use_precision(loaded.model, precision, say)
    if common_classes:
        images = only_classes_of(loaded, images, shown)
    if images.videos:
        with_mean_of_frames(loaded.model)
    images = align_classes(images, loaded.class_names, shown)
    base = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    labelled = LiveImages(base, images, loaded.processor)
    with progress_bar("Classifying", len(labelled)) as advance:
        predicted, _ = predict(loaded.model, labelled, batch_size, advance)
    baseline = None
    if loaded.model is not base:  # an adapter
        with loaded.model.disable_adapter(), progress_bar("Zero-shot CLIP", len(labelled)) as advance:
            baseline = accuracy(predict(loaded.model, labelled, batch_size, advance)[0], labelled.labels)
    per_class = accuracy_by_class(predicted, labelled.labels, len(loaded.class_names))
    result = {
        "data": shown,
        "precision": precision,
        "split": images.split,
        "images": len(images),
        "classes": len(loaded.class_names),
        "accuracy": accuracy(predicted, labelled.labels),
        "zero_shot": baseline,
        "per_class": dict(zip(loaded.class_names, per_class, strict=True)),
        "unreadable": [name for name, _ in images.skipped],
    }
    _print_result(result, json)
    report_unreadable(images.skipped)


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        with machine_output() as emit:
            emit(result)
    else:
        print_accuracy(result)


def _refuse(given: dict[str, Any], why: str) -> None:
    for option, value in given.items():
        if value:
            raise ValueError(f"{option}: {why}" if value is True else f"{option}: got {value}; it {why}")


def _factors(text: str) -> tuple[float, ...]:
    """`--scales`: "0.75,1" -> (0.75, 1.0)."""
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < factor < 100 for factor in found):
        raise ValueError(f"--scales: got {text!r}; want factors above 0 with commas, such as 0.75,1,1.5")
    return found


def _number_or_text(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def report_unreadable(skipped: Sequence[tuple[str, str]], what: str = "image") -> None:
    """Say how many images, or videos, were left out; if there are any, exit with the command's exit code for them.

    The reader's warning has named the first twenty.
    """
    if skipped:
        say(f"{len(skipped)} {what}{'s' * (len(skipped) != 1)} could not be read", style="red")
        raise typer.Exit(UNREADABLE)


def only_classes_of(loaded, images, data: str):
    """The images of the model's classes; says which classes are left out."""
    from ..data.images.image_set import name_some
    from ..data.images.labelled_sets import used_classes

    kept = [index for index, name in enumerate(images.class_names) if name in loaded.class_names]
    others = [name for name in used_classes(images) if name not in loaded.class_names]
    if len(others) == len(used_classes(images)):
        known = name_some(loaded.class_names)
        raise ValueError(f"--common-classes: no class of {data} is one of the model's, {known}")
    if others:
        say(f"Left out, since the model does not have them: {name_some(others)}")
    return images.select_classes(kept)


def print_accuracy(result: dict) -> None:
    """The accuracy and the hardest classes."""
    from rich.text import Text

    out = screen()
    split = f", split {result['split']}" if result["split"] else ""
    beside = "" if result.get("zero_shot") is None else f" (zero-shot CLIP: {100 * result['zero_shot']:.1f} %)"
    kind = "images"
    if "top5_accuracy" in result:
        kind, beside = "videos", f" (among the best five: {100 * result['top5_accuracy']:.1f} %)"
    about = f"{beside} of {result['images']} {kind} in {result['classes']} classes ({result['data']}{split})"
    out.print(Text.assemble((f"{100 * result['accuracy']:.1f} %", "bold"), about), soft_wrap=True)
    measured = sorted((a, name) for name, a in result["per_class"].items() if a is not None)[:SHOWN_CLASSES]
    rows = [(name, f"{100 * value:.1f}") for value, name in measured]
    out.print(title_and_rows(f"The {len(measured)} hardest classes", ("class", "accuracy, %"), rows))
