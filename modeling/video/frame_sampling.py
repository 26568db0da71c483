"""Which frames of a video are looked at: one sampler, with the rules of the official codes by name.

Frames are chosen by time, so that a rate of 29.97 frames a second, or one that varies, does not drift. A rule that is
written with frame numbers takes frame k of N evenly spaced ones, at the middle of its interval: in a video of constant
rate that is frame k itself.
"""

import math
import numbers
from dataclasses import dataclass

import numpy as np


RULES = ("per_second", "segments", "whole_seconds")
KEPT = ("uniform", "first", "last")
# Matroska rounds times to milliseconds: a frame that begins this much later has begun.
ROUNDING = 6e-4
_HIGHEST_RATE = 1000  # frames a second; more is a mistake, noticed before memory is asked for
_MOST_SEGMENTS = 10_000
_MOST_FRAMES = 30_000_000  # that are chosen of one video: 11 days at 30 a second


def check_rate(fps: object, name: str = "fps") -> float | None:
    """Frames a second, as somebody says it of frames without times; ValueError unless a number > 0, or None."""
    if fps is None:
        return None
    if isinstance(fps, bool) or not isinstance(fps, numbers.Real) or not 1e-9 <= fps <= 1e9:
        raise ValueError(f"{name}: {fps!r}, expected a number > 0, frames a second, at most 1e9")
    return float(fps)


