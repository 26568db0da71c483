"""The task "points" of `hf-clip-variants predict`: classes and parts of clouds of points and meshes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .arguments import check_out
from .output import machine_output, prepare_libraries, say, use_all_cores
from .segmentation import file_name, list_of_labels, png_of


if TYPE_CHECKING:
    from ..evaluation.point_clouds import ClassifiedCloud

POINTS = "points"
OUT = "shapes"  # the folder that is written
_SHOWN = 5  # classes in a picture's legend
_INK = (60, 60, 60)


def has_point_model(model: str) -> bool:
    """Whether a folder holds a model for clouds of points."""
    from ..evaluation.point_clouds import is_point_model

    return is_point_model(model)


def classify_files(
    inputs: list[str] | Iterator[str],
    model: str | None,
    labels: str | None,
    templates: str | None,
    *,
    parts: str | None,
    up_axis: str | None,
    adapter: str | None,
    top: int,
    out: str | None,
    device: str | None,
    as_json: bool,
) -> tuple[int, int]:
    """Classifies objects, prints them, writes depth maps and parts: (objects that are broken, objects)."""
    if model is None:
        raise ValueError("--model: missing; want a model that compares clouds of points with texts: folder or Hub id")
    out = OUT if out is None else out
    check_out("--out", out)
    names = None if labels is None else list_of_labels(labels)
    part_names = None if parts is None else list_of_labels(parts)
    prepare_libraries(watched=not as_json)
    use_all_cores()
    from ..evaluation.point_clouds import classify_clouds, find_clouds, load_point_classifier

    options = {} if up_axis is None else {"up_axis": up_axis}
    if part_names is not None:
        options["num_points"] = None  # each point that is there, or was drawn from the surface
    loaded = load_point_classifier(model, names, templates, part_names, device, adapter, **options)
    taken: set[str] = set()
    broken = done = 0
    stream = sys.stdout
    with machine_output(stream) as emit:
        write = emit if as_json else _csv_writer(stream, top)
        for found in classify_clouds(loaded, find_clouds(inputs), max(top, _SHOWN)):
            done += 1
            if found.error is not None:
                broken += 1
                say(f"{found.path}: {found.error}", style="red")
                write({"path": found.path, "error": found.error})
                continue
            write(_saved(found, part_names, Path(out), taken, top))
        if not done:
            where = ", ".join(inputs) if isinstance(inputs, list) else "standard input"
            raise ValueError(f"IMAGES: no files of clouds or meshes in {where}")
        if done > broken:
            say(f"{out} holds depth_maps/{'' if part_names is None else ' and parts/'}")
    return broken, done


def _saved(
    found: ClassifiedCloud, part_names: list[str] | None, out: Path, taken: set[str], top: int
) -> dict[str, Any]:
    """Writes the pictures of one object, and its points with their parts; returns its row."""
    from ..annotations.legend import Entry
    from ..annotations.point_pictures import draw_depth_maps, draw_parts
    from ..data.csv_cells import csv_line
    from ..files.atomic_writes import write_atomically

    name, title = file_name(found.path, taken), Path(found.path).name
    entries = [Entry(_INK, label, f"{100 * score:.1f} %", i) for i, (label, score) in enumerate(found.top)]
    picture = write_atomically(out / "depth_maps" / name, png_of(draw_depth_maps(found.pictures, entries, title)))
    best = [{"label": label, "score": round(score, 6)} for label, score in found.top[:top]]
    row = {"path": found.path, **best[0], "picture": str(picture)} | ({"top": best} if top > 1 else {})
    if part_names is None:
        return row
    drawn = draw_parts(found.points, found.parts, part_names, title)
    row["parts_picture"] = str(write_atomically(out / "parts" / name, png_of(drawn)))
    lines = [csv_line(["x", "y", "z", "part"])]
    for point, part in zip(found.points.tolist(), found.parts.tolist(), strict=True):
        lines.append(csv_line([*(round(side, 6) for side in point), part_names[part]]))
    table = (out / "parts" / name).with_suffix(".csv")
    row["parts_table"] = str(write_atomically(table, "".join(lines).encode("utf-8")))
    counts = {label: int((found.parts == number).sum()) for number, label in enumerate(part_names)}
    return row | {"parts": {label: round(count / len(found.parts), 6) for label, count in counts.items()}}


def _csv_writer(stream: TextIO, top: int) -> Callable[[dict], None]:
    from ..data.csv_cells import csv_line

    more = [f"{name}_{place}" for place in range(2, top + 1) for name in ("label", "score")]
    header = ["path", "label", "score", *more, "error"]
    stream.write(csv_line(header))

    def write(row: dict) -> None:
        if "error" in row:
            cells = [row["path"], *[""] * (len(header) - 2), row["error"]]
        else:
            others = [cell for one in row.get("top", ())[1:] for cell in (one["label"], one["score"])]
            cells = [row["path"], row["label"], row["score"], *others]
            cells += [""] * (len(header) - len(cells))
        stream.write(csv_line(cells))
        stream.flush()

    return write


__all__ = ["OUT", "POINTS", "classify_files", "has_point_model"]
