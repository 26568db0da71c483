"""Lines of `hf-clip-variants predict`: one for each file, as json or csv, with errors in their place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from .output import machine_output, say


Row = dict[str, Any]


def rows_of(answers: Iterable[Any], row_of: Callable[[Any], Row], name: str = "path") -> Iterator[Row]:
    """`row_of` each answer, or what is wrong with its file. An answer has an `error` or None, and `name`."""
    for answer in answers:
        broken = answer.error is not None
        yield {"path": getattr(answer, name), "error": answer.error} if broken else row_of(answer)


def write_rows(
    rows: Iterable[Row],
    header: list[str],
    cells: Callable[[Row], Row],
    inputs: list[str] | Iterator[str],
    *,
    as_json: bool,
    wanted: str,
    note: str | None = None,
) -> tuple[int, int]:
    """Writes a line for each row to standard output, errors also to standard error: (rows with an error, rows).

    Args:
        rows: with "path", and "error" in the place of an answer.
        header, cells: of csv: the columns; a row without an error -> column -> what is written there.
        inputs: where files were looked for; named if there are none.
        wanted: what there should have been.
        note: what is said at the end, unless all failed.
    """
    broken = done = 0
    stream = sys.stdout
    with machine_output(stream) as emit:
        write = emit if as_json else _csv_writer(stream, header, cells)
        for row in rows:
            done += 1
            if "error" in row:
                broken += 1
                say(f"{row['path']}: {row['error']}", style="red")
            write(row)
        if not done:
            where = ", ".join(inputs) if isinstance(inputs, list) else "standard input"
            raise ValueError(f"IMAGES: no {wanted} in {where}")
        if note is not None and done > broken:
            say(note)
    return broken, done


def best_of(top: list[tuple[str, float]], count: int, name: str = "label") -> Row:
    """`label` and `score` of the best; with several, `top` has them all."""
    best = [{name: label, "score": round(score, 6)} for label, score in top[:count]]
    return best[0] | ({"top": best} if count > 1 else {})


def best_columns(count: int, name: str = "label") -> list[str]:
    """label, score, label_2, score_2, …"""
    return [f"{part}{f'_{place}' if place > 1 else ''}" for place in range(1, count + 1) for part in (name, "score")]


def best_cells(row: Row, name: str = "label") -> Row:
    """What `best_of` made, in the columns of `best_columns`."""
    best = row.get("top") or [row]
    names = best_columns(len(best), name)
    return dict(zip(names, (one[part] for one in best for part in (name, "score")), strict=True))


def _csv_writer(stream: TextIO, header: list[str], cells: Callable[[Row], Row]) -> Callable[[Row], None]:
    from ..data.csv_cells import csv_line

    stream.write(csv_line([*header, "error"]))

    def write(row: Row) -> None:
        found = row if "error" in row else cells(row)
        stream.write(csv_line([found.get(name, "") for name in (*header, "error")]))
        stream.flush()

    return write


__all__ = ["best_cells", "best_columns", "best_of", "rows_of", "write_rows"]
