"""Pictures of depth: near is light, far is dark, with a legend; and depth maps as files for other programs."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .legend import Entry, with_legend


# From near to far; each is darker than the one before, also in grey.
_COLOURS = ((252, 240, 165), (253, 174, 97), (229, 92, 72), (158, 42, 99), (84, 24, 107), (20, 12, 52))
_GAP = 4
_STEPS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # of a 16-bit file, in the unit of depth
_LARGEST = 65535


def depth_colours(depth: np.ndarray, nearest: float, farthest: float) -> np.ndarray:
    """(…) -> (…, 3) uint8: colours of depths between these two, on a logarithmic scale; outside as at the ends.

    >>> depth_colours(np.array([1.0, 4.0]), 1.0, 4.0).tolist()
    [[252, 240, 165], [20, 12, 52]]
    """
    depth = np.asarray(depth, dtype=np.float64)
    if not np.isfinite(depth).all() or (depth <= 0).any() or not 0 < nearest <= farthest < np.inf:
        raise ValueError("depth, nearest, farthest: expected finite depths above 0, the nearest one first")
    spread = max(np.log(farthest / nearest), 1e-12)
    place = np.clip(np.log(depth / nearest) / spread, 0, 1) * (len(_COLOURS) - 1)
    grid = np.arange(len(_COLOURS))
    channels = [np.interp(place, grid, [colour[channel] for colour in _COLOURS]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def draw_depth(
    image: Image.Image,
    depth: np.ndarray,
    words: Sequence[tuple[str, float, float]] = (),
    title: str = "",
) -> Image.Image:
    """An image beside its depth (H, W) in colours, with the words that it was read from.

    Args:
        image: RGB, of the depth's size.
        depth: above 0.
        words: text, the depth that it stands for, its share of the image in 0..1. Colours go from the smallest to the
            largest of these depths; without words, of the depth itself.
        title: above the legend.

    >>> draw_depth(Image.new("RGB", (60, 40)), np.full((40, 60), 2.0), [("near", 1.0, 0.5), ("far", 3.0, 0.5)]).height
    40
    """
    depth = np.asarray(depth, dtype=np.float64)
    if depth.shape != image.size[::-1]:
        raise ValueError(
            f"depth: got {list(depth.shape)}; want {list(image.size[::-1])}, the image's height and width"
        )
    ends = [at for _, at, _ in words] or [float(depth.min()), float(depth.max())]
    coloured = Image.fromarray(depth_colours(depth, min(ends), max(ends)))
    sheet = Image.new("RGB", (2 * image.width + _GAP, image.height), "white")
    sheet.paste(image.convert("RGB"), (0, 0))
    sheet.paste(coloured, (image.width + _GAP, 0))
    entries = [
        Entry(
            tuple(map(int, depth_colours(np.array(at), min(ends), max(ends)))),
            f"{word} ({at:g})",
            f"{100 * share:.1f} %",
            number,
        )
        for number, (word, at, share) in enumerate(words)
    ]
    return with_legend(sheet, entries, title)


def depth_file(depth: np.ndarray) -> tuple[bytes, float]:
    """A PNG with 16 bits a pixel, 0 where the depth is not known, and what a step of it is in the unit of depth: 0.001
    (of metres, millimetres) if the farthest one fits.

    >>> content, step = depth_file(np.array([[1.0, 2.5, np.nan]]))
    >>> np.asarray(Image.open(io.BytesIO(content))).tolist(), step
    ([[1000, 2500, 0]], 0.001)
    """
    depth = np.nan_to_num(np.asarray(depth, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if depth.ndim != 2 or not depth.size or (depth < 0).any():
        raise ValueError(f"depth: got {list(depth.shape)}; want (height, width), none below 0")
    step = next((step for step in _STEPS if depth.max() / step <= _LARGEST), None)
    if step is None:
        raise ValueError(f"depth: up to {depth.max():g}; want at most {_LARGEST * _STEPS[-1]:g}")
    stream = io.BytesIO()
    Image.fromarray((depth / step).round().astype(np.uint16)).save(stream, format="PNG")
    return stream.getvalue(), step


__all__ = ["depth_colours", "depth_file", "draw_depth"]
