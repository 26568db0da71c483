"""Entries of a source as inputs of an encoder, in threads: pictures, frames or clips of videos, windows of sounds."""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..data.images.image_set import explain
from ..files.content_hashes import hash_of_bytes
from ..modeling.decoding.audio_decoding import decode_audio
from ..modeling.video.read_ahead import read_ahead
from ..modeling.video.video_decoding import open_video
from .encoder import Encoder
from .sources import Entry, Source


logger = logging.getLogger(__name__)

VIDEO_MODES = ("frames", "clips")
FRAMES_AT_ONCE = 32  # of a video, that one thread reads
CLIPS_AT_ONCE = 4
WINDOWS_AT_ONCE = 16
_ANIMATED = (b"GIF8", b"RIFF", b"\x89PNG")  # formats that may hold more than one frame
_LIMITS = {"fps": (1e-4, 1e3), "clip_seconds": (1e-3, 1e6)}  # a second of video has a thousand vectors at most
_INSIDE = 1e-3  # seconds; a rule that includes the end of a clip would take the first frame of the next one


@dataclass(frozen=True)
class VideoSettings:
    """
    Which parts of videos get a vector.

    Args:
        mode: "frames", `fps` of them a second, each in the middle of its interval; or "clips" of `clip_seconds`, the
            last one shorter. A model that does not look at clips as a whole gives the mean of its frames' embeddings.
        fps: frames a second. None: 1, or for clips of a model of videos what its processor says.
    """

    mode: str = "frames"
    fps: float | None = None
    clip_seconds: float = 10.0

    def __post_init__(self):
        if self.mode not in VIDEO_MODES:
            raise ValueError(f"videos: got {self.mode!r}; want {' or '.join(map(repr, VIDEO_MODES))}")
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value is None and name == "fps":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name}: got {value!r:.80}; want a number in {low:g}..{high:g}")
            object.__setattr__(self, name, float(value))

    def frames(self, duration: float) -> list[tuple[float, float, float]]:
        """(time of the frame, start and end of what it stands for) of each frame of a video that lasts so long."""
        rate = self.fps or 1.0
        times = (np.arange(max(1, round(duration * rate))) + 0.5) / rate
        times = np.minimum(times, max(duration, 0.0) / 2 if len(times) == 1 else duration)
        if self.mode == "frames":
            return [(time, time, time) for time in times.tolist()]
        starts = (times // self.clip_seconds) * self.clip_seconds
        ends = np.minimum(starts + self.clip_seconds, duration)
        return list(zip(times.tolist(), starts.tolist(), ends.tolist(), strict=True))

    def clips(self, duration: float) -> list[tuple[float, float]]:
        """(start, end) of each clip; a rest of less than a tenth of a clip belongs to the one before."""
        count = max(1, int(np.ceil(duration / self.clip_seconds - 0.1)))
        starts = np.arange(count) * self.clip_seconds
        return [(start, min(start + self.clip_seconds, duration)) for start in starts[:-1].tolist()] + [
            (float(starts[-1]), duration)
        ]


@dataclass
class Sample:
    """
    What becomes a vector, or a part of one: samples of one entry with the same start and end are averaged.

    Args:
        task: which function of the encoder takes it: "pixels", "clips" or "audio".
        inputs: its arguments, of one sample, with the axis of the batch.
        start, end: seconds; None for pictures.
    """

    task: str
    inputs: dict[str, torch.Tensor]
    start: float | None = None
    end: float | None = None


@dataclass
class Read:
    """What was read of one entry, the whole or a part of it."""

    entry: Entry
    samples: list[Sample] = field(default_factory=list)
    kind: str | None = None
    content: str | None = None  # a hash; None in all but the first part
    error: str | None = None


@dataclass(frozen=True)
class _Part:
    """A share of one entry for one thread: frames, clips or windows of these numbers; None: all."""

    entry: Entry
    duration: float | None = None
    first: int = 0
    count: int | None = None


class Reader:
    """Reads entries for an encoder.

    Args:
        known: hashes of content that has vectors already: it is not decoded.
        workers: threads; None: as many as processors, at most 8.
    """

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        videos: VideoSettings,
        known: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        workers: int | None = None,
    ):
        self.source, self.encoder, self.videos, self.known = source, encoder, videos, known or {}
        self.workers = min(8, os.cpu_count() or 1) if workers is None else workers
        # All threads together hold about one batch that is read and one that is being read.
        self.images_at_once = max(1, -(-batch_size // max(self.workers, 1)))

    def read(self, groups: Iterable[Sequence[Entry]]) -> Iterator[tuple[int, list[Read]]]:
        """(number of the group, what was read) in order; threads read on while the caller computes, also in the next
        group."""
        yield from read_ahead(self._tasks(groups), self._run, self.workers)

    def _tasks(self, groups) -> Iterator[tuple[int, list[_Part] | Read]]:
        for number, entries in enumerate(groups):
            for kind, of_kind in itertools.groupby(entries, lambda entry: entry.kind):
                if kind == "image":
                    rest = list(of_kind)
                    for start in range(0, len(rest), self.images_at_once):
                        yield number, [_Part(entry) for entry in rest[start : start + self.images_at_once]]
                    continue
                for entry in of_kind:
                    yield from ((number, part) for part in self._parts(entry))

    def _parts(self, entry: Entry) -> Iterator[list[_Part] | Read]:
        """A long video is read by several threads, and never as a whole."""
        if entry.kind == "audio":
            yield [_Part(entry)]
            return
        try:
            _check_not_empty(entry)
            with open_video(self.source.file(entry.path)) as video:
                duration = video.duration
            count = len(self._places(duration))
        except Exception as error:  # FFmpeg's and Pillow's readers raise anything
            yield Read(entry, error=explain(error, self.source.location(entry.path) or ""))
            return
        at_once = CLIPS_AT_ONCE if self._whole_clips else FRAMES_AT_ONCE
        for first in range(0, count, at_once):
            yield [_Part(entry, duration, first, at_once)]

    @property
    def _whole_clips(self) -> bool:
        return self.videos.mode == "clips" and self.encoder.has_clips

    def _places(self, duration: float) -> list[tuple]:
        return self.videos.clips(duration) if self._whole_clips else self.videos.frames(duration)

    # ---- in threads

    def _run(self, task: tuple[int, list[_Part] | Read]) -> tuple[int, list[Read]]:
        number, parts = task
        return number, [parts] if isinstance(parts, Read) else [self._read(part) for part in parts]

    def _read(self, part: _Part) -> Read:
        entry = part.entry
        try:
            if entry.kind == "video":
                content = self.source.hash_of(entry.path) if part.first == 0 else None
                if content in self.known:
                    return Read(entry, kind="video", content=content)
                return Read(entry, self._video(self.source.file(entry.path), part), "video", content)
            _check_not_empty(entry)
            data = self.source.content(entry.path)
            content = hash_of_bytes(data)
            if content in self.known:
                return Read(entry, content=content)
            if entry.kind == "audio":
                return Read(entry, self._audio(data), "audio", content)
            if data.startswith(_ANIMATED) and _is_animated(data):
                with open_video(data) as video:
                    duration = video.duration
                return Read(entry, self._video(data, _Part(entry, duration)), "video", content)
            return Read(entry, [Sample("pixels", self._pixels(data))], "image", content)
        except Exception as error:  # see above
            return Read(entry, error=explain(error, self.source.location(entry.path) or ""))

    def _pixels(self, image: bytes | PIL.Image.Image) -> dict[str, torch.Tensor]:
        if self.encoder.images is None:
            raise ValueError("the model encodes no single images")
        return {"pixel_values": self.encoder.images([image], return_tensors="pt")["pixel_values"]}

    def _video(self, file: str | bytes, part: _Part) -> list[Sample]:
        count = None if part.count is None else part.first + part.count
        places = self._places(part.duration)[part.first : count]
        if self._whole_clips:
            return [self._clip(file, start, end, part.duration) for start, end in places]
        samples = []
        with open_video(file) as video:
            for place, frame in zip(places, video.frames([time for time, *_ in places]), strict=True):
                if frame is None:
                    break
                samples.append(Sample("pixels", self._pixels(frame), *place[1:]))
        if len(samples) < len(places):
            if not samples and part.first == 0:
                raise ValueError("video has no frames that can be decoded")
            logger.warning(
                "%s: cannot be decoded to its end, %d of %d frames are used",
                part.entry.path,
                len(samples),
                len(places),
            )
        return samples

    def _clip(self, file: str | bytes, start: float, end: float, duration: float) -> Sample:
        options = {"start": start or None, "end": None if end >= duration else max(end - _INSIDE, start + _INSIDE)}
        options |= {"fps": self.videos.fps} if self.videos.fps else {}
        inputs = self.encoder.video_processor([file], return_tensors="pt", **options)
        return Sample("clips", dict(inputs), start, end)

    def _audio(self, data: bytes) -> list[Sample]:
        array, rate = decode_audio(data)
        extractor = self.encoder.feature_extractor
        samples = []
        for start, end in windows(array.shape[1] / rate, extractor.max_length / extractor.sampling_rate):
            piece = {"array": array[:, round(start * rate) : round(end * rate)], "sampling_rate": rate}
            found = extractor([piece], resample=True, return_tensors="pt")
            samples.append(Sample("audio", {"input_features": found["input_features"]}, start, end))
        return samples


def windows(duration: float, length: float) -> list[tuple[float, float]]:
    """(start, end) of the windows of a sound in seconds: one after the other; of a rest of half a window or more, the
    last `length` seconds.

    >>> windows(3, 5), windows(7, 5), windows(13, 5)
    ([(0.0, 3)], [(0.0, 5.0)], [(0.0, 5.0), (5.0, 10.0), (8, 13)])
    """
    whole = int(duration // length)
    found = [(float(number * length), float((number + 1) * length)) for number in range(whole)]
    if not found:
        return [(0.0, duration)]
    return found + ([(duration - length, duration)] if duration - whole * length >= length / 2 else [])


def _is_animated(data: bytes) -> bool:
    with PIL.Image.open(io.BytesIO(data)) as image:
        return getattr(image, "n_frames", 1) > 1


def _check_not_empty(entry: Entry) -> None:
    if not entry.size:
        raise OSError("the file is empty")


__all__ = ["VIDEO_MODES", "Read", "Reader", "Sample", "VideoSettings", "windows"]
