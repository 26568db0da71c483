"""Images of an opened file as they are stored: what decoding them costs, and parts of them as RGB.

A file of 20 KB may hold 169 million pixels. The memory that decoding takes is estimated from the header, before it is
taken, and all threads share one budget of it. Large images stay in their own mode; rows are turned upright and
converted when they are asked for.
"""

import contextlib
import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator

import PIL.Image


MAX_DECODED_BYTES = 900 * 2**20  # of one image and its conversion; what would take more is refused
LARGE_PIXELS = 8_000_000  # from here on, an image is converted in strips
SCAN_PIXELS = 10_000_000  # a JPEG with more is searched for its number of scans
STRIP_PIXELS = 2_000_000
MAX_SCANS = 100  # of a large progressive JPEG; encoders make about ten, and each takes as long as the image

_T = PIL.Image.Transpose
_TO_UPRIGHT = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE, 6: _T.ROTATE_270}
_TO_UPRIGHT |= {7: _T.TRANSVERSE, 8: _T.ROTATE_90}
_ORIENTATION_TAG = 0x0112
_ONE_BYTE_MODES = ("1", "L", "P")
_TWO_BYTE_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_OF_ROW = 16  # bytes; Pillow has pointers to rows, which count where a row has few pixels
# Bytes a pixel that decoders keep beside Pillow's image, at the most.
_BESIDE = {"WEBP": 8, "AVIF": 12, "HEIF": 12, "JPEG2000": 16, "TIFF": 0, "PSD": 4, "DDS": 4}
# Their entries are whole files, whose headers are read as late as their pixels.
_HOLDS_FILES = ("ICO", "ICNS", "CUR")


class MemoryBudget:
    """So many bytes may be reserved at once; who asks for more waits, in the order of asking.

    Somebody who wants more than a third gets all of it, alone: that little memory must do for large images.
    """

    def __init__(self, size: int):
        self.size = size
        self._start()
        if hasattr(os, "register_at_fork"):  # a child has none of the threads that hold something
            os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        self.free = self.size
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextlib.contextmanager
    def reserve(self, wanted: int) -> Iterator[None]:
        """Inside, `wanted` bytes are taken. Not to be nested in one thread."""
        wanted, ticket = self.size if 3 * wanted > self.size else max(wanted, 0), object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self.free >= wanted)
                self.free -= wanted
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.free += wanted
                self._changed.notify_all()


DECODED_IMAGES = MemoryBudget(512 * 2**20)


def pixel_bytes(image: PIL.Image.Image) -> int:
    """Bytes that Pillow keeps for each pixel."""
    return 1 if image.mode in _ONE_BYTE_MODES else 2 if image.mode in _TWO_BYTE_MODES else 4


def decoding_bytes(image: PIL.Image.Image, divisor: int = 1) -> int:
    """Bytes that `load` of an opened file will take at the most; of a JPEG, also at a `divisor`th of its size."""
    count = image.width * image.height
    if image.format in _HOLDS_FILES:
        return MAX_DECODED_BYTES
    # Floats are converted as a whole.
    own = count * (12 if image.mode == "F" else pixel_bytes(image)) // divisor**2 + _OF_ROW * image.height // divisor
    if image.format == "JPEG":
        return own + _coefficients(image)
    if image.format == "TIFF" and image.info.get("compression") not in (None, "raw"):
        return own + _tiff_part(image)
    return own + count * _BESIDE.get(image.format, 0)


def conversion_bytes(image: PIL.Image.Image, divisor: int = 1) -> int:
    """Bytes that the conversion takes beside the decoded image, of the whole of it or of a strip at a time."""
    width, height = image.width // divisor, image.height // divisor
    # RGB in Pillow (4 bytes) and as an array (3), at most twice. A strip has a row, or where it is turned a column.
    return 11 * (width * height if width * height <= LARGE_PIXELS else max(STRIP_PIXELS, width, height))


def _coefficients(image) -> int:
    """Bytes of what libjpeg keeps of a progressive JPEG: coefficients of 16 bits at its full size."""
    if not image.info.get("progressive"):
        return 0
    samples = [layer[1] * layer[2] for layer in image.layer]
    return int(2 * image.width * image.height * sum(samples) / max(max(samples, default=1), 1))


def _tiff_part(image) -> int:
    """Bytes of a strip or tile, which libtiff decodes as a whole."""
    tags = image.tag_v2
    bits = tags.get(258, (8,))
    bits = sum(bits) if isinstance(bits, tuple) else bits * tags.get(277, 1)
    if 322 in tags:
        return int(tags[322]) * int(tags.get(323, 1)) * bits // 8
    return min(int(tags.get(278, image.height)), image.height) * image.width * bits // 8


