"""Pictures of detections: the image with boxes, masks, names and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from .detections import Detections
from .legend import Entry, font_for, with_legend, writable
from .overlays import flat_rgb, shown_size
from .palette import palette, text_colour


def draw_detections(
    image: Image.Image,
    found: Detections,
    names: Mapping[int, str] | Sequence[str],
    *,
    opacity: float = 0.4,
    legend: bool = True,
    enlarge: bool = True,
    title: str = "",
) -> Image.Image:
    """An image with its objects on it, best last, and a legend that counts them.

    Args:
        image: any mode.
        found: needs `class_id`; `confidence` is written behind the names, `mask` is coloured.
        names: name of each label.
        opacity: of the masks, in 0..1.
        legend: with `with_legend`.
        enlarge: small images are enlarged and large ones reduced, so that text is readable.
        title: of the legend.

    Returns:
        RGB.

    Example:

    ```python
    >>> found = Detections([[2, 2, 6, 6]], confidence=[0.9], class_id=[0])
    >>> draw_detections(Image.new("RGB", (8, 8), "white"), found, ["cat"], legend=False).size
    (320, 320)
    ```
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: got {opacity}; want 0..1")
    if found.class_id is None:
        raise ValueError("found: no class_id; want the label of each box")
    named = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    if unknown := sorted({int(n) for n in found.class_id} - named.keys()):
        raise ValueError(f"names: none of label {unknown[0]}")
    colours = palette(max(named, default=-1) + 1)
    size = shown_size(image.size) if enlarge else image.size
    smaller = size[0] < image.width
    picture = flat_rgb(image).resize(size, Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC)
    order = np.arange(len(found)) if found.confidence is None else np.argsort(found.confidence, kind="stable")
    if found.mask is not None and len(found):
        picture = _with_masks(picture, found, order, colours, opacity)
    draw = ImageDraw.Draw(picture)
    scale = np.array([size[0] / image.width, size[1] / image.height] * 2)
    width = max(1, round(min(size) / 160))
    for place in order:
        label = int(found.class_id[place])
        left, top, right, bottom = (found.xyxy[place] * scale).round().astype(int).tolist()
        right, bottom = max(left, right - 1), max(top, bottom - 1)
        draw.rectangle((left, top, right, bottom), outline=tuple(map(int, colours[label])), width=width)
    for place in order:
        label = int(found.class_id[place])
        text = writable(named[label], label)
        if found.confidence is not None:
            text += f" {found.confidence[place]:.2f}"
        corner = (found.xyxy[place] * scale).round().astype(int).tolist()[:2]
        _write(draw, corner, text, colours[label], size)
    if not legend:
        return picture
    counts = np.bincount(found.class_id, minlength=1) if len(found) else np.zeros(1, int)
    present = [label for label in np.argsort(-counts, kind="stable").tolist() if counts[label]]
    entries = [Entry(tuple(map(int, colours[n])), named[n], str(counts[n]), n) for n in present]
    return with_legend(picture, entries, title)


def _with_masks(
    picture: Image.Image, found: Detections, order: np.ndarray, colours: np.ndarray, opacity: float
) -> Image.Image:
    pixels = np.asarray(picture).astype(np.float32)
    for place in order:
        mask = Image.fromarray(found.mask[place]).resize(picture.size, Image.Resampling.NEAREST)
        inside = np.asarray(mask)
        pixels[inside] = pixels[inside] * (1 - opacity) + colours[int(found.class_id[place])] * opacity
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _write(draw: ImageDraw.ImageDraw, corner: list[int], text: str, colour: np.ndarray, size: tuple[int, int]) -> None:
    """Above the corner of a box, or inside where there is no room."""
    font = font_for(text, min(20, max(11, round(min(size) / 32))))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font, anchor="lt")
    width, height = right - left + 6, bottom - top + 4
    x = max(0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else min(corner[1], max(0, size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=tuple(map(int, colour)))
    draw.text((x + 3, y + 2), text, font=font, fill=text_colour(colour), anchor="lt")


__all__ = ["draw_detections"]
