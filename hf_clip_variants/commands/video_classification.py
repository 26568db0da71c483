"""`hf-clip-variants predict` and `evaluate` with a model of videos: the classes of each, a picture of its frames,
accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .answer_lines import best_cells, best_columns, best_of, rows_of, write_rows
from .arguments import check_out
from .output import prepare_libraries, use_all_cores
from .segmentation import file_name, png_of


BATCH = 8  # videos in one pass
_HEIGHT = 160  # of a frame in a picture
_COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233))


def is_video_model(model: str) -> bool:
    from ..evaluation.saved_folders import is_of_auto_class

    return is_of_auto_class(model, "AutoModelForVideoClassification")


def classify_video_files(
    inputs: list[str] | Iterator[str],
    model: str,
    classes: str | list[str] | None,
    templates: str | None,
    *,
    top: int | None,
    out: str | None,
    batch_size: int | None,
    device: str | None,
    as_json: bool,
) -> tuple[int, int]:
    """Prints the best classes of each video and writes pictures where `out` is given: (videos that are broken,
    videos)."""
    if out is not None:
        check_out("--out", out)
    prepare_libraries(watched=not as_json)
    use_all_cores()
    from ..evaluation.prediction import find_images
    from ..evaluation.video_classification import classify_videos, load_video_classifier

    loaded = load_video_classifier(model, classes, templates, device)
    top, taken = min(top or 1, len(loaded.class_names)), set()
    pictures = [] if out is None else ["picture"]

    def row_of(found: Any) -> dict[str, Any]:
        row = {"path": found.path} | best_of(found.top, top)
        return row | {name: str(_picture(found.path, found.top, Path(out), taken)) for name in pictures}

    return write_rows(
        rows_of(classify_videos(loaded, find_images(inputs, videos=True), max(top, 5), batch_size or BATCH), row_of),
        ["path", *best_columns(top), *pictures],
        lambda row: row | best_cells(row),
        inputs,
        as_json=as_json,
        wanted="videos",
    )


def evaluate_videos(
    data: list[str],
    split: str | None,
    reading: dict[str, Any],
    loading: dict[str, Any],
    common_classes: bool,
    batch_size: int,
    as_json: bool,
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Top-1 and top-5 accuracy of a model of videos on labelled ones, and (video, reason) of those not readable.

    Args:
        reading: of `load_images`. loading: of `load_video_classifier`; without class names, those of the data, unless
            the model has its own.
    """
    prepare_libraries(watched=not as_json)
    use_all_cores()
    import torch

    from ..data.images.labelled_sets import align_classes, read_labelled
    from ..evaluation.saved_folders import configuration_of
    from ..evaluation.video_classification import classify_videos, load_video_classifier
    from ..metrics.classification import accuracy_by_class
    from .evaluate import only_classes_of
    from .output import progress_bar, say

    shown = ", ".join(data)
    if configuration_of(loading["model"]).get("problem_type") == "multi_label_classification":
        raise ValueError(f"--model: {loading['model']} is for several labels a video; accuracy is for one")
    loaded = None
    if loading["class_names"] is not None or configuration_of(loading["model"]).get("num_class_features"):
        loaded = load_video_classifier(**loading)
    known = [] if loaded is None else loaded.class_names
    options = {"videos": True, "verify": False} | reading
    images = read_labelled(data if len(data) > 1 else data[0], known, split, options)
    if split is None and images.split == "train" and "test" in images.available_splits:
        images = images.load_split(split="test")
    loaded = loaded or load_video_classifier(**loading | {"class_names": list(images.class_names)})
    if common_classes:
        images = only_classes_of(loaded, images, shown)
    images = align_classes(images, loaded.class_names, shown)
    right, skipped, top, count = [], [], [], len(loaded.class_names)
    with progress_bar("Classifying", len(images)) as advance:
        found = classify_videos(loaded, map(images.file, range(len(images))), min(5, count), max(1, batch_size // 8))
        for index, one in enumerate(found):
            advance(index + 1)
            if one.error is not None:
                skipped.append((images.ids[index], one.error))
                say(f"{images.ids[index]}: {one.error}", style="red")
                continue
            labels = [loaded.class_names.index(name) for name, _ in one.top]
            top.append(labels[0])
            right.append((int(images.labels[index]), int(images.labels[index]) in labels))
    if not right:
        raise ValueError(f"--data: none of {len(images)} videos in {shown} can be read: {skipped[0][1]}")
    truth, predicted = torch.tensor([label for label, _ in right]), torch.tensor(top)
    per_class = accuracy_by_class(predicted, truth, count)
    result = {
        "data": shown,
        "split": images.split,
        "images": len(right),
        "classes": count,
        "accuracy": float((predicted == truth).double().mean()),
        "top5_accuracy": sum(hit for _, hit in right) / len(right),
        "per_class": dict(zip(loaded.class_names, per_class, strict=True)),
        "unreadable": [name for name, _ in skipped],
    }
    return result, skipped


def _picture(path: str, top: Any, out: Path, taken: set[str]) -> Path:
    """Writes frames beside each other, and the best classes with their scores."""
    from ..annotations.legend import Entry, with_legend
    from ..data.images.video_frames import frames_of, picture_of, read_video_frames
    from ..files.atomic_writes import write_atomically

    frames = frames_of(read_video_frames(path))
    width = max(1, round(frames[0].width * _HEIGHT / frames[0].height))
    strip = picture_of([frame.convert("RGB").resize((width, _HEIGHT)) for frame in frames])
    entries = [
        Entry(_COLOURS[place % len(_COLOURS)], label, f"{100 * score:.1f} %", place)
        for place, (label, score) in enumerate(top)
    ]
    picture = with_legend(strip, entries, Path(path).name)
    return write_atomically(out / "pictures" / file_name(path, taken), png_of(picture))


__all__ = ["BATCH", "classify_video_files", "evaluate_videos", "is_video_model"]
