"""The page of a run: every drawing as SVG, which plays its strokes, every painting as a picture that plays how it came
about; in a browser, offline."""

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..modeling.strokes.stroke_drawing import StrokeDrawing
from ..modeling.strokes.svg_writing import path_data


_TEMPLATE = Path(__file__).with_name("result_page.html")


@dataclass
class PageEntry:
    """One result of a page.

    Args:
        frames: how it came about, the first one first and the result last: drawings, or pictures.
        caption: above it.
        notes: (name, value) pairs below it.
        photo: what it shows, beside it.
        file: the file of the result, beside the page.
    """

    frames: Sequence[StrokeDrawing] | Sequence[Image.Image]
    caption: str
    notes: Sequence[tuple[str, str]] = ()
    photo: Image.Image | None = None
    file: str | None = None
    is_best: bool = field(default=False)


def result_page(title: str, entries: Sequence[PageEntry]) -> str:
    """HTML without anything from elsewhere."""
    cards = [_card(number, entry) for number, entry in enumerate(entries)]
    data = json.dumps([_frames(entry) for entry in entries], separators=(",", ":")).replace("<", "\\u003c")
    values = {"title": html.escape(title), "cards": "\n".join(cards), "data": data}
    # In one go: what users wrote is not looked through for marks.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: values[mark[1]], _TEMPLATE.read_text(encoding="utf-8"))


def _card(number: int, entry: PageEntry) -> str:
    result, steps = entry.frames[-1], len(entry.frames) - 1
    shown = '<img class="frame" alt="the result">'
    if isinstance(result, StrokeDrawing):
        shown = f'<svg viewBox="0 0 {result.width} {result.height}" role="img"></svg>'
    if entry.photo is not None:
        small = entry.photo.copy()
        small.thumbnail((256, 256))
        shown = f'<img class="photo" alt="the photograph" src="{_data_url(small)}">{shown}'
    controls = "<button>Play</button>"
    if steps:
        controls += f'<input type="range" min="0" max="{steps}" value="{steps}" aria-label="progress">'
    if entry.file is not None:
        kind = Path(entry.file).suffix[1:].upper()
        controls += f'<a href="{html.escape(entry.file, quote=True)}">{html.escape(kind)}</a>'
    notes = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in entry.notes)
    return (
        f'<article class="card{" best" if entry.is_best else ""}" data-number="{number}">'
        f'<h2>{html.escape(entry.caption)}</h2><div class="pictures">{shown}</div>'
        f'<div class="controls">{controls}</div><dl>{notes}</dl></article>'
    )


def _frames(entry: PageEntry) -> dict[str, Any]:
    if isinstance(entry.frames[-1], StrokeDrawing):
        return {"frames": [_paths(frame) for frame in entry.frames]}
    return {"pictures": [_data_url(frame) for frame in entry.frames]}


def _paths(drawing: StrokeDrawing) -> list[list]:
    """[path, colour, opacity, width] of each stroke, rounded: the page is to be looked at; the files are exact."""
    found = []
    for points, radius, color, count in zip(
        drawing.points.tolist(),
        drawing.radii.tolist(),
        drawing.colors.tolist(),
        drawing.num_segments.tolist(),
        strict=True,
    ):
        red, green, blue = (round(255 * value) for value in color[:3])
        path = path_data(points[: 3 * count + 1], digits=4)
        found.append([path, f"#{red:02x}{green:02x}{blue:02x}", round(color[3], 3), round(2 * radius, 2)])
    return found


def _data_url(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


__all__ = ["PageEntry", "result_page"]
