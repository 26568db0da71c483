"""What all readers of images share: file extensions, column names, tidy class names. Imports nothing of the
package."""

import unicodedata
from collections.abc import Iterable


IMAGE_EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .ico .jp2 .avif .tga".split()
)
# The usual names, tried in this order.
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "path", "file", "filename", "file_name", "image_path", "filepath")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "name")


def tidy_class_name(name: str, clean: bool = True) -> str:
    """NFC always; with `clean`, underscores become spaces and runs of white space one space.

    >>> tidy_class_name("golden_retriever ")
    'golden retriever'
    """
    name = unicodedata.normalize("NFC", name)
    return " ".join(name.replace("_", " ").split()) if clean else name


def usual_column(columns: Iterable[str], usual: Iterable[str]) -> str | None:
    """The column that has the first of the usual names, whatever its case; None if no column has one.

    >>> usual_column(["id", "Caption", "Photo"], ("image", "photo"))
    'Photo'
    """
    by_lower = {column.lower(): column for column in columns}
    return next((by_lower[name] for name in usual if name in by_lower), None)
