"""Backgrounds of scenes: drawn (colours, noise, checks), or made of other pictures (clip art, photographs)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


Draw = Callable[[tuple[int, int], np.random.Generator], Image.Image]  # (width, height) -> RGB image
_TEXT_COLUMNS = ("title", "caption", "name", "tags")


def background_drawers(backgrounds: Sequence[str], class_names: Iterable[str]) -> list[tuple[str, Draw]]:
    """(kind, function that draws one) for each name; see `SceneMaker` for the names.

    Raises:
        ValueError: none given, an unknown name, or a file with no picture that can be used.
    """
    if isinstance(backgrounds, str):
        backgrounds = [backgrounds]
    drawers = []
    for name in backgrounds:
        kind, colon, path = name.partition(":")
        if name in _DRAWN:
            drawers.append((name, _DRAWN[name]))
        elif colon and kind in ("cover", "scatter"):
            pictures = _Pictures(path, class_names)
            drawers.append((kind, pictures.cover if kind == "cover" else pictures.scatter))
        else:
            raise ValueError(
                f"backgrounds: got {name!r}; want {', '.join(_DRAWN)}, cover:<file.parquet> or scatter:<file.parquet>"
            )
    if not drawers:
        raise ValueError("backgrounds is empty; want at least one")
    return drawers


def _colour(generator: np.random.Generator) -> np.ndarray:
    return generator.integers(0, 256, 3)


def _plain(size, generator) -> Image.Image:
    return Image.new("RGB", size, tuple(int(c) for c in _colour(generator)))


def _white(size, generator) -> Image.Image:
    return Image.new("RGB", size, "white")


def _gradient(size, generator) -> Image.Image:
    corners = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def _noise(size, generator) -> Image.Image:
    """Clouds: noise of three grain sizes, added."""
    total = np.zeros((size[1], size[0], 3), dtype=np.float32)
    for cells, weight in ((3, 1.0), (8, 0.6), (24, 0.4)):
        grid = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += weight * np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    return Image.fromarray((total / 2.0).round().astype(np.uint8))


def _checks(size, generator) -> Image.Image:
    colours = generator.integers(0, 256, (2, 3), dtype=np.uint8)
    cell = int(generator.integers(4, max(5, min(size) // 3) + 1))
    rows, columns = np.indices((size[1], size[0])) // cell
    return Image.fromarray(colours[(rows + columns) % 2])


_DRAWN: dict[str, Draw] = {"plain": _plain, "gradient": _gradient, "noise": _noise, "checks": _checks, "white": _white}


class _Pictures:
    """Pictures of a Parquet file, less those whose text has a word in common with a class name (synonyms stay)."""

    def __init__(self, path: str, class_names: Iterable[str]):
        import pyarrow.parquet

        if not Path(path).is_file():
            raise ValueError(f"backgrounds: no such file: {path}")
        schema = pyarrow.parquet.read_schema(path)
        if "image" not in schema.names:
            raise ValueError(f"backgrounds: {path} has no column image; it has {', '.join(schema.names)}")
        texts = [column for column in _TEXT_COLUMNS if column in schema.names]
        table = pyarrow.parquet.read_table(path, columns=["image", *texts])
        named = {word for name in class_names for word in _words(name)}
        kept = [i for i, row in enumerate(table.select(texts).to_pylist()) if not named & _words(row.values())]
        if not texts:
            kept = list(range(len(table)))
        if not kept:
            raise ValueError(f"backgrounds: every picture of {path} names a class")
        self._images = table.column("image").take(kept)

    def _draw(self, generator) -> Image.Image:
        row: dict[str, Any] = self._images[int(generator.integers(len(self._images)))].as_py()
        return Image.open(BytesIO(row["bytes"])).convert("RGBA")

    def cover(self, size, generator) -> Image.Image:
        """One picture, enlarged until it covers the scene, on a colour."""
        canvas, picture = _plain(size, generator), self._draw(generator)
        picture = picture.crop(picture.getchannel("A").getbbox())
        factor = max(size[0] / picture.width, size[1] / picture.height)
        picture = picture.resize([max(1, round(side * factor)) for side in picture.size], Image.Resampling.BICUBIC)
        left, top = (int(generator.integers(0, max(0, p - s) + 1)) for p, s in zip(picture.size, size, strict=True))
        canvas.paste(picture, (-left, -top), picture)
        return canvas

    def scatter(self, size, generator) -> Image.Image:
        """Six to twelve small pictures at random places on a drawn background."""
        canvas = list(_DRAWN.values())[int(generator.integers(len(_DRAWN)))](size, generator)
        for _ in range(int(generator.integers(6, 13))):
            side = max(1, round(min(size) * float(generator.uniform(0.08, 0.25))))
            picture = self._draw(generator).resize((side, side), Image.Resampling.BICUBIC)
            place = [int(generator.integers(-(side // 3), max(1, extent - side // 2))) for extent in size]
            canvas.paste(picture, tuple(place), picture)
        return canvas


def _words(text: Any) -> set[str]:
    """Words of three letters or more, without a plural's s, in lower case; of a text or of texts."""
    if not isinstance(text, str):
        return set().union(*map(_words, text or ()))
    return {word.removesuffix("s") for word in re.findall(r"[^\W\d_]{3,}", text.lower())} - {"the", "and", "with"}


__all__ = ["Draw", "background_drawers"]
