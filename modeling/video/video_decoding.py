"""Videos in any form as upright RGB PIL images: of a file only the frames that are asked for are decoded.

Container files (MP4, WebM, Matroska, ...) are read by PyAV, whose wheel brings FFmpeg; animated GIF, WebP and PNG by
Pillow; a folder of frames, a list of images and an array are videos, too. A frame is asked for by time: the one that
is shown then. The file is opened here, so FFmpeg opens neither URLs nor playlists that name other files.
"""

import abc
import contextlib
import importlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.video_utils import VideoMetadata

from ..decoding.image_decoding import DecodingRules, decode_image
from ..loading_and_saving.optional_modules import needed_module, optional_module
from .frame_sampling import ROUNDING, FrameSampling, check_rate


_opening = optional_module("..decoding.opening", __package__)

MAX_DURATION = 30 * 24 * 3600.0  # seconds; a file that claims more is damaged
FRAME_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# FFmpeg's readers of files that hold their frames themselves; playlists and device readers are not among them.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,nut,m4v,h264,hevc,ivf,mxf,rm,dv,obu,av1,swf,gif,y4m"
_ANIMATIONS = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*")
_SEEK_SECONDS = 2.0  # where a file has no index of key frames, a gap that is larger is jumped over
_MAX_DAMAGED = 1000  # packets in a row that cannot be decoded, before the rest is given up
_DEFAULT_FRAME_SECONDS = 0.1  # of GIF frames without a time, as browsers show them


class Video(abc.ABC):
    """
    An opened video. `open_video` makes one.

    Args:
        duration: seconds. fps: mean frames a second. total: number of frames, counted or from duration and rate.
        width, height: of upright frames. backend: what decodes it.
    """

    duration: float
    fps: float | None
    total: int
    width: int
    height: int
    backend: str

    def read(
        self, sampling: FrameSampling, transform: Callable[[PIL.Image.Image], Any] | None = None
    ) -> tuple[list, VideoMetadata]:
        """The chosen frames, RGB, and what is known of the video; `frames_indices` are the frames' numbers, counted at
        the mean rate.

        Args:
            transform: called with each frame as soon as it is decoded; its results are returned instead.

        Raises:
            ValueError: no frame can be decoded, or the chosen part is behind the end.
        """
        times = sampling.times(self.duration, self.fps, self.total)
        frames = _transformed((frame for frame in self.frames(times) if frame is not None), transform)
        if not frames:
            raise ValueError("video has no frames that can be decoded")
        if len(frames) < len(times):
            warnings.warn(
                f"the video says that it lasts {self.duration:.2f} s, but it cannot be decoded to its end: "
                f"{len(frames)} of {len(times)} frames are used",
                stacklevel=2,
            )
        numbers = np.floor((times[: len(frames)] + ROUNDING) * self.fps).astype(int)
        return frames, self.metadata(np.minimum(numbers, self.total - 1).tolist())

    def metadata(self, frames_indices: list[int]) -> VideoMetadata:
        return VideoMetadata(
            total_num_frames=self.total,
            fps=self.fps,
            width=self.width,
            height=self.height,
            duration=self.duration,
            video_backend=self.backend,
            frames_indices=frames_indices,
        )

    @abc.abstractmethod
    def frames(self, times: Sequence[float]) -> Iterator[PIL.Image.Image | None]:
        """The frame that is shown at each of the rising `times` (seconds); None behind what can be decoded."""

    def all_frames(self) -> Iterator[tuple[float, PIL.Image.Image]]:
        """(seconds, frame) of each frame; of a damaged file of those that can be decoded, with a warning."""
        begins = np.arange(self.total) / (self.fps or 1.0)
        yield from zip(begins.tolist(), self.frames(begins), strict=True)


def _transformed(frames: Iterable, transform: Callable | None) -> list:
    """The frames, or what `transform` makes of each; of the same one in a row only once."""
    if transform is None:
        return list(frames)
    results, last = [], None
    for frame in frames:
        results.append(results[-1] if frame is last else transform(frame))
        last = frame
    return results


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
        ImportError: PyAV is not installed.

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
        yield _DecoderVideo(source)
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
        with _Container(file, name, rules) as video:
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
            raise ValueError(f"an array of shape {tuple(images.shape)}, expected (T, H, W, 3) or (T, 3, H, W)")
        if not len(images):
            raise ValueError("video has no frames")
        fps = check_rate(fps)
        self._images, self._rules, self._given = images, rules, fps
        self.total, self.fps = len(images), fps
        self.duration = None if fps is None else self.total / fps
        self.height = self.width = None

    def read(self, sampling, transform=None):
        numbers = sampling.frames(self.total, self.fps)
        frames = _transformed((self._frame(number) for number in numbers), transform)
        return frames, self.metadata(numbers.tolist())

    def frames(self, times):
        for time in times:
            yield self._frame(min(int((time + ROUNDING) * (self.fps or 1.0)), self.total - 1))

    def _frame(self, number: int) -> PIL.Image.Image:
        try:
            frame = _as_pil(decode_image(self._images[number], self._rules))
        except (ValueError, OSError) as error:
            raise ValueError(f"frame {number}: {error}") from error
        height, width = (frame.height, frame.width) if isinstance(frame, PIL.Image.Image) else frame.shape[-2:]
        self.width, self.height = width, height
        return frame


