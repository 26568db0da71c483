"""`hf-clip-variants predict` with a model of videos: the classes of each, and a picture of its frames."""

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


__all__ = ["BATCH", "classify_video_files", "is_video_model"]
