"""Pictures of the progress: an animation, a film, and a strip of some of the frames."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..data.videos import VideoWriter
from ..modeling.strokes.stroke_drawing import image_of
from ..modeling.synthesis.synthesis_loop import SynthesisLoop


HOLD = 1500  # milliseconds that the last frame stays
EACH = 90
_PREVIEW_SIDE = 256  # pixels, at least


def animation(frames: Sequence[Image.Image]) -> bytes:
    """A GIF that plays the frames forever and stays at the last one."""
    if not frames:
        raise ValueError("frames: none, expected pictures")
    times = [EACH] * (len(frames) - 1) + [HOLD]
    content = io.BytesIO()
    first, *rest = [frame.convert("RGB").quantize(128, dither=Image.Dither.NONE) for frame in frames]
    first.save(content, format="GIF", save_all=True, append_images=rest, duration=times, loop=0, optimize=False)
    return content.getvalue()


def film(path: str | os.PathLike, frames: Sequence[Image.Image]) -> Path:
    """The animation as an MP4 file (H.264, which loses little), at once or not at all. Odd sides lose a pixel.

    Raises:
        ImportError: PyAV is missing, which the extra `video` installs.
        ValueError: no frames, or of several sizes.
    """
    if not frames:
        raise ValueError("frames: none, expected pictures")
    # One thread: the same frames give the same bytes.
    options = {"crf": "14", "preset": "veryfast", "threads": "1"}
    with VideoWriter(path, rate=1000 / EACH, options=options) as writer:
        for number, frame in enumerate(frames):
            writer.add(number * EACH / 1000, frame)
        writer.add(((len(frames) - 1) * EACH + HOLD) / 1000, frames[-1])
    return Path(path)


def strip(frames: Sequence[Image.Image], count: int = 6, gap: int = 6) -> Image.Image:
    """`count` of the frames, evenly spaced from the first to the last, in one row on white."""
    if not frames:
        raise ValueError("frames: none, expected pictures")
    count = min(count, len(frames))
    chosen = [frames[round(place * (len(frames) - 1) / max(1, count - 1))] for place in range(count)]
    return sheet([[frame.convert("RGB") for frame in chosen]], gap)


def preview_of(loop: SynthesisLoop, count: int = 12) -> Image.Image:
    """The first `count` pictures of a loop as they are, in rows of six."""
    pictures = [image_of(pixels) for pixels in loop.images(loop.samples[:count])]
    pictures = [enlarged(picture, _PREVIEW_SIDE) for picture in pictures]
    return sheet([pictures[place : place + 6] for place in range(0, len(pictures), 6)])


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """With at least `side` pixels along the longer side."""
    longer = max(picture.size)
    if longer >= side:
        return picture
    size = tuple(max(1, round(edge * side / longer)) for edge in picture.size)
    return picture.resize(size, Image.Resampling.BICUBIC)


def sheet(rows: Sequence[Sequence[Image.Image]], gap: int = 6) -> Image.Image:
    """Rows of pictures of equal size on white: a contact sheet."""
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    whole = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap), "white")
    for line, row in enumerate(rows):
        for column, picture in enumerate(row):
            whole.paste(picture.convert("RGB"), (gap + column * (width + gap), gap + line * (height + gap)))
    return whole


__all__ = ["animation", "enlarged", "film", "preview_of", "sheet", "strip"]
