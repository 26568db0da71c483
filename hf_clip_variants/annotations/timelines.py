"""Pictures of a video's time: some frames, and below them a track for each text with the seconds where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from .legend import INK, PAPER, Entry, font_for, with_legend, writable
from .palette import palette


WIDTH, STRIP, TRACK, AXIS = 960, 120, 26, 24  # pixels
_GRID = (225, 225, 225)
_TICKS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)  # seconds


class Span(NamedTuple):
    """Seconds `start`..`end` of the text `label`."""

    label: int
    start: float
    end: float
    score: float


def draw_timeline(
    frames: Sequence[Image.Image],
    seconds: float,
    spans: Sequence[Span],
    names: Sequence[str],
    title: str = "",
) -> Image.Image:
    """Frames side by side, tracks with the spans, an axis, and a legend with the best score of each text.

    Args:
        frames: evenly spaced; may be none.
        seconds: the video's length.
        spans: what was found.
        names: of the texts; `label` is a place in it.
        title: of the legend.

    Returns:
        RGB.

    Example:

    ```python
    >>> draw_timeline([Image.new("RGB", (32, 18))] * 4, 12, [Span(0, 2, 5, 1.5)], ["a cat runs"]).mode
    'RGB'
    ```
    """
    seconds, strip = max(float(seconds), 1e-3), STRIP if len(frames) else 0
    picture = Image.new("RGB", (WIDTH, strip + max(len(names), 1) * TRACK + AXIS), PAPER)
    _paste_frames(picture, frames)
    draw, colours = ImageDraw.Draw(picture), [tuple(map(int, colour)) for colour in palette(len(names))]
    bottom = picture.height - AXIS
    step = next((tick for tick in _TICKS if seconds / tick <= 12), _TICKS[-1])
    for tick in range(0, int(seconds) + 1, step):
        x = round(tick / seconds * (WIDTH - 1))
        draw.line((x, strip, x, bottom), fill=_GRID)
        text = _clock(tick)
        anchor = "lm" if x < 20 else "rm" if x > WIDTH - 40 else "mm"
        draw.text((x, bottom + AXIS / 2), text, fill=INK, font=font_for(text, 13), anchor=anchor)
    for span in spans:
        left, right = (round(time / seconds * (WIDTH - 1)) for time in (span.start, span.end))
        top = strip + span.label * TRACK + 4
        draw.rectangle((left, top, max(right, left + 2), top + TRACK - 8), fill=colours[span.label], outline=INK)
    best: dict[int, float] = {}
    for span in spans:
        best[span.label] = max(span.score, best.get(span.label, span.score))
    values = [f"{best[label]:.4g}" if label in best else "–" for label in range(len(names))]
    return _with_entries(picture, colours, names, values, title)


def draw_scores(
    frames: Sequence[Image.Image], scores: Sequence[float], names: Sequence[str], title: str = ""
) -> Image.Image:
    """Frames side by side, and a bar for the score of each text: none for the lowest, the whole width for the best."""
    strip = STRIP if len(frames) else 0
    picture = Image.new("RGB", (WIDTH, strip + max(len(names), 1) * TRACK + 8), PAPER)
    _paste_frames(picture, frames)
    draw, colours = ImageDraw.Draw(picture), [tuple(map(int, colour)) for colour in palette(len(names))]
    low, high = min(scores), max(scores)
    for place, score in enumerate(scores):
        share = (score - low) / (high - low) if high > low else 1.0
        top = strip + place * TRACK + 4
        draw.rectangle((0, top, max(4, round(share * (WIDTH - 1))), top + TRACK - 8), fill=colours[place], outline=INK)
    return _with_entries(picture, colours, names, [f"{score:.4g}" for score in scores], title)


def _paste_frames(picture: Image.Image, frames: Sequence[Image.Image]) -> None:
    for place, frame in enumerate(frames):
        left, right = (round(one * WIDTH / len(frames)) for one in (place, place + 1))
        room = (max(1, right - left - 2), STRIP - 8)
        small = frame.convert("RGB")
        small.thumbnail(room)
        picture.paste(small, (left + (room[0] - small.width) // 2, 4 + (room[1] - small.height) // 2))


def _with_entries(picture, colours, names, values, title: str) -> Image.Image:
    entries = [
        Entry(colour, writable(name, place), value, place)
        for place, (colour, name, value) in enumerate(zip(colours, names, values, strict=True))
    ]
    return with_legend(picture, entries, title)


def _clock(seconds: int) -> str:
    """
    >>> [_clock(seconds) for seconds in (7, 75, 7262)]
    ['0:07', '1:15', '2:01:02']
    """
    hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


__all__ = ["Span", "draw_scores", "draw_timeline"]
