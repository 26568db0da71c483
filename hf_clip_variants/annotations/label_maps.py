"""Label maps as PNG files: pixels are labels, colours come with the file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ..files.atomic_writes import write_atomically
from .palette import palette


def label_map_png(label_map: np.ndarray, names: Mapping[int, str] | Sequence[str] = ()) -> bytes:
    """A label map as a PNG file: `np.asarray(Image.open(file))` is the map again.

    Up to label 255 it has a palette (8 bits), so viewers show `palette`'s colours; beyond, it is a 16-bit grey image.

    Args:
        label_map: (H, W) integers in 0..65535.
        names: of the labels; one called "background" gets its colour.

    Example:

    ```python
    >>> file = label_map_png(np.array([[0, 3], [255, 1]]))
    >>> np.asarray(Image.open(BytesIO(file))).tolist()
    [[0, 3], [255, 1]]
    ```
    """
    label_map = np.asarray(label_map)
    if label_map.ndim != 2 or label_map.dtype.kind not in "iu" or not label_map.size:
        raise ValueError(f"label_map: got {label_map.dtype} of shape {label_map.shape}; want integers of shape (H, W)")
    low, high = int(label_map.min()), int(label_map.max())
    if low < 0 or high > 65535:
        raise ValueError(f"label_map: got the label {low if low < 0 else high}; want 0..65535")
    if high < 256:
        image = Image.fromarray(label_map.astype(np.uint8)).convert("P")
        named = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        background = next((label for label, name in named.items() if name == "background" and label < 256), None)
        image.putpalette(palette(256, background).tobytes())
    else:
        image = Image.fromarray(label_map.astype(np.uint16))
    content = BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def save_label_map(
    label_map: np.ndarray, path: str | os.PathLike, names: Mapping[int, str] | Sequence[str] = ()
) -> Path:
    """Writes `label_map_png` to a file, in one step."""
    return write_atomically(path, label_map_png(label_map, names))


__all__ = ["label_map_png", "save_label_map"]
