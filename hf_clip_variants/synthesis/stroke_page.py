"""The page of a run: every drawing as SVG, which plays its strokes, or how they came about, in a browser, offline."""

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..modeling.strokes.stroke_drawing import StrokeDrawing
from ..modeling.strokes.svg_writing import path_data


_TEMPLATE = Path(__file__).with_name("stroke_page.html")


@dataclass
class PageEntry:
    """One drawing of a page.

    Args:
        drawing: as it ended.
        caption: above it.
        notes: (name, value) pairs below it.
        frames: drawings of the progress, the first one first.
        photo: what it shows, beside it.
        file: the SVG file beside the page.
    """

    drawing: StrokeDrawing
    caption: str
    notes: Sequence[tuple[str, str]] = ()
    frames: Sequence[StrokeDrawing] = ()
    photo: Image.Image | None = None
    file: str | None = None
    is_best: bool = field(default=False)


def stroke_page(title: str, entries: Sequence[PageEntry]) -> str:
    """HTML without anything from elsewhere."""
    cards, data = [], []
    for number, entry in enumerate(entries):
        drawing = entry.drawing
        notes = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in entry.notes)
        photo = (
            "" if entry.photo is None else f'<img class="photo" alt="the photograph" src="{_data_url(entry.photo)}">'
        )
        link = "" if entry.file is None else f'<a href="{html.escape(entry.file, quote=True)}">SVG</a>'
        slider = (
            f'<input type="range" min="0" max="{len(entry.frames)}" value="{len(entry.frames)}" aria-label="progress">'
            if entry.frames
            else ""
        )
        cards.append(
            f'<article class="card{" best" if entry.is_best else ""}" data-number="{number}">'
            f"<h2>{html.escape(entry.caption)}</h2>"
            f'<div class="pictures">{photo}<svg viewBox="0 0 {drawing.width} {drawing.height}" role="img"></svg></div>'
            f'<div class="controls"><button>Play</button>{slider}{link}</div><dl>{notes}</dl></article>'
        )
        data.append({"frames": [_paths(frame) for frame in (*entry.frames, drawing)]})
    text = _TEMPLATE.read_text(encoding="utf-8")
    filled = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    for mark, value in (("{{title}}", html.escape(title)), ("{{cards}}", "\n".join(cards)), ("{{data}}", filled)):
        text = text.replace(mark, value)
    return text


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
    small = picture.convert("RGB")
    small.thumbnail((256, 256))
    content = io.BytesIO()
    small.save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


__all__ = ["PageEntry", "stroke_page"]
