"""Videos in any form as upright RGB PIL images: of a file only the frames that are asked for are decoded.

Container files (MP4, WebM, Matroska, ...) are read by PyAV, whose wheel brings FFmpeg, or by torchcodec where only
that is installed; animated GIF, WebP and PNG by Pillow; a folder of frames, a list of images and an array are videos,
too. A frame is asked for by time: the one that is shown then.
"""

import contextlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.video_utils import VideoMetadata

from ..decoding.image_decoding import DecodingRules, decode_image
from ..loading_and_saving.optional_modules import needed_module, optional_module
from .container_files import MAX_DURATION, DecodedVideo, open_container
from .frame_sampling import ROUNDING, FrameSampling, check_rate
from .opened_video import Video, as_pil, check_pixels, transformed


_opening = optional_module("..decoding.opening", __package__)

FRAME_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_ANIMATIONS = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*")
_DEFAULT_FRAME_SECONDS = 0.1  # of GIF frames without a time, as browsers show them


@contextlib.contextmanager
def open_video(source, fps: float | None = None, rules: DecodingRules | None = None) -> Iterator[Video]:
    """Opens a video; `read` gives frames of it.

    Args:
        source: a path, an http(s) URL, the bytes of a file, an open binary file; the path of a folder of frames (in
            the order of the numbers in their names); a list of images, or an array (T, H, W, 3) or (T, 3, H, W); a
            cell of a `datasets.Video` column, decoded or not.
        fps: of a folder, list or array of frames; without it they have no times.
        rules: the background of transparent frames and the number of pixels that is refused.

    Raises:
        ValueError: not a video, no video stream, damaged, without frames.
        ImportError: neither PyAV nor a torchcodec that works is installed.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clip_variants.modeling.video.frame_sampling import FrameSampling
    >>> from hf_clip_variants.modeling.video.video_decoding import open_video

    >>> with open_video(np.zeros((50, 32, 40, 3), np.uint8), fps=25) as video:
    ...     frames, metadata = video.read(FrameSampling(rate=2))
    >>> len(frames), frames[0].size, metadata.frames_indices
    (4, (40, 32), [0, 12, 25, 37])

    ```
    """
    rules = rules or DecodingRules()
    if isinstance(source, dict) and {"path", "bytes"} & source.keys():
        source = source.get("bytes") or source.get("path")
    if hasattr(source, "get_frames_played_at"):
        yield DecodedVideo(source)
        return
    if isinstance(source, np.ndarray | torch.Tensor | list | tuple):
        yield _FrameList(source, fps, rules)
        return
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        yield _FrameList(frame_files(source), fps, rules)
        return
    file, name = _opened(source, rules)
    with file:
        head = file.read(16)
        file.seek(0)
        if not head:
            raise ValueError(f"empty file{name}")
        is_image = head.startswith(_ANIMATIONS) or head[8:12] == b"WEBP" or head[4:12] in (b"ftypavis", b"ftypavif")
        if is_image:
            yield _Animation(file, name, rules)
            return
        with open_container(file, name, rules) as video:
            yield video


def read_video(
    source,
    sampling: FrameSampling | None = None,
    fps: float | None = None,
    rules: DecodingRules | None = None,
    transform: Callable[[PIL.Image.Image], Any] | None = None,
) -> tuple[list, VideoMetadata]:
    """Chosen frames of a video, and what is known of it; see `open_video`, `FrameSampling` and `Video.read`."""
    with open_video(source, fps, rules) as video:
        return video.read(sampling or FrameSampling(), transform)


def frame_files(folder: str | os.PathLike) -> list[Path]:
    """The images in a folder, `frame_2.jpg` before `frame_10.jpg`; ValueError where there are none."""
    files = [path for path in Path(folder).iterdir() if path.suffix.lower() in FRAME_FILES and path.is_file()]
    if not files:
        raise ValueError(f"no frames in folder {os.fspath(folder)!r}: want images ({', '.join(FRAME_FILES)})")

    def number_parts(path: Path):
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]

    return sorted(files, key=number_parts)


