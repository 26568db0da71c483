"""What all readers of images share: file extensions, column names, tidy class names."""

import os.path
import unicodedata
from collections.abc import Iterable, Mapping

from .heic import WHAT_IS_NEEDED, heic_is_readable


IMAGE_EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .ico .jp2 .avif .tga".split()
)
HEIC_EXTENSIONS = frozenset((".heic", ".heif", ".hif"))
NO_DATA_FILES = frozenset(("thumbs.db", "desktop.ini"))  # that Windows puts into folders of images
_SPELLINGS = {"train": "train training", "validation": "validation valid val dev", "test": "test testing"}
SPLIT_ALIASES = {spelling: split for split, spellings in _SPELLINGS.items() for spelling in spellings.split()}
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


def is_image_name(name: str) -> bool:
    """Whether a file of this name is read as an image: by its suffix, and not if the name begins with a dot.

    >>> is_image_name("cat/1.JPG"), is_image_name("cat/._1.jpg"), is_image_name("cat/1.txt")
    (True, False, False)
    """
    if os.path.basename(name).startswith("."):
        return False
    suffix = os.path.splitext(name)[1].lower()
    return suffix in IMAGE_EXTENSIONS or (suffix in HEIC_EXTENSIONS and heic_is_readable())


def left_out_suffix(name: str) -> str | None:
    """The suffix of a file that is left out among images; None for an image and for what no user put there.

    >>> [left_out_suffix(name) for name in ("cat/1.Xml", "1.png", ".DS_Store", "LICENSE")]
    ['.xml', None, None, 'without suffix']
    """
    file = os.path.basename(name).lower()
    if is_image_name(name) or file.startswith(".") or file in NO_DATA_FILES:
        return None
    return os.path.splitext(file)[1] or "without suffix"


def count_left_out(suffixes: Mapping[str, int]) -> str:
    """How many files of which suffix are left out, and what reads them.

    >>> count_left_out({".xml": 3, ".mp4": 1})
    '3 .xml, 1 .mp4'
    """
    text = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items(), key=lambda c: (-c[1], c[0])))
    return f"{text} ({WHAT_IS_NEEDED})" if HEIC_EXTENSIONS & set(suffixes) else text
