"""Pictures of clouds of points: the depth maps that a model sees, and points in the colours of their parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .legend import PAPER, Entry, with_legend
from .palette import palette


_TILE, _GAP, _COLUMNS = 224, 4, 5
_SIDES = (0.6, 0.6 + math.pi / 2, 0.6 + math.pi, 0.6 + 3 * math.pi / 2)  # where a cloud is looked at from
_FROM_ABOVE = 0.35


def draw_depth_maps(pictures: np.ndarray, entries: Sequence[Entry] = (), title: str = "") -> Image.Image:
    """(V, S, S) depth maps beside each other, with a legend such as the best classes.

    Values are stretched to grey over all maps together.

    >>> draw_depth_maps(np.random.rand(6, 32, 32)).size
    (1136, 452)
    """
    pictures = np.asarray(pictures, dtype=np.float32)
    if pictures.ndim != 3 or not pictures.size:
        raise ValueError(f"pictures: got shape {list(pictures.shape)}; want (views, side, side)")
    low, high = float(pictures.min()), float(pictures.max())
    grey = ((pictures - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)
    tiles = [Image.fromarray(one).resize((_TILE, _TILE), Image.Resampling.NEAREST).convert("RGB") for one in grey]
    sheet = _sheet(tiles)
    return with_legend(sheet, list(entries), title) if entries or title else sheet


def draw_parts(points: np.ndarray, parts: np.ndarray, names: Sequence[str], title: str = "") -> Image.Image:
    """A cloud (N, 3), +y up, from four sides, each point in the colour of its part (N,), with a legend.

    >>> draw_parts(np.random.rand(50, 3), np.zeros(50, int), ["leg"]).width
    908
    """
    points, parts = np.asarray(points, dtype=np.float64), np.asarray(parts)
    if points.ndim != 2 or points.shape[1] != 3 or parts.shape != (len(points),) or not len(points):
        raise ValueError(f"points, parts: got {list(points.shape)} and {list(parts.shape)}; want (N, 3) and (N,)")
    colours = palette(len(names))
    points = points - (points.max(0) + points.min(0)) / 2
    points = points / max(np.linalg.norm(points, axis=1).max(), 1e-12)
    radius = 1 if len(points) > 4000 else 2
    tiles = []
    for angle in _SIDES:
        c, s = math.cos(angle), math.sin(angle)
        x, y, z = c * points[:, 0] + s * points[:, 2], points[:, 1], c * points[:, 2] - s * points[:, 0]
        c, s = math.cos(_FROM_ABOVE), math.sin(_FROM_ABOVE)
        y, z = c * y - s * z, s * y + c * z
        column, row = (((1 + 0.94 * side) / 2 * (_TILE - 1)).round().astype(int) for side in (x, -y))
        canvas = np.full((_TILE, _TILE, 3), PAPER, dtype=np.uint8)
        order = np.argsort(z, kind="stable")  # the nearest are drawn last
        shade = (0.55 + 0.45 * (z[order] + 1) / 2)[:, None]
        for down in range(-radius, radius + 1):
            for right in range(-radius, radius + 1):
                rows = (row[order] + down).clip(0, _TILE - 1)
                canvas[rows, (column[order] + right).clip(0, _TILE - 1)] = colours[parts[order]] * shade
        tiles.append(Image.fromarray(canvas))
    shares = np.bincount(parts, minlength=len(names)) / len(parts)
    entries = [Entry(tuple(map(int, colours[i])), name, f"{100 * shares[i]:.1f} %", i) for i, name in enumerate(names)]
    return with_legend(_sheet(tiles), entries, title)


def _sheet(tiles: list[Image.Image]) -> Image.Image:
    columns = min(_COLUMNS, len(tiles))
    rows, step = math.ceil(len(tiles) / columns), _TILE + _GAP
    sheet = Image.new("RGB", (columns * step - _GAP, rows * step - _GAP), PAPER)
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % columns * step, place // columns * step))
    return sheet


__all__ = ["draw_depth_maps", "draw_parts"]
