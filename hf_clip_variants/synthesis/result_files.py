"""The files that a run of drawing or painting leaves: pictures, animations, exact numbers, a sheet, a page of all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..files.atomic_writes import write_atomically
from ..files.json_files import write_json
from .progress_pictures import animation, film, sheet, strip
from .result_page import PageEntry, result_page
from .runs import SynthesisRun


_COLUMNS = 6  # of the sheet


@dataclass
class ResultFiles:
    """
    One result.

    Args:
        name: of its files, without suffix.
        picture: as large as it is to be looked at.
        frames: small pictures of how it came about; the last one shows the result.
        others: suffix -> content of further files, such as exact numbers.
        entry: of the page. row: of results.json.
    """

    name: str
    picture: Image.Image
    frames: Sequence[Image.Image]
    others: dict[str, bytes | str]
    entry: PageEntry
    row: dict[str, Any]


def facts_of(result: Any, name: str, caption: str | None, is_best: bool) -> dict[str, Any]:
    """What results.json says of any result: of several guides, also the similarity to each."""
    facts = {
        "name": name,
        "caption": caption,
        "seed": result.seed,
        "similarity": round(result.similarity, 4),
        "loss": round(result.loss, 6),
        "steps": len(result.losses),
        "best": is_best,
    }
    if len(result.similarities) > 1:
        facts["similarities"] = [round(value, 4) for value in result.similarities]
    return facts


def write_result_files(
    run: SynthesisRun,
    results: Sequence[ResultFiles],
    out: Path,
    title: str,
    about: dict[str, Any],
    kind: str,
    mp4: bool = False,
) -> list[dict[str, Any]]:
    """Of each result: picture, animation (with `mp4` also a film), strip and further files; sheet.png, index.html, and
    results.json, whose rows, under the key `kind`, return."""
    for result in results:
        write_atomically(out / f"{result.name}.png", _png(result.picture))
        write_atomically(out / f"{result.name}.gif", animation(result.frames))
        write_atomically(out / f"{result.name}_strip.png", _png(strip(result.frames)))
        for suffix, content in result.others.items():
            write_atomically(out / f"{result.name}{suffix}", content)
        if mp4:
            film(out / f"{result.name}.mp4", result.frames)
    finals = [result.frames[-1] for result in results]
    rows = [finals[place : place + _COLUMNS] for place in range(0, len(finals), _COLUMNS)]
    write_atomically(out / "sheet.png", _png(sheet(rows)))
    write_atomically(out / "index.html", result_page(title, [result.entry for result in results]))
    found = [result.row for result in results]
    write_json(out / "results.json", about | {"seconds": round(run.spent, 1), kind: found})
    (out / "preview.png").unlink(missing_ok=True)
    return found


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


__all__ = ["ResultFiles", "facts_of", "write_result_files"]
