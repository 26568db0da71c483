"""Container files (MP4, WebM, Matroska, ...), read by PyAV, or by torchcodec where that is installed and PyAV is not.

The file is opened here and read through Python, and only formats that hold their frames themselves are let in: FFmpeg
opens neither URLs nor playlists that name other files.
"""

import bisect
import contextlib
import importlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

import PIL.Image

from ..decoding.image_decoding import DecodingRules
from .frame_sampling import ROUNDING
from .opened_video import Video, as_pil, check_pixels


MAX_DURATION = 30 * 24 * 3600.0  # seconds; a file that claims more is damaged
# FFmpeg's readers of files that hold their frames themselves; playlists and device readers are not among them.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,nut,m4v,h264,hevc,ivf,mxf,rm,dv,obu,av1,swf,gif,y4m"
# How files of the commonest of these begin, or go on at a byte, for a reader that cannot be told its formats.
_BEGINNINGS = (b"\x1aE\xdf\xa3", b"OggS", b"FLV", b"\x30\x26\xb2\x75", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"DKIF")
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")  # of MP4 and MOV, at byte 4
_SEEK_SECONDS = 2.0  # where a file has no index of key frames, a gap that is larger is jumped over
_MAX_DAMAGED = 1000  # packets in a row that cannot be decoded, before the rest is given up


def open_container(file, name: str, rules: DecodingRules) -> Video:
    """
    A file that FFmpeg reads, as a context manager.

    Args:
        file: open, binary, that can be sought in.
        name: for errors: " in 'path'", or "".

    Raises:
        ValueError: not a video, no video stream, damaged, without frames, too many pixels.
        ImportError: neither PyAV nor torchcodec is there.
    """
    for reader, module in READERS.items():
        found = module()
        if found is not None:
            return reader(found, file, name, rules)
    raise _needs_pyav("videos")


def _needs_pyav(what: str) -> ImportError:
    return ImportError(f'Reading {what} needs av: pip install "hf-clip-variants[video]"', name="av")


def _checked_duration(seconds: float, name: str) -> float:
    if not 0 <= seconds <= MAX_DURATION:
        raise ValueError(f"the file says that the video lasts {seconds:.0f} s{name}: it is damaged")
    return seconds


# ---- PyAV


def _pyav() -> Any:
    # Not an import statement: transformers asks for every package that travelling code imports, when it loads it.
    try:
        av = importlib.import_module("av")
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        return None
    av.logging.set_level(None)  # what FFmpeg says of damaged files would go to the terminal
    return av


class PyAVVideo(Video):
    """A file that PyAV reads. Between two frames that are asked for it jumps to the last key frame before the second
    where that is behind what is decoded already.
    """

    backend = "pyav"

    def __init__(self, av, file, name: str, rules: DecodingRules):
        self._av, self._name, self.decoded, self.damaged = av, name, 0, 0
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
        check_pixels(stream.width, stream.height, rules, self._name)
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
        _checked_duration(self.duration, self._name)
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


# ---- torchcodec


def _torchcodec() -> Any:
    """`torchcodec.decoders`; None without it, or where it finds no FFmpeg."""
    try:
        return importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError):
        return None


class DecodedVideo(Video):
    """torchcodec's `VideoDecoder`, which `datasets.Video` columns give."""

    backend = "torchcodec"

    def __init__(self, decoder):
        self._decoder, known = decoder, decoder.metadata
        self.begin = known.begin_stream_seconds or 0.0
        self.fps, self.total = known.average_fps or 25.0, known.num_frames or 0
        self.duration = known.end_stream_seconds - self.begin if known.end_stream_seconds else known.duration_seconds
        self.total = self.total or max(1, round(self.duration * self.fps))
        self.width, self.height = known.width, known.height
        self._count, self._begins = self.total, {}

    def frames(self, times):
        last = self.begin + max(self.duration - ROUNDING, 0.0)
        for time in times:
            yield self._shown_at(min(self.begin + time + ROUNDING, last))

    def _shown_at(self, seconds: float) -> PIL.Image.Image:
        frame = self._decoder.get_frame_played_at(seconds)
        if frame.pts_seconds > seconds:
            # It gives the next frame where the durations in a file leave a gap.
            begun = bisect.bisect_right(range(self._count), seconds, key=self._begin_of)
            frame = self._decoder.get_frame_at(max(begun - 1, 0))
        pixels = frame.data
        return as_pil(pixels if pixels.shape[0] == 3 else pixels.permute(2, 0, 1))

    def _begin_of(self, number: int) -> float:
        if number not in self._begins:
            self._begins[number] = self._decoder.get_frame_at(number).pts_seconds
        return self._begins[number]


class TorchcodecVideo(DecodedVideo):
    """A file that torchcodec reads. Numbers are those of its header, as PyAV has them, times those of its frames."""

    def __init__(self, decoders, file, name: str, rules: DecodingRules):
        self._name = name
        head = file.read(189)
        file.seek(0)
        # Its FFmpeg cannot be told which formats are let in, and would follow a playlist.
        is_packets = head[:1] == b"G" and head[188:] == b"G"  # MPEG transport stream
        if head.startswith(b"RIFF") and head[8:11] == b"AVI":  # torchcodec 0.17 gives wrong frames of it
            raise _needs_pyav(f"AVI files{name}")
        if not (head.startswith(_BEGINNINGS) or head[4:8] in _BOXES or is_packets):
            raise ValueError(f"not a video that can be read, or cut off{name}")
        try:
            # "exact" looks at the times of all packets first: a rate that varies, or a wrong header, is seen.
            decoder = decoders.VideoDecoder(file, num_ffmpeg_threads=1, seek_mode="exact")
            known = decoder.metadata
            check_pixels(known.width or 0, known.height or 0, rules, name)
            super().__init__(decoder)
            self._last = self.begin + self.duration  # when the last frame that is there ends
            self._image = self._shown_at(self.begin)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise ValueError(self._problem(error)) from error
        self.width, self.height = self._image.size  # upright
        if known.duration_seconds_from_header:
            self.duration, total = float(known.duration_seconds_from_header), known.num_frames_from_header
            self.fps = total / self.duration if total else float(known.average_fps_from_header or self.fps)
            self.total = total or max(1, round(self.duration * self.fps))
        _checked_duration(self.duration, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        del self._decoder

    def _problem(self, error: Exception) -> str:
        """What is said of a file that cannot be opened; torchcodec's messages are of many lines."""
        said = str(error).strip().splitlines()[:1]
        if isinstance(error, ValueError) and said and said[0].startswith("video has frames of"):
            return said[0]
        if "No valid stream" in str(error) or "no video stream" in str(error).lower():
            return f"no video stream{self._name}"
        return f"not a video that can be read, or cut off{self._name} ({''.join(said)[:200]})"

    def frames(self, times):
        for time in times:
            wanted = self.begin + time + ROUNDING
            if wanted > self._last + 2 / self.fps:  # behind what is there
                yield None
                continue
            # A damaged part shows the frame before it, as PyAV does.
            with contextlib.suppress(RuntimeError, IndexError):
                self._image = self._shown_at(min(wanted, self._last - ROUNDING))
            yield self._image


READERS = {PyAVVideo: _pyav, TorchcodecVideo: _torchcodec}  # the first that is there reads


__all__ = ["MAX_DURATION", "DecodedVideo", "PyAVVideo", "TorchcodecVideo", "open_container"]
