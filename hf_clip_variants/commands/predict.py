"""`hf-clip-variants predict`: classes of images, one line per image; segments, objects, anomalies in videos."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, TextIO

import typer

from ..files.recommended_run import RecommendedRun, is_run_folder, recommended_run
from . import options
from .arguments import check_device, check_model, check_templates
from .detection import detect_files
from .options import FLAG, RUNNING
from .output import JsonOption, machine_output, prepare_libraries, progress_bar, say, use_all_cores
from .prediction_tasks import PREDICTION_TASKS, check_options
from .segmentation import CLASSIFICATION, DETECTION, SEGMENTATION, chosen_task, is_model_folder, segment_files
from .video_anomaly import VIDEO_ANOMALY, is_video_anomaly, score_files
from .video_classification import classify_video_files, is_video_model


NONE_OF_THESE = "none of these"  # the label of rejected images
BATCH = 32  # images in one pass
_WITH_MODEL_FIRST = {SEGMENTATION, DETECTION, VIDEO_ANOMALY} | {name for row in PREDICTION_TASKS for name in row.names}
UNREADABLE = 1  # exit code when an image could not be read


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] IMAGES",
            help="What adapt wrote or a model, then files and folders. Without any, paths come from standard input, a "
            "line each.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="What adapt wrote, instead of RUN: uses what it recommends.", show_default=False
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
    task: Annotated[
        Literal[
            "classification",
            "segmentation",
            "detection",
            "video-anomaly",
            "video-retrieval",
            "video-question-answering",
            "video-steps",
            "video-segmentation",
            "video-moments",
            "points",
            "news",
            "depth",
            "visual-question-answering",
            "captioning",
        ]
        | None,
        typer.Option(
            metavar="NAME",
            help="classification, segmentation, detection, depth, points, news, visual-question-answering or "
            "captioning; of videos: video-anomaly, video-retrieval, video-question-answering, video-steps, "
            "video-segmentation, video-moments.",
            show_default="by the model",
        ),
    ] = None,
    labels: options.SegmentationLabels = None,
    question: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="For visual-question-answering: what is asked about each image."),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="How many classes to print for each image.", show_default="1, or all present"
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            help=f"Below this probability, the label is '{NONE_OF_THESE}', and a segment or object is left out.",
            show_default="0.1 for detection; the model's for video-anomaly",
        ),
    ] = None,
    reject: Annotated[
        bool,
        typer.Option(
            "--reject", help="The same, with the threshold of the run: it keeps 95 % of right answers.", **FLAG
        ),
    ] = False,
    format: Annotated[
        Literal["csv", "json"] | None,
        typer.Option(
            metavar="NAME",
            help="csv with a header, or json lines.",
            show_default="by the name of --out, else csv",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write here, once all is done, instead of printing: .csv, .jsonl. For segmentation and "
            "detection a folder of pictures, 'segments' or 'detections' by default; for video-anomaly 'anomalies', "
            "for depth 'depth'.",
            show_default=False,
            rich_help_panel=RUNNING,
        ),
    ] = None,
    background: options.Background = None,
    window: options.Window = None,
    masks: options.Masks = None,
    parts: options.Parts = None,
    up_axis: options.UpAxis = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Images in one pass of the model.",
            show_default="32; 4 for segmentation and detection",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            metavar="N",
            help="For video-anomaly: frames a second that are looked at; of features, how many there are.",
            show_default="every frame",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    precision: options.Precision = "float32",
    device: options.Device = None,
    json: JsonOption = False,
) -> None:
    """
    Classify images: one line per image with its path, the best class and its score. Or segment them: a line per
    label that is there, pictures with a legend, label maps and masks. Or find objects, also in videos: a line per
    object, pictures with boxes. Or find what is abnormal in videos: a line per segment, pictures of scores over time.

    \b
    [bold]Example[/bold]
      hf-clip-variants predict run photos/

    Scores add up to 1. What adapt wrote is calibrated on its images: there, the score is also the probability that the
    answer is right, among these classes. Elsewhere the probability stays empty.

    Images that were rejected may be hard ones of these classes: an image of something else is often not noticed.

    A model for several labels an image gives all classes that reach their thresholds, with | between them.

    In csv, text that begins as a formula gets an apostrophe in front, which evaluate takes away again.

    Segmentation writes a folder: overlays/, label_maps/ (PNG; 0: no label, 1: the first one) and annotations.json,
    which is COCO's. A line has a label's score and its share of the image.

    Detection writes a folder, too: pictures/, also of a video (clip.mp4, frame by frame; needs the extra "video"), and
    annotations.json. A line has an object's label, score and box in pixels.

    A model of videos (ActionCLIP, CLIP4Clip) classifies videos; with --out, a folder, there is a picture of the frames
    and the best classes of each. What adapt fitted on videos reads videos, too: it sees the mean of eight frames.

    Anomalies in videos write curves/ (a picture a video) and scores/ (csv, of all frames). A line has the start, end,
    label and score of a segment. Features of frames in .npy files, (frames, width), are videos, too.

    A model for clouds of points reads meshes and clouds (.ply, .off, .obj, .stl, .glb, .npy, .h5) instead of images.
    It writes a folder, too: depth_maps/, which it looked at, and with --parts points in the colours of their parts.

    A model for posts (FND-CLIP) reads tables of texts and images (.csv, .jsonl), or images with a .txt of the same
    name, and says what counted: similarity of text and image, weights of the two and of both. Pictures go to --out,
    'posts' by default.

    Depth of images is read by words (DepthCLIP), such as --labels "close=1, far=3"; the model's own by default. It
    writes pictures/ with colours and depth_maps/ with 16 bits a pixel. A line has the nearest, median and farthest
    depth, and the word that fits best. Depth Anything, in transformers, does it far better.

    Of videos, or of features of their seconds (.npy), --labels are texts: which video fits (video-retrieval), which
    answer fits (video-question-answering), when each step of a task happens, in their order (video-steps), what
    happens in each second (video-segmentation; --background is the score that a label must exceed), the moment of a
    text (video-moments). Scores are the model's own numbers. Pictures with a time line go to --out, 'moments' by
    default.

    A model that answers questions about images gives the best of its own answers to --question; one that
    writes captions needs none. Pictures with the answers go to --out, 'answers' by default.

    For an image that cannot be read, the error is in its line and on standard error. The others are classified, and
    the exit code is 1.

    \b
    [bold]More examples[/bold]
      hf-clip-variants predict *.jpg --model openai/clip-vit-base-patch32 \\
        --classes "cat, dog, fox" --top 3
      hf-clip-variants predict photos/ --adapter run/adapters/coop/4-shot/seed-1
      hf-clip-variants predict run photos/ --reject --out all.csv
      hf-clip-variants predict street.jpg --task segmentation --model groupvit \\
        --labels "car, sky, building;house"
      hf-clip-variants predict clip.mp4 --task detection --model detector \\
        --labels "cat, ball"
      hf-clip-variants predict clip.mp4 --model actionclip \\
        --classes "running, rowing" --out answers
      hf-clip-variants predict camera.mp4 --task video-anomaly --model anomalies
      hf-clip-variants predict chair.glb --model pointclip \\
        --labels "chair, table" --parts "leg, seat, back"
      hf-clip-variants predict posts.csv --task news --model rumours
      hf-clip-variants predict room.jpg --task depth --model depthclip
      hf-clip-variants predict clip.mp4 --task video-moments --model videos \\
        --labels "pour water, stir"
      hf-clip-variants predict photo.jpg --model answers \\
        --question "what colour is the car?"
      find . -name '*.png' | hf-clip-variants predict --model pets --out all.csv
    """
    if run is None and inputs and is_run_folder(inputs[0]):
        run, inputs = inputs[0], inputs[1:]
    elif run is model is adapter is None and inputs and (task in _WITH_MODEL_FIRST or is_model_folder(inputs[0])):
        model, inputs = inputs[0], inputs[1:]
    for option, source in (("--adapter", adapter), ("--model", model), ("--base", base)):
        check_model(option, source)
    check_templates(templates)
    check_device(device)
    if run is not None:
        found = _of_run(run, adapter, model)
        adapter, model, base = None if found.adapter is None else str(found.adapter), base or str(found.base), None
    if reject and threshold is not None:
        raise ValueError(f"--reject: got it beside --threshold {threshold}; want one of them")
    if not inputs and sys.stdin.isatty():
        raise ValueError("IMAGES: name files or folders, or pipe paths in, a line each")
    given: dict[str, Any] = {"--task": task, "--run": run, "--adapter": adapter, "--model": model, "--base": base}
    given |= {"--classes": classes, "--labels": labels, "--templates": templates, "--question": question}
    given |= {"--top": top, "--threshold": threshold, "--reject": reject, "--background": background}
    given |= {"--window": window, "--masks": masks, "--parts": parts, "--up-axis": up_axis, "--fps": fps}
    given |= {"--precision": None if precision == "float32" else precision, "--batch-size": batch_size}
    given |= {"--out": out, "--device": device, "--json": json or format == "json"}
    for row in PREDICTION_TASKS:
        if name := row.chosen(given):
            check_options(row, name, given)
            return _exit(*row.run(name, inputs or _lines(), given), row.what)
    if option := next((name for name in ("--parts", "--up-axis") if given[name]), None):
        raise ValueError(f"{option}: got it for images; it is for clouds of points (--task points)")
    others = {"--adapter": adapter, "--run": run, "--base": base, "--classes": classes, "--top": top}
    others |= {"--reject": reject, "--precision": None if precision == "float32" else precision}
    ours = {"--labels": labels, "--background": background, "--window": window, "--masks": masks}
    if is_video_anomaly(task, model, others | ours | {"--templates": templates}, fps):
        common = {"out": out, "batch_size": batch_size, "device": device, "as_json": json or format == "json"}
        return _exit(*score_files(inputs or _lines(), model, threshold=threshold, fps=fps, **common), "videos")
    chosen = chosen_task(task, model, others, ours)
    if chosen != CLASSIFICATION:
        common = {"masks": masks or "polygons", "out": out, "batch_size": batch_size, "device": device}
        common["as_json"] = json or format == "json"
        sources = inputs or _lines()
        if chosen == DETECTION:
            return _exit(*detect_files(sources, model, labels, templates, threshold=threshold, **common))
        options_of_segments = {"background": background, "window": window, "threshold": threshold or 0.0}
        return _exit(*segment_files(sources, model, labels, templates, **options_of_segments, **common))
    if model is not None and adapter is None and is_video_model(model):
        if reject or threshold is not None:
            raise ValueError(f"{'--reject' if reject else '--threshold'}: got it for videos; it is for images")
        chosen_classes = options.classes_to_choose_from(classes)
        common = {"out": out, "batch_size": batch_size, "device": device, "as_json": json or format == "json"}
        return _exit(
            *classify_video_files(inputs or _lines(), model, chosen_classes, templates, top=top, **common), "videos"
        )
    if out is not None and os.path.isdir(out):
        raise IsADirectoryError(f"--out: {out} is a folder; want a file")
    prepare_libraries(watched=not json)
    use_all_cores()
    from ..evaluation.precision import use_precision
    from ..evaluation.prediction import classify, find_images, load_for_prediction

    loaded = load_for_prediction(model, adapter, options.classes_to_choose_from(classes), templates, device, base=base)
    use_precision(loaded.model, precision, say)
    several = loaded.several_labels
    top = top or (len(loaded.class_names) if several else 1)
    paths = list(find_images(inputs, videos=True)) if inputs else find_images(_lines())
    broken, done = 0, 0
    as_json = json or (format or _format_of(out)) == "json"
    threshold = _threshold(loaded, threshold, reject)
    with _opened(out) as stream, machine_output(stream) as emit, _counting(out, inputs, paths) as advance:
        write = emit if as_json else _csv_writer(stream, 1 if several else min(top, len(loaded.class_names)))
        for prediction in classify(loaded, paths, top, batch_size or BATCH):
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
            row = {"path": prediction.path, **best[0]}
            row["probability"] = None if loaded.calibration is None else row["score"]
            if prediction.top[0][1] < threshold:
                row["label"] = NONE_OF_THESE
            write(row | ({"top": best} if top > 1 else {}))
        if not done:
            raise ValueError(f"IMAGES: no image files in {', '.join(inputs or ['standard input'])}")
    _exit(broken, done)


def _exit(broken: int, done: int, what: str = "images") -> None:
    if broken:
        say(f"{broken} of {done} {what} could not be read", style="red")
        raise typer.Exit(UNREADABLE)


def _of_run(run: str, adapter: str | None, model: str | None) -> RecommendedRun:
    """What the run folder recommends; says so on standard error."""
    for option, other in (("--adapter", adapter), ("--model", model)):
        if other is not None:
            raise ValueError(f"{option}: got {other} beside the run folder {run}; want one of them")
    if not is_run_folder(run):
        raise FileNotFoundError(f"--run: no results.json in {run}; want a folder that adapt wrote")
    found = recommended_run(run)
    say(f"{run} recommends {found}")
    return found


def _format_of(out: str | None) -> str:
    return "json" if out is not None and out.lower().endswith((".json", ".jsonl")) else "csv"


def _threshold(loaded: Any, threshold: float | None, reject: bool) -> float:
    """Images with a lower score are rejected; 0 for none."""
    if loaded.several_labels and (reject or threshold is not None):
        option = "--reject" if reject else "--threshold"
        raise ValueError(f"{option}: the model gives several labels an image, by a threshold for each class")
    if reject:
        if loaded.calibration is None or loaded.calibration.rejection_threshold is None:
            why = "was not calibrated" if loaded.calibration is None else "was calibrated on too few images"
            raise ValueError(f"--reject: the model {why}; want --threshold with a number, or a run with more images")
        say(f"Below {loaded.calibration.rejection_threshold:.3f}, the label is '{NONE_OF_THESE}'")
        return loaded.calibration.rejection_threshold
    if threshold is not None and loaded.calibration is None:
        say(f"--threshold {threshold}: applied to scores that are no probabilities, the model was not calibrated")
    return threshold or 0.0


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

    with replacing(out) as aside, open(aside, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        yield stream


def _counting(out: str | None, inputs: list[str] | None, paths: Iterable[str]) -> Any:
    """A bar where results are not printed. How many paths will come from standard input, nobody knows."""
    if out is None:
        return contextlib.nullcontext(lambda done: None)
    return progress_bar("Classifying", len(paths) if inputs else None)


def _lines() -> Iterator[str]:
    if hasattr(sys.stdin, "reconfigure"):  # names of files need not be UTF-8
        sys.stdin.reconfigure(errors="surrogateescape")
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\r\n")


def _csv_writer(stream: TextIO, top: int) -> Callable[[dict], None]:
    from ..data.csv_cells import csv_line

    more = [f"{name}_{place}" for place in range(2, top + 1) for name in ("label", "score")]
    header = ["path", "label", "score", "probability", *more, "error"]
    stream.write(csv_line(header))

    def write(row: dict) -> None:
        if "error" in row:
            cells = [row["path"], *[""] * (len(header) - 2), row["error"]]
        else:
            others = [cell for item in row.get("top", ())[1:] for cell in (item["label"], item["score"])]
            cells = [row["path"], row["label"], row["score"], row.get("probability"), *others, ""]
        stream.write(csv_line(cells))
        stream.flush()

    return write
