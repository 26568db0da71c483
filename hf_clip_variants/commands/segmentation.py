"""The task "segmentation" of `hf-clip-variants predict`: masks of labels, and pictures of them."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .arguments import check_out
from .output import machine_output, prepare_libraries, say, use_all_cores


if TYPE_CHECKING:
    from PIL import Image

    from ..annotations.coco import CocoDocument
    from ..evaluation.segmentation import SegmentedImage

CLASSIFICATION, SEGMENTATION, DETECTION = "classification", "segmentation", "detection"
SHARED = ("--labels", "--masks")  # options of segmentation that detection has, too
OUT = "segments"  # the folder that is written
BATCH = 4  # images in one pass
_LONGEST = 80  # characters of a file's stem


def is_model_folder(path: str) -> bool:
    return Path(path, "config.json").is_file()


def chosen_task(task: str | None, model: str | None, others: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The task that was asked for, or the one of the model; ValueError for options of another one.

    `others` are options of classification, `ours` those of segmentation, of which detection has `SHARED`, with the
    values that were given.
    """
    given, given_ours = ([name for name, value in options.items() if value] for options in (others, ours))
    own = [name for name in given_ours if name not in SHARED]
    if task is None:
        if model and not own and not given and _detects(model):
            task = DETECTION
        else:
            task = SEGMENTATION if given_ours or (model and not given and _segments(model)) else CLASSIFICATION
    wrong = {CLASSIFICATION: given_ours, SEGMENTATION: given, DETECTION: [*given, *own]}[task]
    if wrong:
        right = CLASSIFICATION if wrong[0] in given else SEGMENTATION
        beside = f" beside {given_ours[0]}" if task == SEGMENTATION and given_ours else f" for {task}"
        raise ValueError(f"{wrong[0]}: got it{beside}; it is for {right}")
    if task != CLASSIFICATION and model is None:
        what = "segments by texts" if task == SEGMENTATION else "finds objects by texts"
        raise ValueError(f"--model: missing; want a model that {what}: folder or Hub id")
    return task


def _segments(model: str) -> bool:
    from ..evaluation.segmentation import is_segmenter

    return is_segmenter(model)


def _detects(model: str) -> bool:
    from ..evaluation.detection import is_detector

    return is_detector(model)


def list_of_labels(text: str) -> list[str]:
    """`"cat, sky, building;house"`, or a file: .txt with a label in each line, or .json."""
    from ..modeling.dual_encoders.prompts import resolve_class_names

    return resolve_class_names(text, "--labels")


def read_background(text: str | None) -> float | dict[str, float] | None:
    """`"0.95"`, or a JSON object or file of one: label -> number."""
    if text is None:
        return None
    try:
        value = json.loads(Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text)
    except ValueError:
        value = None
    except OSError as error:
        raise type(error)(f"--background: cannot read {text} ({error.strerror})") from error
    numbers = list(value.values()) if isinstance(value, dict) else [value]
    if not numbers or any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise ValueError(
            f'--background: got {text!r}; want a number, or {{"label": number, …}}, or a .json file of it'
        )
    return value


def segment_files(
    inputs: list[str] | Iterator[str],
    model: str,
    labels: str | None,
    templates: str | None,
    *,
    background: str | None,
    window: int | None,
    masks: str,
    threshold: float,
    out: str | None,
    batch_size: int | None,
    device: str | None,
    as_json: bool,
) -> tuple[int, int]:
    """Segments images, prints what is in each, writes pictures and masks: (images that are broken, images)."""
    out = OUT if out is None else out
    check_out("--out", out)
    thresholds = read_background(background)
    names = None if labels is None else list_of_labels(labels)
    prepare_libraries(watched=not as_json)
    use_all_cores()
    import numpy as np

    from ..annotations.coco import CocoDocument
    from ..annotations.masks import encode_mask
    from ..evaluation.prediction import find_images
    from ..evaluation.segmentation import load_segmenter, segment

    encode_mask(np.ones((1, 1)), masks)  # a package that is missing for it is told now
    segmenter = load_segmenter(model, names, templates, device, thresholds, window)
    numbered = {number + 1: name for number, name in enumerate(segmenter.labels)}
    document = CocoDocument(numbered, masks, {"description": "hf-clip-variants predict --task segmentation"})
    taken: set[str] = set()
    broken, done = 0, 0
    stream = sys.stdout
    with machine_output(stream) as emit:
        write = emit if as_json else _csv_writer(stream)
        for found in segment(segmenter, find_images(inputs), batch_size or BATCH):
            done += 1
            if found.error is not None:
                broken += 1
                say(f"{found.path}: {found.error}", style="red")
                write({"path": found.path, "error": found.error})
                continue
            write(_saved(found, numbered, Path(out), document, taken, threshold))
        if not done:
            where = ", ".join(inputs) if isinstance(inputs, list) else "standard input"
            raise ValueError(f"IMAGES: no image files in {where}")
        if done > broken:
            document.save(Path(out) / "annotations.json")
            say(f"{out} holds overlays/, label_maps/ and annotations.json (COCO, masks as {masks})")
    return broken, done


