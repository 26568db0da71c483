"""The task "points" of `hf-clip-variants predict`: classes and parts of clouds of points and meshes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answer_lines import best_cells, best_columns, best_of, rows_of, write_rows
from .arguments import check_out
from .output import prepare_libraries, use_all_cores
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
    found = classify_clouds(loaded, find_clouds(inputs), max(top, _SHOWN))
    return write_rows(
        rows_of(found, lambda one: _saved(one, part_names, Path(out), taken, top)),
        ["path", *best_columns(top)],
        lambda row: {"path": row["path"]} | best_cells(row),
        inputs,
        as_json=as_json,
        wanted="files of clouds or meshes",
        note=f"{out} holds depth_maps/{'' if part_names is None else ' and parts/'}",
    )


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
    row = {"path": found.path, "picture": str(picture)} | best_of(found.top, top)
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


__all__ = ["OUT", "POINTS", "classify_files", "has_point_model"]