def _as_pil(image: PIL.Image.Image | torch.Tensor) -> PIL.Image.Image | torch.Tensor:
    """uint8 tensors as PIL images; tensors of floats stay."""
    if isinstance(image, PIL.Image.Image) or image.dtype != torch.uint8:
        return image
    return PIL.Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))


class _DecoderVideo(Video):
    """torchcodec's `VideoDecoder`, which `datasets.Video` columns give."""

    backend = "torchcodec"

    def __init__(self, decoder):
        self._decoder, known = decoder, decoder.metadata
        self.begin = known.begin_stream_seconds or 0.0
        self.fps, self.total = known.average_fps or 25.0, known.num_frames or 0
        self.duration = known.end_stream_seconds - self.begin if known.end_stream_seconds else known.duration_seconds
        self.total = self.total or max(1, round(self.duration * self.fps))
        self.width, self.height = known.width, known.height

    def frames(self, times):
        last = self.begin + max(self.duration - ROUNDING, 0.0)
        for time in times:
            frame = self._decoder.get_frame_played_at(min(self.begin + time + ROUNDING, last)).data
            yield _as_pil(frame if frame.shape[0] == 3 else frame.permute(2, 0, 1))


# ---- animated images


class _Animation(Video):
    """GIF, animated WebP and PNG: decoded from the start, one frame after the other, as their frames are changes."""

    backend = "pillow"

    def __init__(self, file, name: str, rules: DecodingRules):
        self._rules, self._name, self._file = rules, name, file
        with contextlib.ExitStack() as on_error:
            self._image = on_error.enter_context(self._opened(file))
            _check_pixels(*self._image.size, rules, name)
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


def _check_pixels(width: int, height: int, rules: DecodingRules, name: str) -> None:
    if width * height > rules.max_pixels:
        raise ValueError(
            f"video has frames of {width} x {height} = {width * height} pixels{name}, more than "
            f"max_pixels={rules.max_pixels}"
        )
    if not width * height:
        raise ValueError(f"video has frames of {width} x {height} pixels{name}")


# ---- container files


