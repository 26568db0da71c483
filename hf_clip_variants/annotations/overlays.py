"""Pictures of label maps: the image with coloured regions, their names on them, and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from .legend import Entry, font_for, with_legend, writable
from .palette import palette, text_colour


LARGEST_SIDE, SMALLEST_SIDE = 1600, 320  # of the picture without its legend
_NAMED_SHARE = 0.015  # a region of less than this share of the image gets no name on it


def draw_overlay(
    image: Image.Image,
    label_map: np.ndarray,
    names: Mapping[int, str] | Sequence[str],
    *,
    opacity: float = 0.55,
    hidden: Sequence[int] = (),
    colours: np.ndarray | None = None,
    legend: bool = True,
    region_names: bool = True,
    title: str = "",
) -> Image.Image:
    """An image with its label map over it, and a legend with the share of the image that each label has.

    Small images are enlarged and large ones reduced, so that text is readable. Labels that are not there are not in
    the legend. A label that is not in `names` (255, where pixels are ignored) is left uncoloured.

    Args:
        image: any mode; the label map is of its size, or is stretched to it.
        label_map: (H, W) integers.
        names: name of each label.
        opacity: of the colours, in 0..1.
        hidden: labels that are left uncoloured and unnamed, such as a background; the legend lists them all the same.
        colours: (labels, 3) uint8, by label; default: `palette`.
        legend: with `with_legend`.
        region_names: whether names are written on large regions.
        title: of the legend.

    Returns:
        RGB.

    Example:

    ```python
    >>> image = Image.new("RGB", (8, 8), "white")
    >>> label_map = np.zeros((8, 8), np.uint8)
    >>> label_map[:, 4:] = 1
    >>> draw_overlay(image, label_map, ["sky", "cat"], legend=False).size
    (320, 320)
    ```
    """
    label_map = np.asarray(label_map)
    if label_map.ndim != 2 or label_map.dtype.kind not in "iu" or not label_map.size:
        raise ValueError(f"label_map: got {label_map.dtype} of shape {label_map.shape}; want integers of shape (H, W)")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: got {opacity}; want 0..1")
    named = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    if any(label < 0 for label in named):
        raise ValueError(f"names: got the label {min(named)}; want labels from 0")
    if colours is None:
        background = next((label for label, name in named.items() if name == "background"), None)
        colours = palette(max(named, default=-1) + 1, background)
    present, counts = _counts(label_map)
    shares = {
        int(label): count / label_map.size
        for label, count in sorted(zip(present, counts, strict=True), key=lambda pair: -pair[1])
        if int(label) in named
    }
    size = shown_size(image.size)
    smaller = size[0] < image.width
    base = np.asarray(flat_rgb(image).resize(size, Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC))
    shown = _stretched(label_map, size)
    table = np.zeros((max(int(shown.max(initial=0)) + 1, len(colours) + 1), 3), dtype=np.float32)
    weight = np.zeros(len(table), dtype=np.float32)
    for label in shares:
        table[label] = colours[label]
        weight[label] = 0.0 if label in hidden else opacity
    index = np.where(shown < 0, len(table) - 1, shown)
    alpha = weight[index][..., None]
    pixels = base * (1 - alpha) + table[index] * alpha
    edges = _edges(index)
    pixels[edges] = np.where(weight[index][edges][:, None] > 0, table[index][edges] * 0.6, pixels[edges])
    picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    if region_names:
        for label, share in shares.items():
            if share >= _NAMED_SHARE and label not in hidden:
                _write_name(picture, shown == label, writable(named[label], label), colours[label])
    if not legend:
        return picture
    entries = [Entry(tuple(map(int, colours[n])), named[n], f"{100 * s:.1f} %", n) for n, s in shares.items()]
    return with_legend(picture, entries, title)


def _counts(label_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels that are there, and their pixels; without sorting the pixels where it can be."""
    if label_map.dtype.itemsize > 2 or label_map.dtype.kind == "i":
        return np.unique(label_map, return_counts=True)
    counts = sum(np.bincount(row, minlength=1 << 16) for row in np.array_split(label_map.reshape(-1), 16))
    present = np.flatnonzero(counts)
    return present, counts[present]


def flat_rgb(image: Image.Image) -> Image.Image:
    """RGB; what is transparent is white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, (0, 0), image)
        return canvas
    return image.convert("RGB")


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that a picture of an image of this (width, height) has."""
    longer = max(size)
    factor = LARGEST_SIDE / longer if longer > LARGEST_SIDE else max(1.0, SMALLEST_SIDE / longer)
    width, height = (max(1, round(side * factor)) for side in size)
    return width, height


def _stretched(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) of another size, by the nearest pixel."""
    rows = ((np.arange(size[1]) + 0.5) * label_map.shape[0] / size[1]).astype(int)
    columns = ((np.arange(size[0]) + 0.5) * label_map.shape[1] / size[0]).astype(int)
    return label_map[rows[:, None], columns].astype(np.int64)


def _edges(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose left or upper neighbour has another label."""
    edges = np.zeros(labels.shape, dtype=bool)
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return edges


def _write_name(picture: Image.Image, mask: np.ndarray, name: str, colour: np.ndarray) -> None:
    """The name on its colour, in the middle of the widest place of its region, where it fits."""
    size = min(22, max(12, round(min(picture.size) / 28)))
    font, draw = font_for(name, size), ImageDraw.Draw(picture)
    x, y, radius = _widest_place(mask)
    left, top, right, bottom = draw.textbbox((x, y), name, font=font, anchor="mm")
    if radius * 4 < bottom - top or right - left > picture.width - 4:
        return
    shift_x = max(0, 3 - left) - max(0, right + 3 - picture.width)
    shift_y = max(0, 2 - top) - max(0, bottom + 2 - picture.height)
    box = (left + shift_x - 3, top + shift_y - 2, right + shift_x + 3, bottom + shift_y + 2)
    draw.rounded_rectangle(box, radius=3, fill=tuple(map(int, colour)))
    draw.text((x + shift_x, y + shift_y), name, font=font, fill=text_colour(colour), anchor="mm")


def _widest_place(mask: np.ndarray) -> tuple[int, int, float]:
    """(x, y) of a pixel deep inside a mask, and about how far the edge is; on a coarse grid of 96 cells."""
    step = max(1, max(mask.shape) // 96)
    rows, columns = (min(step // 2, side - 1) for side in mask.shape)
    inside = np.pad(mask[rows::step, columns::step], 1)
    if not inside.any():  # thinner than the grid
        y, x = (int(value) for value in np.argwhere(mask)[len(np.flatnonzero(mask)) // 2])
        return x, y, 0.5
    depth = 0
    while True:
        smaller = inside.copy()
        smaller[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        if not smaller.any():
            break
        inside, depth = smaller, depth + 1
    cells = np.argwhere(inside) - 1
    y, x = cells[np.abs(cells - cells.mean(0)).sum(1).argmin()]
    return int(x * step + columns), int(y * step + rows), (depth + 0.5) * step


__all__ = ["LARGEST_SIDE", "SMALLEST_SIDE", "draw_overlay", "flat_rgb", "shown_size"]