def _opened(source, rules: DecodingRules):
    """A binary file, and its name for errors, with " in " before it."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source), ""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        opening = needed_module("..decoding.opening", __package__, f"cannot fetch {source[:200]}")
        return io.BytesIO(opening.download(source, rules.allow_local_urls)), f" in {source}"
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)[:200]
        try:
            return (_opening.open_regular if _opening else lambda path: open(path, "rb"))(source), f" in {name!r}"
        except (OSError, ValueError) as error:
            problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot read file ({error})"
            raise ValueError(f"{problem}: {name!r}") from error
    if hasattr(source, "read"):
        return contextlib.nullcontext(source) if not hasattr(source, "__enter__") else source, ""
    raise ValueError(
        f"video: got {type(source).__name__}, expected a path, a URL, the bytes of a file, a folder or a list of "
        "frames, or an array (T, H, W, 3)"
    )


# ---- frames that are there already


class _FrameList(Video):
    """Images in a list, an array or a folder; each is decoded when it is chosen."""

    backend = "frames"

    def __init__(self, images, fps: float | None, rules: DecodingRules):
        if isinstance(images, np.ndarray | torch.Tensor) and images.ndim != 4:
            raise ValueError(f"video: an array of shape {tuple(images.shape)}, expected (T, H, W, 3) or (T, 3, H, W)")
        if not len(images):
            raise ValueError("video has no frames")
        fps = check_rate(fps)
        self._images, self._rules, self._given = images, rules, fps
        self.total, self.fps = len(images), fps
        self.duration = None if fps is None else self.total / fps
        self.height = self.width = None

    def read(self, sampling, transform=None):
        numbers = sampling.frames(self.total, self.fps)
        frames = transformed((self._frame(number) for number in numbers), transform)
        return frames, self.metadata(numbers.tolist())

    def frames(self, times):
        for time in times:
            yield self._frame(min(int((time + ROUNDING) * (self.fps or 1.0)), self.total - 1))

    def _frame(self, number: int) -> PIL.Image.Image:
        try:
            frame = as_pil(decode_image(self._images[number], self._rules))
        except (ValueError, OSError) as error:
            raise ValueError(f"frame {number}: {error}") from error
        height, width = (frame.height, frame.width) if isinstance(frame, PIL.Image.Image) else frame.shape[-2:]
        self.width, self.height = width, height
        return frame


# ---- animated images


class _Animation(Video):
    """GIF, animated WebP and PNG: decoded from the start, one frame after the other, as their frames are changes."""

    backend = "pillow"

    def __init__(self, file, name: str, rules: DecodingRules):
        self._rules, self._name, self._file = rules, name, file
        with contextlib.ExitStack() as on_error:
            self._image = on_error.enter_context(self._opened(file))
            check_pixels(*self._image.size, rules, name)
            self.width, self.height = self._image.size
            self._ends = np.cumsum([self._seconds(number) for number in self._numbers()])
            on_error.pop_all()
        if not len(self._ends):
            raise ValueError(f"video has no frames{name}")
        self.total, self.duration = len(self._ends), float(self._ends[-1])
        self.fps = self.total / self.duration

    def _opened(self, file) -> PIL.Image.Image:
        try:
            return PIL.Image.open(file)
        except Exception as error:
            raise ValueError(f"truncated or corrupt animation{self._name} ({error})") from error

    def _numbers(self) -> Iterator[int]:
        """Numbers of the frames that can be decoded, each after the image has gone there."""
        number = 0
        while True:
            try:
                self._image.seek(number)
                self._image.load()
            except EOFError:
                return
            except Exception as error:
                if number == 0:
                    raise ValueError(f"truncated or corrupt animation{self._name} ({error})") from error
                warnings.warn(f"the animation{self._name} ends within frame {number} ({error})", stacklevel=2)
                return
            yield number
            number += 1

    def _seconds(self, number: int) -> float:
        duration = self._image.info.get("duration") or 0
        return duration / 1000 if duration > 10 else _DEFAULT_FRAME_SECONDS

    def all_frames(self):
        begins = np.concatenate([[0.0], self._ends[:-1]])
        yield from zip(begins.tolist(), self.frames(begins), strict=True)

    def frames(self, times):
        wanted = np.minimum(np.searchsorted(self._ends, np.asarray(times) + ROUNDING, side="right"), self.total - 1)
        shown, frame = None, None
        for number in wanted:
            if number != shown:
                if number < self._image.tell():  # Pillow does not always find its way back within a PNG
                    self._file.seek(0)
                    self._image = self._opened(self._file)
                self._image.seek(int(number))
                frame, shown = decode_image(self._image.copy(), self._rules), number
                if frame.size != (self.width, self.height):  # of a damaged GIF; what is outside is not shown
                    frame = frame.crop((0, 0, self.width, self.height))
            yield frame


__all__ = ["MAX_DURATION", "Video", "frame_files", "open_video", "read_video"]
