"""HEIC images, as phones take them: Pillow reads them when pillow-heif is installed."""

import functools

from ...optional_dependencies import missing, require


# Of the ISO base media format: bytes 8 to 12 of the file, behind "ftyp". AVIF has others, and Pillow reads it.
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

WHAT_IS_NEEDED = str(missing("pillow_heif", "A HEIC image"))


@functools.cache
def heic_is_readable() -> bool:
    """Whether Pillow can open HEIC images; it can after this call if pillow-heif is installed."""
    try:
        pillow_heif = require("pillow_heif", "A HEIC image")
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def starts_as_heic(head: bytes) -> bool:
    """Whether a file that begins with these bytes (12 or more) is a HEIC image, whatever its name says.

    >>> starts_as_heic(bytes.fromhex("0000001c66747970") + b"heic")
    True
    """
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


__all__ = ["WHAT_IS_NEEDED", "heic_is_readable", "starts_as_heic"]