def prepare(image: PIL.Image.Image, name: str = "", roughly: bool = False) -> int:
    """To be called before `load` of an opened file; returns how many bytes that will take.

    A JPEG that would take more than `MAX_DECODED_BYTES` will be decoded at half its size or less, with `roughly` any
    JPEG at an eighth.

    Raises:
        ValueError: it would take too much memory or time although its size is allowed. `name` is " in " and its name.
    """
    if image.format == "EPS":
        raise ValueError(f"an EPS file{name}: it is a program, which Ghostscript would run; want an image")
    divisor = 8 if roughly else 1
    if image.format == "JPEG":
        while divisor < 8 and decoding_bytes(image, divisor) + conversion_bytes(image, divisor) > MAX_DECODED_BYTES:
            divisor *= 2
    decoded_at = divisor if image.format == "JPEG" else 1
    needed = decoding_bytes(image, decoded_at)
    form = f"{name} in a form ({image.format}, mode {image.mode}) that takes"
    _check_bytes(image, needed + conversion_bytes(image, decoded_at), form)
    if image.format == "JPEG" and image.width * image.height > SCAN_PIXELS and image.info.get("progressive"):
        place = image.fp.tell()
        image.fp.seek(0)
        scans = image.fp.read().count(b"\xff\xda")
        image.fp.seek(place)
        if scans > MAX_SCANS:
            raise ValueError(f"a JPEG of {scans} scans{name}, more than {MAX_SCANS}; save it anew")
    if divisor > 1:  # a no-op but for JPEG
        image.draft(None, (max(1, image.width // divisor), max(1, image.height // divisor)))
    return needed


def _check_bytes(image: PIL.Image.Image, needed: int, form: str) -> None:
    if needed > MAX_DECODED_BYTES:
        raise ValueError(
            f"{image.width} x {image.height} pixels{form} {needed >> 20} MiB of memory, more than "
            f"{MAX_DECODED_BYTES >> 20}; resize it"
        )


def _give_back() -> None:
    """glibc keeps what a thread has freed, hundreds of megabytes, for the same thread. Elsewhere, nothing happens."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class StoredImage:
    """A large image: `width` and `height` of its upright form, and parts of that as RGB.

    Args:
        image: loaded, as the file stores it.
        convert: an image (a part of it) -> the same in RGB; asks each pixel on its own.
    """

    def __init__(self, image: PIL.Image.Image, convert: Callable[[PIL.Image.Image], PIL.Image.Image]):
        self._image, self._convert = image, convert
        self._turn = orientation_of(image)
        swapped = self._turn in (5, 6, 7, 8)
        self.width, self.height = (image.height, image.width) if swapped else image.size

    def part(self, left: int, top: int, right: int, bottom: int) -> PIL.Image.Image:
        """The pixels of a box, upright, RGB."""
        box = _stored_box((left, top, right, bottom), self._turn, self.width, self.height)
        return self._convert(turned(self._image.crop(box), self._turn))

    def crop(self, box: tuple[int, int, int, int]) -> PIL.Image.Image:
        """`part`, called as Pillow's images are."""
        return self.part(*box)

    def whole(self, grey_stays: bool = False) -> PIL.Image.Image:
        """All of it, upright, RGB; with `grey_stays` an image of mode L where that is the same with less memory.

        Raises:
            ValueError: it would take too much memory.
        """
        image, is_plain = self._image, self._image.info.get("transparency") is None
        if grey_stays and image.mode in ("1", "L") and is_plain:
            return turned(image, self._turn).convert("L")
        if image.mode == "RGB" and is_plain and self._turn not in _TO_UPRIGHT:
            return image
        needed = (pixel_bytes(image) + 4) * image.width * image.height + conversion_bytes(image)
        _check_bytes(image, needed, f" of mode {image.mode}, which as a whole take")
        converted, top = PIL.Image.new("RGB", (self.width, self.height)), 0
        for strip in self.strips():
            converted.paste(strip, (0, top))
            top += strip.height
        return converted

    def taken(self) -> PIL.Image.Image:
        """`whole`, which then belongs to the caller; this object has nothing left."""
        image, self._image = self.whole(), None
        return image

    def close(self) -> None:
        """Gives the memory back, whoever still holds this object."""
        if self._image is not None:
            size = self._image.width * self._image.height * pixel_bytes(self._image)
            self._image.close()
            self._image = None
            if 4 * size > DECODED_IMAGES.size:
                _give_back()

    def strips(self) -> Iterator[PIL.Image.Image]:
        """All rows from top to bottom, some at a time."""
        rows = max(1, STRIP_PIXELS // self.width)
        for top in range(0, self.height, rows):
            yield self.part(0, top, self.width, min(top + rows, self.height))


def orientation_of(image: PIL.Image.Image) -> int:
    """1 to 8, as EXIF counts; 1 where none is said."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged metadata: the pixels may be fine
        return 1
    return orientation if orientation in _TO_UPRIGHT else 1


def turned(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """The image upright."""
    return image.transpose(_TO_UPRIGHT[orientation]) if orientation in _TO_UPRIGHT else image


def _stored_box(box: tuple[int, int, int, int], orientation: int, width: int, height: int) -> tuple[int, ...]:
    """Where a box of the upright image (`width` x `height`) lies in the stored one."""
    left, top, right, bottom = box
    if orientation in (2, 3, 6, 7):  # mirrored from left to right
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):  # from top to bottom
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation in (5, 6, 7, 8) else (left, top, right, bottom)


__all__ = [
    "DECODED_IMAGES",
    "LARGE_PIXELS",
    "MAX_DECODED_BYTES",
    "STRIP_PIXELS",
    "MemoryBudget",
    "StoredImage",
    "conversion_bytes",
    "decoding_bytes",
    "orientation_of",
    "prepare",
    "turned",
]
