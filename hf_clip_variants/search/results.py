"""What was found, as rows, CSV, and one page of thumbnails that opens without a network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..data.csv_cells import csv_line
from ..data.images.image_set import explain
from ..data.images.thumbnails import thumbnail
from ..files.printable import printable
from ..modeling.decoding.audio_decoding import decode_audio
from ..modeling.decoding.image_decoding import decode_image
from ..modeling.video.video_decoding import open_video
from .index import Hit, Index


logger = logging.getLogger(__name__)

COLUMNS = ("path", "kind", "score", "start", "end")
THUMBNAIL = 192  # pixels
_WAVE = (THUMBNAIL, 96)


def rows(index: Index, hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """A dictionary of `COLUMNS` for each hit; `path` is where the file is."""
    found = []
    for hit in hits:
        times = {name: None if value is None else round(value, 3) for name, value in _times(hit).items()}
        found.append({"path": index.location(hit), "kind": hit.kind, "score": round(hit.score, 6), **times})
    return found


def as_csv(index: Index, hits: Sequence[Hit]) -> str:
    """With a header; text that a spreadsheet would take for a formula is escaped."""
    return csv_line(COLUMNS) + "".join(csv_line(list(row.values())) for row in rows(index, hits))


def moment(hit: Hit) -> str:
    """When it is in the file, for people: `"1:02.5"`, `"0:10 – 0:20"`; "" for pictures."""
    if hit.start is None:
        return ""
    start, end = _clock(hit.start), _clock(hit.end)
    return start if start == end else f"{start} – {end}"


def as_page(index: Index, hits: Sequence[Hit], text: str | None = None, image: Any = None, sound: Any = None) -> str:
    """HTML with everything in it: what was searched for, and thumbnail, score, name and time of each hit.

    Files are read again for their thumbnails; of those that cannot be, the page says why.
    """
    from jinja2 import Environment

    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = [
        {
            "name": printable(hit.path),
            "address": _address(index, hit),
            "kind": hit.kind,
            "score": f"{hit.score:.3f}",
            "share": round(100 * min(max(hit.score, 0.0), 1.0)),
            "moment": moment(hit),
            **_preview(index, hit),
        }
        for hit in hits
    ]
    return environment.from_string(template).render(
        text=None if text is None else printable(text),
        image=None if image is None else thumbnail(_picture(image), THUMBNAIL),
        sound=None if sound is None else printable(str(sound)),
        hits=shown,
        counts=index.counts(),
        vectors=len(index),
        model=printable(index.manifest["model"]["name"]),
        source=printable(index.manifest["source"]),
    )


def _times(hit: Hit) -> dict[str, float | None]:
    return {"start": hit.start, "end": hit.end}


def _clock(seconds: float) -> str:
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02d}" if hours else str(minutes)
    return f"{clock}:{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")


def _address(index: Index, hit: Hit) -> str | None:
    """A `file:` URL; None for a row of a table."""
    return None if index.manifest["column"] else Path(index.location(hit)).as_uri()


def _preview(index: Index, hit: Hit) -> dict[str, str | None]:
    try:
        if hit.kind == "image":
            return {"source": thumbnail(_picture(index.source.content(hit.path)), THUMBNAIL), "why": None}
        if hit.kind == "audio":
            return {"source": thumbnail(_wave(index.source.content(hit.path), hit), THUMBNAIL), "why": None}
        with open_video(index.source.file(hit.path)) as video:
            frame = next(iter(video.frames([(hit.start + hit.end) / 2])))
        if frame is None:
            raise ValueError("no frame at this time")
        return {"source": thumbnail(frame, THUMBNAIL), "why": None}
    except Exception as error:  # a file may have gone or changed since; readers raise anything
        return {"source": None, "why": printable(explain(error))}


def _picture(image: Any) -> Image.Image:
    found = decode_image(image)
    return found if isinstance(found, Image.Image) else Image.fromarray(found.permute(1, 2, 0).byte().numpy())


def _wave(data: bytes, hit: Hit) -> Image.Image:
    """The loudness of a part of a sound, as people know it from players."""
    samples, rate = decode_audio(data)
    piece = np.abs(samples[:, round(hit.start * rate) : round(hit.end * rate)]).max(0)
    width, height = _WAVE
    picture = Image.new("RGB", _WAVE, "white")
    draw = ImageDraw.Draw(picture)
    bars = [part.max(initial=0.0) for part in np.array_split(piece, width // 3)]
    largest = max(max(bars), 1e-9)
    for place, bar in enumerate(bars):
        half = max(1, round(bar / largest * (height / 2 - 4)))
        draw.rectangle((3 * place, height // 2 - half, 3 * place + 1, height // 2 + half), fill=(0, 114, 178))
    return picture


__all__ = ["COLUMNS", "as_csv", "as_page", "moment", "rows"]
