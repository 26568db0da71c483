"""Colours of labels: as different from each other as possible, the same for a label in every picture."""

from __future__ import annotations

from functools import cache

import numpy as np


BACKGROUND = (40, 40, 40)  # of a label called "background", and of pixels without a label
_FIRST = (0, 114, 178)  # Okabe and Ito's blue
_STEPS = 14  # candidates of each channel


def palette(count: int, background: int | None = None) -> np.ndarray:
    """(count, 3) uint8: RGB colours of labels 0..count-1.

    Each colour is the one furthest, in CIELAB, from all before it, so the first ones differ most and a longer palette
    begins with a shorter one; very dark, very light, grey and glaring colours are left out. Beyond 256, they repeat.

    Args:
        count: how many.
        background: the label that gets a dark grey.

    Example:

    ```python
    >>> palette(3).tolist()
    [[0, 114, 178], [177, 235, 78], [255, 98, 59]]
    ```
    """
    if count < 0:
        raise ValueError(f"count: got {count}; want 0 or more")
    colours = _distinct()[np.arange(count) % 256]
    if background is not None:
        colours[background] = BACKGROUND
    return colours


def text_colour(colour: np.ndarray | tuple[int, ...]) -> tuple[int, int, int]:
    """Black or white, whichever is easier to read on `colour`.

    >>> text_colour((250, 250, 0)), text_colour((0, 0, 90))
    ((0, 0, 0), (255, 255, 255))
    """
    return (0, 0, 0) if _lightness(np.asarray(colour, dtype=np.float64)) > 55 else (255, 255, 255)


@cache
def _distinct() -> np.ndarray:
    values = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(values, values, values), -1).reshape(-1, 3)
    lab = _lab(candidates)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    kept = (lab[:, 0] > 30) & (lab[:, 0] < 88) & (chroma > 25) & (chroma < 80)
    candidates, lab = candidates[kept], lab[kept]
    chosen = [np.array(_FIRST, dtype=np.uint8)]
    distance = np.full(len(lab), np.inf)
    for place in (_lab(np.array([_FIRST]))[0], _lab(np.array([BACKGROUND]))[0]):
        distance = np.minimum(distance, ((lab - place) ** 2).sum(1))
    while len(chosen) < 256:
        best = int(distance.argmax())
        chosen.append(candidates[best])
        distance = np.minimum(distance, ((lab - lab[best]) ** 2).sum(1))
    return np.array(chosen)


def _lab(colours: np.ndarray) -> np.ndarray:
    """sRGB (N, 3) in 0..255 to CIELAB (D65)."""
    linear = colours / 255.0
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def _lightness(colour: np.ndarray) -> float:
    return float(_lab(colour[None])[0, 0])


__all__ = ["BACKGROUND", "palette", "text_colour"]