class _Container(Video):
    """A file that FFmpeg reads. Between two frames that are asked for it jumps to the last key frame before the second
    where that is behind what is decoded already.
    """

    backend = "pyav"

    def __init__(self, file, name: str, rules: DecodingRules):
        self._av, self._name, self.decoded, self.damaged = _pyav(), name, 0, 0
        try:
            self._container = self._av.open(file, options={"format_whitelist": _FORMATS})
        except (self._av.FFmpegError, OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error  # without the number of the open file
            raise ValueError(f"not a video that can be read, or cut off{name} ({why})") from error
        try:
            self._read_header(rules)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._container.close()

    def _read_header(self, rules: DecodingRules) -> None:
        streams = self._container.streams.video
        # A cover picture of a sound file is a video stream of one frame.
        streams = [s for s in streams if not s.disposition & s.disposition.attached_pic]
        if not streams:
            raise ValueError(f"no video stream{self._name}, only {_kinds(self._container)}")
        self._stream = stream = streams[0]
        if stream.codec_context is None:  # its header is cut off, or names no codec that is known
            raise ValueError(f"not a video that can be read: no decoder for its pictures{self._name}")
        stream.thread_type = "SLICE"  # several videos at once are decoded in threads of their own
        _check_pixels(stream.width, stream.height, rules, self._name)
        self._begin = float(stream.start_time * stream.time_base) if stream.start_time is not None else None
        self._frames, self._shown, self._next = self._decode(), None, None
        self._pull()
        if self._next is None:
            raise ValueError(f"video has no frames that can be decoded{self._name}")
        if self._begin is None:
            self._begin = self._next.time
        quarter_turn = self._next.rotation % 180 == 90
        self.width, self.height = (stream.height, stream.width) if quarter_turn else (stream.width, stream.height)
        rate = stream.average_rate or stream.guessed_rate or 0
        self.duration = self._duration()
        self.fps = (
            float(rate) if rate else (stream.frames / self.duration if stream.frames and self.duration else 25.0)
        )
        self.total = stream.frames or max(1, round(self.duration * self.fps))
        if not 0 <= self.duration <= MAX_DURATION:
            raise ValueError(f"the file says that the video lasts {self.duration:.0f} s{self._name}: it is damaged")
        if self.duration * self.fps < self.total:  # a single frame without duration
            self.duration = max(self.duration, self.total / self.fps if self.total == 1 else self.duration)

    def _duration(self) -> float:
        stream = self._stream
        if stream.duration:
            return float(stream.duration * stream.time_base)
        tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # Matroska
        if tag:
            hours, minutes, seconds = tag.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - max(self._begin, 0.0)
        if self._container.duration:
            return self._container.duration / 1e6 - max(self._begin, 0.0)
        # No header says it: read all packets, without decoding them.
        last = 0.0
        with contextlib.suppress(self._av.FFmpegError):
            for packet in self._container.demux(stream):
                if packet.pts is not None:
                    last = max(last, float((packet.pts + (packet.duration or 0)) * stream.time_base))
        self._restart(0.0)
        return max(last - self._begin, 0.0)

    def _decode(self) -> Iterator:
        damaged = 0
        packets = self._container.demux(self._stream)
        while damaged < _MAX_DAMAGED:
            try:
                packet = next(packets)
                frames = packet.decode()
            except StopIteration:
                return
            except EOFError:
                return
            except self._av.FFmpegError:
                damaged += 1
                self.damaged += 1
                continue
            damaged = 0
            for frame in frames:
                if frame.pts is not None:
                    self.decoded += 1
                    yield frame

    def _pull(self) -> None:
        self._shown, self._next = self._next, next(self._frames, None)

    def _time(self, frame) -> float:
        return frame.time - self._begin

    def _restart(self, time: float) -> None:
        """Goes on at the last key frame before `time`, or at an earlier one where frames are stored out of order."""
        ticks = self._stream.time_base
        for back in (0.0, 1.0, 10.0, float("inf")):
            start = max(time - back, 0.0)
            offset = int((start + self._begin) / ticks) if start else (self._stream.start_time or 0)
            try:
                self._container.seek(offset, stream=self._stream, backward=True)
            except self._av.FFmpegError:  # cannot be sought in: from here on
                return
            self._frames, self._shown, self._next = self._decode(), None, None
            self._pull()
            if self._next is not None and self._time(self._next) <= time + ROUNDING or not start:
                return

    def _jumps(self, time: float) -> bool:
        """Whether a key frame lies between what is decoded and `time`."""
        reached = self._next if self._next is not None else self._shown
        if reached is None or time < self._time(reached):
            return reached is None
        index, ticks = self._stream.index_entries, self._stream.time_base
        if len(index):
            place = index.search_timestamp(int((time + self._begin) / ticks), backward=True)
            if place >= 0 and index[place].timestamp > reached.pts:
                return True
            if index[len(index) - 1].timestamp >= reached.pts:  # the index reaches this far
                return False
        return time - self._time(reached) > _SEEK_SECONDS

    def frames(self, times):
        last, image = None, None
        for time in times:
            if self._shown is not None and time + ROUNDING < self._time(self._shown):
                self._restart(time)  # not rising
            elif self._jumps(time):
                self._restart(time)
            while self._next is not None and (self._shown is None or self._time(self._next) <= time + ROUNDING):
                self._pull()
            frame = self._shown
            if frame is None or (self._next is None and self._is_behind(time, frame)):
                yield None
                continue
            if frame is not last:
                image, last = self._upright(frame), frame
            yield image

    def all_frames(self):
        if self._shown is not None:  # frames were read before
            self._restart(0.0)
        while self._next is not None:
            self._pull()
            yield self._time(self._shown), self._upright(self._shown)
        if self.damaged:
            warnings.warn(f"{self.damaged} parts of the video{self._name} are damaged, and left out", stacklevel=2)

    def _is_behind(self, time: float, frame) -> bool:
        """Whether `time` is later than the last frame that could be decoded is shown."""
        seconds = float(frame.duration * frame.time_base) if frame.duration else 1 / self.fps
        return time > self._time(frame) + seconds + 2 / self.fps + ROUNDING

    @staticmethod
    def _upright(frame) -> PIL.Image.Image:
        image, turns = frame.to_image(), frame.rotation % 360
        turn = {90: "ROTATE_90", 180: "ROTATE_180", 270: "ROTATE_270"}.get(turns)
        return image if turn is None else image.transpose(PIL.Image.Transpose[turn])


def _kinds(container) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _pyav():
    # Not an import statement: transformers asks for every package that travelling code imports, when it loads it.
    try:
        av = importlib.import_module("av")
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        raise ImportError('Reading videos needs av: pip install "hf-clip-variants[video]"', name="av") from error
    av.logging.set_level(None)  # what FFmpeg says of damaged files would go to the terminal
    return av


__all__ = ["MAX_DURATION", "Video", "frame_files", "open_video", "read_video"]
