"""Small images within a page, so that it opens without any other file."""

import base64
import io

from PIL import Image


def thumbnail(image: Image.Image, side: int) -> str:
    """A `data:` URL of the image on white, at most `side` pixels wide and high, as PNG.

    >>> thumbnail(Image.new("RGB", (300, 200), "red"), 64)[:30]
    'data:image/png;base64,iVBORw0K'
    """
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image)
    background = background.convert("RGB")
    background.thumbnail((side, side))
    buffer = io.BytesIO()
    background.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


__all__ = ["thumbnail"]