@dataclass(frozen=True)
class FrameSampling:
    """
    A rule that chooses frames.

    Args:
        rule: `"per_second"`, CLIP4Clip's: `rate` frames a second from the start, then at most `num_frames` of those;
            `"segments"`, of temporal segment networks, ActionCLIP's: one frame of each of `num_frames` equal parts;
            `"whole_seconds"`, VideoCLIP's: `rate` frames for each second that has begun, as FFmpeg's filter `fps`
            gives; what is missing of the last second is to be filled up (`missing_frames`).
        num_frames: as the rule says. None: all (not for segments).
        rate: frames a second; None: each frame of the video (`per_second` only).
        keep: of more than `num_frames` frames, those evenly spaced, the first or the last.
        start, end: seconds; the part of the video that is looked at. `per_second` includes `end`.
        frame_numbers: for `per_second`, count frames at the video's rate without its fraction, as the official code
            does: at 29.97 frames a second, second 100 is then frame 2900 instead of 2997.
        seed: for segments, the frame of each part is drawn, as in training; None: the one at `position`.
        position: for segments, where in each part the frame is, 0..1. Several clips of a video have several.
    """

    rule: str = "per_second"
    num_frames: int | None = 12
    rate: float | None = 1.0
    keep: str = "uniform"
    start: float | None = None
    end: float | None = None
    frame_numbers: bool = False
    seed: int | None = None
    position: float = 0.5

    def __post_init__(self):
        for name, known in (("rule", RULES), ("keep", KEPT)):
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name in ("rate", "start", "end", "position"):
            value = getattr(self, name)
            if (value is None and name != "position") or type(value) in (int, float):
                continue
            raise ValueError(f"{name}: {value!r}, expected a number{'' if name == 'position' else ' or None'}")
        if not isinstance(self.frame_numbers, bool):
            raise ValueError(f"frame_numbers: {self.frame_numbers!r}, expected True or False")
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 2**32):
            raise ValueError(f"seed: {self.seed!r}, expected a whole number in 0..{2**32 - 1} or None")
        if not 0 <= self.position <= 1:
            raise ValueError(f"position: {self.position!r}, expected a number in 0..1")
        if self.num_frames is None and self.rule == "segments":
            raise ValueError("num_frames: None, expected the number of segments")
        if self.num_frames is not None and (type(self.num_frames) is not int or self.num_frames < 1):
            raise ValueError(f"num_frames: {self.num_frames!r}, expected a whole number > 0 or None")
        if self.rule == "segments" and self.num_frames > _MOST_SEGMENTS:
            raise ValueError(f"num_frames: {self.num_frames}, expected at most {_MOST_SEGMENTS} segments")
        if self.rate is None and self.rule == "whole_seconds":
            raise ValueError("rate: None, expected frames a second")
        if self.rate is not None and not 0 < self.rate <= _HIGHEST_RATE:
            raise ValueError(f"rate: {self.rate}, expected a number > 0, at most {_HIGHEST_RATE}, or None")
        start, end = self.start or 0.0, math.inf if self.end is None else self.end
        if not math.isfinite(start) or not (0 <= start < end or 0 <= start == end == math.floor(start)):
            raise ValueError(f"start, end: {self.start}, {self.end}, expected 0 <= start < end, in seconds")

    def times(self, duration: float, fps: float, total: int | None = None) -> np.ndarray:
        """(T,) float64, seconds from the start of the video, rising: the frames that are shown then are chosen.

        Args:
            duration: of the video, in seconds.
            fps: its mean rate.
            total: its number of frames; None: `duration * fps`.

        Raises:
            ValueError: the part from `start` lies behind the end of the video.
        """
        duration = duration if duration > 0 else 1 / fps  # of a single frame
        total = max(1, round(duration * fps)) if total is None else total
        start, end = self.start or 0.0, min(duration, math.inf if self.end is None else self.end)
        if start > 0 and start >= duration:
            raise ValueError(f"start: {start} s, but the video ends at {duration:.3f} s")
        if self.rule == "segments":
            first = min(math.floor(start / duration * total + 1e-6), total - 1)
            last = max(math.ceil(end / duration * total - 1e-6), first + 1)
            return self._middle(first + self.segment_frames(last - first), duration, total)
        if self.rule == "whole_seconds":
            return self._of_whole_seconds(start, end)
        if self.frame_numbers:
            return self._middle(self.numbered_frames(total, fps), duration, total)
        # Second `end` is looked at where it was asked for, as in the official code.
        count = (end - start) * (total / duration if self.rate is None else self.rate)
        inclusive = self.end is not None and self.end < duration
        count = max(1, math.floor(count + 1e-6) + 1 if inclusive else math.ceil(count - 1e-6))
        numbers = self.kept(count)
        return start + self._middle(numbers, duration, total) if self.rate is None else start + numbers / self.rate

    def missing_frames(self, times: np.ndarray) -> int:
        """How many frames the last second lacks, for `whole_seconds`; else 0."""
        return -len(times) % math.ceil(self.rate) if self.rule == "whole_seconds" else 0

    def frames(self, total: int, fps: float | None = None) -> np.ndarray:
        """(T,) numbers of the chosen frames, from 0, for frames that are given as a list.

        Without `fps`, `per_second` takes every frame for a sample: it only keeps at most `num_frames`.
        """
        if self.rule == "segments" and self.start is None and self.end is None:
            return self.segment_frames(total)
        fps = check_rate(fps)
        if fps is None and self.rule == "per_second" and self.start is None and self.end is None:
            return self.kept(total)
        if fps is None:
            raise ValueError(
                "fps: got none for frames without times, expected frames a second: rule whole_seconds, start and end "
                "count in seconds; do_sample_frames=False takes all frames"
            )
        if self.rule == "per_second" and self.frame_numbers:
            return self.numbered_frames(total, fps)
        times = self.times(total / fps, fps, total)
        return np.minimum(np.floor((times + ROUNDING) * fps).astype(np.int64), total - 1)

    def __call__(self, metadata, **unused) -> np.ndarray:
        """Numbers of the chosen frames, for `sample_indices_fn` of transformers' `load_video`."""
        return self.frames(metadata.total_num_frames, metadata.fps or None)

    # ---- rules with frame numbers

    def kept(self, count: int) -> np.ndarray:
        """Numbers of at most `num_frames` of `count` frames."""
        if self.num_frames is None or count <= self.num_frames:
            return np.arange(_checked_count(count))
        if self.keep == "first":
            return np.arange(self.num_frames)
        if self.keep == "last":
            return np.arange(count - self.num_frames, count)
        return np.linspace(0, count - 1, self.num_frames, dtype=int)

    def numbered_frames(self, total: int, fps: float) -> np.ndarray:
        """CLIP4Clip's own numbers of frames: the first `rate` of every `fps // rate`-th frame of each second."""
        whole = max(1, int(fps))
        rate = whole if self.rate is None else max(1, int(self.rate))
        step = max(1, whole // rate)
        within = step * np.arange(min(rate, -(-whole // step), total))
        first, last = int(self.start or 0), math.ceil(total / whole)
        if first * whole >= total:
            raise ValueError(f"start: {self.start} s, but the video ends at {total / fps:.3f} s")
        last = last if self.end is None else min(last, int(self.end))
        # The official loop stops at the first frame that cannot be read.
        numbers = (np.arange(first, last + 1)[:, None] * whole + within).ravel()
        numbers = numbers[: np.searchsorted(numbers, total)]
        return numbers[self.kept(len(numbers))]

    def segment_frames(self, total: int) -> np.ndarray:
        """(num_frames,) numbers: the middle (`position`) of each of as many equal parts of `total` frames; with `seed`
        a frame that is drawn of each. Of fewer frames than parts, some are taken twice.
        """
        parts = self.num_frames
        if self.seed is not None:
            return drawn_segment_frames(total, parts, np.random.RandomState(self.seed))
        if parts == 1 and self.position == 0.5:
            return np.array([min(total // 2, total - 1)])
        within = (total / parts - 1) * self.position if total > parts else 0
        return np.array([int(part * total / parts + within) for part in range(parts)])

    @staticmethod
    def _middle(numbers: np.ndarray, duration: float, total: int) -> np.ndarray:
        return (numbers + 0.5) * (duration / total)

    def _of_whole_seconds(self, start: float, end: float) -> np.ndarray:
        # FFmpeg gives each frame to the output time that it is nearest to, and shows the last one that is given: the
        # one that began less than half an interval after it.
        count = max(1, math.floor((end - start) * self.rate + 0.5 - 1e-6))
        if self.num_frames is not None:
            count = min(count, self.num_frames)
        times = start + (np.arange(_checked_count(count)) + 0.5) / self.rate - 2 * ROUNDING
        return np.minimum(times, max(end - 2 * ROUNDING, start))  # of a video that is shorter than one interval


def _checked_count(count: int) -> int:
    if count > _MOST_FRAMES:
        raise ValueError(
            f"rate, num_frames: they choose {count} frames of one video, expected at most {_MOST_FRAMES}; want a "
            "lower rate, or a part from start to end"
        )
    return count


def drawn_segment_frames(total: int, parts: int, random: np.random.RandomState) -> np.ndarray:
    """(parts,) numbers, one frame drawn of each of `parts` parts of `total` frames, as the official code draws them
    with NumPy's old generator; of fewer frames, all and some again.
    """
    if total <= parts:
        return np.sort(np.concatenate([np.arange(total), random.randint(total, size=parts - total)]))
    borders = np.arange(parts + 1) * total // parts
    return np.array([random.randint(low, high) for low, high in zip(borders[:-1], borders[1:], strict=True)])


__all__ = ["KEPT", "ROUNDING", "RULES", "FrameSampling", "check_rate", "drawn_segment_frames"]
