"""Tables of what is said of videos: captions, spans of time with a name, questions with candidate answers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .images.names import IMAGE_COLUMNS, usual_column
from .tables import located, open_table, read_json_lines


VIDEO_COLUMNS = ("video", "video_path", "clip", "features", *IMAGE_COLUMNS)
COLUMNS = {
    "text": ("text", "caption", "sentence", "description", "query", "label", "step", "name", "answer"),
    "start": ("start", "start_time", "begin", "start_seconds"),
    "end": ("end", "end_time", "stop", "end_seconds"),
    "task": ("task", "task_id", "activity"),
    "candidates": ("candidates", "options", "choices", "answers"),
}
SEPARATOR = "|"  # between candidates


@dataclass(frozen=True)
class VideoRow:
    """
    A row of a table.

    Attributes:
        path: of the video.
        text: a caption, the name of a span, or the right answer; None: nothing of what is looked for is in the video.
        start, end: seconds, of a span.
        task: rows of one task have their texts in common.
        candidates: answers to choose from; `text` is one of them.
    """

    path: str
    text: str | None
    start: float | None = None
    end: float | None = None
    task: str = ""
    candidates: tuple[str, ...] = ()


def read_video_rows(file: str | os.PathLike, wanted: Sequence[str] = (), without_text: bool = False) -> list[VideoRow]:
    """Rows of a CSV, TSV or JSON lines file with a line of column names; paths are relative to the table's folder.

    Args:
        wanted: columns beside the video and the text that must be there, of "start", "end", "candidates".
        without_text: rows may have an empty text, and then no span: a video without anything that is looked for.

    Raises:
        ValueError: no such column; an empty text; a span that is none, 0 <= start < end; an answer that is none of
            the candidates. Messages name file and row. OSError: no such file.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_clip_variants.data.video_tables import read_video_rows

    >>> file = Path(tempfile.mkdtemp()) / "steps.csv"
    >>> _ = file.write_text("video,label,start,end\\na.mp4,pour milk,2,5.5\\n")
    >>> row = read_video_rows(file, ["start", "end"])[0]
    >>> row.text, row.start, row.end
    ('pour milk', 2.0, 5.5)

    ```
    """
    file = Path(file)
    if not file.is_file():
        raise OSError(f"{file}: no such file; want a table (CSV, TSV or JSON lines) of videos")
    rows = _values(file)
    names = _columns(file, rows[0][1], wanted)
    return [_row(f"{file}, {place}", file.parent, values, names, wanted, without_text) for place, values in rows]


def _values(file: Path) -> list[tuple[str, dict[str, Any]]]:
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        return [(f"row {number}", row) for number, row in enumerate(read_json_lines(file), 1)]
    table = open_table(file, VIDEO_COLUMNS, ("video", "text", "start", "end"))
    return [(f"line {line}", dict(zip(table.columns, values, strict=True))) for line, values in table.rows()]


def _columns(file: Path, row: dict[str, Any], wanted: Sequence[str]) -> dict[str, str]:
    found = {"path": usual_column(row, VIDEO_COLUMNS)}
    found |= {name: usual_column([c for c in row if c != found["path"]], usual) for name, usual in COLUMNS.items()}
    for name in ("path", "text", *wanted):
        if found[name] is None:
            usual = VIDEO_COLUMNS if name == "path" else COLUMNS[name]
            raise ValueError(f"{file}: columns {', '.join(map(repr, row))}; want one called {', '.join(usual[:4])}")
    return {name: column for name, column in found.items() if column is not None}


def _row(
    where: str, folder: Path, values: dict[str, Any], names: dict[str, str], wanted: Sequence[str], without_text: bool
) -> VideoRow:
    given = {name: values[column] for name, column in names.items() if name in ("path", "text", "task", *wanted)}
    path, text, task = (str(given.get(name) or "").strip() for name in ("path", "text", "task"))
    spans = {name: given[name] for name in ("start", "end") if name in given}
    if not path:
        raise ValueError(f"{where}: the name of the video is empty")
    if not text:
        if not without_text or any(str(value or "").strip() for value in spans.values()):
            raise ValueError(f"{where}: {names['text']} is empty")
        return VideoRow(located(folder, path), None, task=task)
    seconds = {name: _seconds(f"{where}: {names[name]}", value) for name, value in spans.items()}
    if seconds and not 0 <= seconds["start"] < seconds["end"]:
        raise ValueError(f"{where}: {seconds['start']:g} to {seconds['end']:g} s, expected 0 <= start < end")
    candidates = _candidates(where, given["candidates"], text) if "candidates" in given else ()
    return VideoRow(located(folder, path), text, **seconds, task=task, candidates=candidates)


def _candidates(where: str, value: Any, answer: str) -> tuple[str, ...]:
    parts = value if isinstance(value, list) else str(value or "").split(SEPARATOR)
    candidates = tuple(str(one).strip() for one in parts)
    if answer not in candidates or len(set(candidates)) < len(candidates) or not all(candidates):
        raise ValueError(
            f"{where}: answer {answer[:80]!r}, candidates {', '.join(map(repr, candidates))[:200]}; want different "
            f"candidates with {SEPARATOR} between, the answer among them"
        )
    return candidates


def _seconds(name: str, value: Any) -> float:
    """Of a number of seconds, minutes:seconds, or hours:minutes:seconds."""
    try:
        found = 0.0
        for part in str(value).strip().split(":"):
            found = 60 * found + float(part)
    except ValueError:
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise ValueError(f"{name} is {value!r}, expected seconds, or minutes:seconds")
    return found


__all__ = ["COLUMNS", "SEPARATOR", "VIDEO_COLUMNS", "VideoRow", "read_video_rows"]
