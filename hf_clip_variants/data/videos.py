"""Videos as frames, read and written one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..optional_dependencies import require


if TYPE_CHECKING:
    from PIL import Image

VIDEO_EXTENSIONS = frozenset(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .ogv".split())


def is_video_name(name: str) -> bool:
    """By its extension.

    >>> is_video_name("clip.MP4"), is_video_name("clip.png")
    (True, False)
    """
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS


def read_frames(path: str | os.PathLike) -> Iterator[tuple[float, Image.Image]]:
    """(seconds, RGB image) of each frame of a video file, upright, in the order of their times; `Video.all_frames`.

    Raises:
        ImportError: PyAV is not installed.
        OSError: no such file, no video in it, or none of its frames can be decoded.
    """
    from ..modeling.video.video_decoding import open_video

    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with open_video(path) as video:
            yield from video.all_frames()
    except ValueError as error:
        raise OSError(f"{path}: {str(error).replace(f' in {os.fspath(path)!r}', '')}") from error


class VideoWriter:
    """Writes frames of one size to an H.264 file that is there when all are written, and not before.

    Frame times are kept to the millisecond. Odd sides lose a row or column, as H.264 needs. `rate` says how long
    the last one is shown; `options` are the encoder's, such as `{"crf": "12"}`.

    ```python
    with VideoWriter("out.mp4") as writer:
        for seconds, image in read_frames("clip.mp4"):
            writer.add(seconds, image)
    ```
    """

    def __init__(self, path: str | os.PathLike, rate: float = 30, options: dict[str, str] | None = None):
        self.path, self.rate = Path(path), Fraction(rate).limit_denominator(1001)
        self.options = options or {}
        self._av = require("av", "Writing videos")
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> VideoWriter:
        from ..files.atomic_writes import replacing  # brings torch, which names of files do not need

        self._replacing = replacing(self.path)
        self._container = self._av.open(str(self._replacing.__enter__()), "w", format="mp4")
        return self

    def add(self, seconds: float, image: Image.Image) -> None:
        """The next frame, at this time."""
        pixels = np.asarray(image.convert("RGB"))
        pixels = pixels[: max(pixels.shape[0] // 2 * 2, 2), : max(pixels.shape[1] // 2 * 2, 2)]
        if pixels.shape[0] % 2 or pixels.shape[1] % 2:
            pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self.rate)
            self._stream.height, self._stream.width = pixels.shape[:2]
            self._stream.pix_fmt, self._stream.options = "yuv420p", self.options
            self._stream.codec_context.time_base = Fraction(1, 1000)
        elif pixels.shape[:2] != (self._stream.height, self._stream.width):
            height, width = pixels.shape[:2]
            raise ValueError(
                f"image: {width} x {height}; want {self._stream.width} x {self._stream.height}, as the first"
            )
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        self._last = max(round(1000 * seconds), self._last + 1)
        frame.pts, frame.time_base = self._last, Fraction(1, 1000)
        frame.duration = round(1000 / self.rate)  # of the last one, no other frame tells it
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
        finally:
            self._replacing.__exit__(kind, error, trace)


__all__ = ["VIDEO_EXTENSIONS", "VideoWriter", "is_video_name", "read_frames"]
