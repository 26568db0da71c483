"""Names that every reader of images agrees on: file name extensions, columns, tidy class names. A leaf: imports
nothing of the package."""

import unicodedata


IMAGE_EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .ico .jp2 .avif .tga".split()
)
# In the order in which they are looked for.
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "path", "file", "filename", "file_name", "image_path", "filepath")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "name")


def tidy_class_name(name: str, clean: bool = True) -> str:
    """NFC always; with `clean`, underscores become spaces and runs of white space one space.

    >>> tidy_class_name("golden_retriever ")
    'golden retriever'
    """
    name = unicodedata.normalize("NFC", name)
    return " ".join(name.replace("_", " ").split()) if clean else name
