"""A picture of a post, the answer to it and what counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from .legend import INK, PAPER, font_for, writable
from .palette import palette


WIDTH, HEIGHT, EDGE, GAP = 900, 420, 380, 20  # pixels
_ROW, _LINE, _SIZE = 26, 20, 15
_BAR_LEFT, _TRACK = 620, (232, 232, 232)
_LINES = 4  # of the text


class Bar(NamedTuple):
    """A line with a bar; `share` 0..1 of its length, None for no bar."""

    name: str
    value: str
    share: float | None = None


def draw_post(
    image: Image.Image | None, text: str, title: str, bars: Sequence[Bar], layers: Sequence[float] = ()
) -> Image.Image:
    """The image, the beginning of the text, the answer as a title, bars, and a column for each of BERT's states.

    Example:

    ```python
    >>> draw_post(Image.new("RGB", (64, 48)), "a flood", "rumor 93 %", [Bar("text", "0.61", 0.61)], [0.5, 0.5]).size
    (900, 420)
    ```
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(canvas)
    _paste(canvas, draw, image)
    left, top = EDGE + 2 * GAP, GAP
    title = writable(title)
    draw.text((left, top), title, fill=INK, font=font_for(title, 22))
    top += 38
    for line in wrapped(text, WIDTH - left - GAP):
        draw.text((left, top), line, fill=INK, font=font_for(line, _SIZE))
        top += _LINE
    top += 12
    colours = [tuple(map(int, colour)) for colour in palette(max(len(bars), 1))]
    for bar, colour in zip(bars, colours, strict=False):
        name, middle = writable(bar.name), top + _ROW / 2
        draw.text((left, middle), f"{name}  {bar.value}", fill=INK, font=font_for(name, _SIZE), anchor="lm")
        if bar.share is not None:
            right = WIDTH - GAP
            draw.rectangle((_BAR_LEFT, top + 6, right, top + _ROW - 6), fill=_TRACK)
            end = _BAR_LEFT + round(min(max(bar.share, 0.0), 1.0) * (right - _BAR_LEFT))
            draw.rectangle((_BAR_LEFT, top + 6, max(end, _BAR_LEFT + 1), top + _ROW - 6), fill=colour)
        top += _ROW
    if layers:
        _draw_layers(draw, layers, left, HEIGHT - GAP - 14)
    return canvas


def _paste(canvas: Image.Image, draw: ImageDraw.ImageDraw, image: Image.Image | None) -> None:
    if image is None:
        draw.rectangle((GAP, GAP, GAP + EDGE - 1, GAP + EDGE - 1), outline=_TRACK)
        draw.text(
            (GAP + EDGE / 2, GAP + EDGE / 2), "no image", fill=INK, font=font_for("no image", _SIZE), anchor="mm"
        )
        return
    small = image.convert("RGB")
    scale = EDGE / max(small.size)
    small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
    canvas.paste(small, (GAP + (EDGE - small.width) // 2, GAP + (EDGE - small.height) // 2))


def _draw_layers(draw: ImageDraw.ImageDraw, layers: Sequence[float], left: int, bottom: int) -> None:
    """A column for each state; the share of the largest has 50 pixels."""
    words = "layers of BERT that were read"
    draw.text((left, bottom - 66), words, fill=INK, font=font_for(words, 13), anchor="lm")
    step = min(30, (WIDTH - left - GAP) // len(layers))
    largest = max(max(layers), 1e-12)
    for place, share in enumerate(layers):
        x = left + place * step
        draw.rectangle((x, bottom - max(1, round(50 * share / largest)), x + step - 4, bottom), fill=(90, 120, 170))
        if len(layers) <= 30:
            draw.text((x + step / 2 - 2, bottom + 8), str(place), fill=INK, font=font_for("0", 11), anchor="mm")


def wrapped(text: str, width: int) -> list[str]:
    """The first lines of a text, in any script, each at most so many pixels wide."""
    words, lines = " ".join(text.split()), []
    while words and len(lines) < _LINES:
        font = font_for(words[:80], _SIZE)
        end = next((place for place in range(1, len(words) + 1) if font.getlength(words[:place]) > width), None)
        end = len(words) if end is None else max(1, end - 1)
        if end < len(words) and (space := words.rfind(" ", 0, end + 1)) > 0:
            end = space
        lines.append(words[:end])
        words = words[end:].lstrip()
    if words:
        lines[-1] = lines[-1][:-1] + "…"
    return lines


__all__ = ["Bar", "draw_post"]
