"""Pictures of the progress: an animation, and a strip of some of its frames."""

import io
from collections.abc import Sequence

from PIL import Image


HOLD = 1500  # milliseconds that the last frame stays
EACH = 90


def animation(frames: Sequence[Image.Image]) -> bytes:
    """A GIF that plays the frames forever and stays at the last one."""
    if not frames:
        raise ValueError("frames: none, expected pictures")
    times = [EACH] * (len(frames) - 1) + [HOLD]
    content = io.BytesIO()
    first, *rest = [frame.convert("RGB").quantize(128, dither=Image.Dither.NONE) for frame in frames]
    first.save(content, format="GIF", save_all=True, append_images=rest, duration=times, loop=0, optimize=False)
    return content.getvalue()


def strip(frames: Sequence[Image.Image], count: int = 6, gap: int = 6) -> Image.Image:
    """`count` of the frames, evenly spaced from the first to the last, in one row on white."""
    if not frames:
        raise ValueError("frames: none, expected pictures")
    count = min(count, len(frames))
    chosen = [frames[round(place * (len(frames) - 1) / max(1, count - 1))] for place in range(count)]
    return sheet([[frame.convert("RGB") for frame in chosen]], gap)


def sheet(rows: Sequence[Sequence[Image.Image]], gap: int = 6) -> Image.Image:
    """Rows of pictures of equal size on white: a contact sheet."""
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    whole = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap), "white")
    for line, row in enumerate(rows):
        for column, picture in enumerate(row):
            whole.paste(picture.convert("RGB"), (gap + column * (width + gap), gap + line * (height + gap)))
    return whole


__all__ = ["animation", "sheet", "strip"]
