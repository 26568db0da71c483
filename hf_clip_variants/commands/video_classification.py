"""`hf-clip-variants predict` with a model of videos: the classes of each, and a picture of its frames."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from .arguments import check_out
from .output import machine_output, prepare_libraries, say, use_all_cores
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
    broken, done = 0, 0
    stream = sys.stdout
    with machine_output(stream) as emit:
        write = emit if as_json else _csv_writer(stream, top, out is not None)
        for found in classify_videos(loaded, find_images(inputs, videos=True), max(top, 5), batch_size or BATCH):
            done += 1
            if found.error is not None:
                broken += 1
                say(f"{found.path}: {found.error}", style="red")
                write({"path": found.path, "error": found.error})
                continue
            best = [{"label": label, "score": round(score, 6)} for label, score in found.top[:top]]
            row = {"path": found.path, **best[0], **({"top": best} if top > 1 else {})}
            if out is not None:
                row["picture"] = str(_picture(found.path, found.top, Path(out), taken))
            write(row)
    if not done:
        raise ValueError(f"IMAGES: no videos in {', '.join(inputs) if isinstance(inputs, list) else 'standard input'}")
    return broken, done


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


def _csv_writer(stream: TextIO, top: int, pictures: bool) -> Callable[[dict], None]:
    from ..data.csv_cells import csv_line

    more = [f"{name}_{place}" for place in range(2, top + 1) for name in ("label", "score")]
    header = ["path", "label", "score", *more, *(["picture"] if pictures else []), "error"]
    stream.write(csv_line(header))

    def write(row: dict) -> None:
        best = row.get("top") or ([row] if "label" in row else [])
        cells = {"path": row["path"], "error": row.get("error", ""), "picture": row.get("picture", "")}
        for place, one in enumerate(best):
            ending = f"_{place + 1}" if place else ""
            cells |= {f"label{ending}": one["label"], f"score{ending}": one["score"]}
        stream.write(csv_line([cells.get(name, "") for name in header]))
        stream.flush()

    return write


__all__ = ["BATCH", "classify_video_files", "is_video_model"]
