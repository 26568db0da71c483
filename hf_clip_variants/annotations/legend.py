"""Text on pictures: labels in any script that the machine has a font for, and legends of any length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..files.printable import printable


# Tried, in this order, for what DejaVu Sans (which comes with matplotlib) lacks.
_MORE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-zenhei.ttc", "wqy-microhei.ttc")
_MORE_FONTS += ("DroidSansFallbackFull.ttf", "msyh.ttc", "simsun.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc")
_MORE_FONTS += ("Arial Unicode.ttf", "arialuni.ttf", "malgun.ttf", "Nirmala.ttf")
_LONGEST = 32  # characters of a name
_COLUMNS = 4
INK, PAPER = (20, 20, 20), (255, 255, 255)


class Entry(NamedTuple):
    """A line of a legend."""

    colour: tuple[int, int, int]
    name: str
    value: str = ""
    number: int = 0  # instead of a name that no font here can write


def writable(name: str, number: int = 0) -> str:
    """The name in one line, shortened, without control characters; "label 3" where no font here has its letters.

    >>> writable("a  very\\nlong name that goes on and on and on"), writable("\\U0010fffd", 3)
    ('a very long name that goes on a…', 'label 3')
    """
    name = " ".join(printable(name).split())
    name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    return name if name and _font_file(name) is not None else f"label {number}"


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels that has all the letters; DejaVu Sans where none has."""
    return _font(_font_file(text) or _dejavu(), max(1, size))


def with_legend(picture: Image.Image, entries: Sequence[Entry], title: str = "") -> Image.Image:
    """The picture with a legend: to its right, or below a wide one; four columns at most, as long as it takes.

    Args:
        picture: RGB.
        entries: colour, name and value ("12.3 %") of each line.
        title: above the lines.
    """
    size = min(20, max(12, round(picture.height / 30)))
    row, gap = round(size * 1.5), round(size * 0.6)
    names = [writable(entry.name, entry.number) for entry in entries]
    texts = [f"{name}  {entry.value}".rstrip() for name, entry in zip(names, entries, strict=True)]
    widest = max((font_for(text, size).getlength(text) for text in texts), default=0)
    column = math.ceil(widest) + size + 3 * gap
    below = picture.width >= 2 * picture.height and picture.width > column
    head = row if title else 0
    if below:
        columns = max(1, min(len(texts), picture.width // column))
        rows = math.ceil(len(texts) / columns)
        width, height = picture.width, picture.height + head + rows * row + 2 * gap
        left, top = gap, picture.height + gap
    else:
        fitting = max(1, (picture.height - head - 2 * gap) // row)
        columns = max(1, min(_COLUMNS, math.ceil(len(texts) / fitting)))
        rows = math.ceil(len(texts) / columns)
        width = picture.width + columns * column + gap
        height = max(picture.height, head + rows * row + 2 * gap)
        left, top = picture.width + gap, gap
    if title:
        title = writable(title)
        width = max(width, left + math.ceil(font_for(title, size).getlength(title)) + gap)
    canvas = Image.new("RGB", (width, height), PAPER)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((left, top + row / 2), title, fill=INK, font=font_for(title, size), anchor="lm")
    for place, (entry, text) in enumerate(zip(entries, texts, strict=True)):
        x, y = left + place // rows * column, top + head + place % rows * row
        inset = (row - size) // 2
        draw.rectangle((x, y + inset, x + size, y + inset + size), fill=entry.colour, outline=INK)
        draw.text((x + size + gap, y + row / 2), text, fill=INK, font=font_for(text, size), anchor="lm")
    return canvas


# ---- fonts


@cache
def _dejavu() -> str:
    import matplotlib

    return f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"


def _font_file(text: str) -> str | None:
    """The first font that has all letters of a text; None if there is none."""
    needed = {ord(letter) for letter in text if not letter.isspace()}
    return next((file for file in (_dejavu(), *_MORE_FONTS) if needed <= _letters(file)), None)


@cache
def _letters(file: str) -> frozenset[int]:
    """Code points that a font has; none if it is not on this machine."""
    from matplotlib.ft2font import FT2Font

    try:
        path = ImageFont.truetype(file, 10).path
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


__all__ = ["Entry", "font_for", "with_legend", "writable"]