def _saved(
    found: SegmentedImage,
    names: Mapping[int, str],
    out: Path,
    document: CocoDocument,
    taken: set[str],
    threshold: float,
) -> dict[str, Any]:
    """Writes the pictures of one image, adds its masks to the document, and returns its row."""
    import numpy as np

    from ..annotations.detections import Detections
    from ..annotations.label_maps import save_label_map
    from ..annotations.overlays import draw_overlay
    from ..files.atomic_writes import write_atomically

    low = [label for label, score in enumerate(found.scores) if score < threshold]
    label_map = found.label_map + 1  # 0: no label, as in the files
    label_map[np.isin(found.label_map, low)] = 0
    present = [label for label in np.argsort(-found.areas, kind="stable") if found.areas[label] and label not in low]
    name = file_name(found.path, taken)
    picture = draw_overlay(found.image, label_map, {0: "background", **names}, hidden=[0], title=Path(found.path).name)
    overlay = write_atomically(out / "overlays" / name, png_of(picture))
    labels = save_label_map(label_map, out / "label_maps" / name, {0: "background", **names})
    scores = {label + 1: float(score) for label, score in enumerate(found.scores)}
    height, width = label_map.shape
    document.add(name, (height, width), Detections.from_label_map(label_map, names, scores), {"path": found.path})
    segments = [
        {
            "label": names[int(label) + 1],
            "score": round(float(found.scores[label]), 6),
            "share": round(float(found.areas[label] / label_map.size), 6),
            "pixels": int(found.areas[label]),
        }
        for label in present
    ]
    files = {"overlay": str(overlay), "label_map": str(labels)}
    return {"path": found.path, "width": width, "height": height, "segments": segments, **files}


def file_name(path: str, taken: set[str]) -> str:
    """The name of an image's files: its own, with letters, digits, dots and dashes only; numbered if it is taken.

    >>> taken = set()
    >>> [file_name(path, taken) for path in ("a/cat 1.jpg", "b/cat 1.png", "..", "\x1b[31m.png")]
    ['cat_1.png', 'cat_1-2.png', 'image.png', '31m.png']
    """
    stem = re.sub(r"[^\w.-]+", "_", Path(path).stem).strip("._-")[:_LONGEST] or "image"
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return f"{name}.png"


def png_of(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def _csv_writer(stream: TextIO) -> Callable[[dict], None]:
    """A line for each label of an image."""
    from ..data.csv_cells import csv_line

    stream.write(csv_line(["path", "label", "score", "share", "pixels", "error"]))

    def write(row: dict) -> None:
        lines = [[row["path"], *one.values(), ""] for one in row.get("segments", ())]
        for line in lines or [[row["path"], "", "", "", "", row.get("error", "")]]:
            stream.write(csv_line(line))
        stream.flush()

    return write


__all__ = [
    "BATCH",
    "CLASSIFICATION",
    "DETECTION",
    "OUT",
    "SEGMENTATION",
    "chosen_task",
    "file_name",
    "is_model_folder",
    "list_of_labels",
    "png_of",
    "read_background",
    "segment_files",
]
